"""What the demo asks a cluster and a plain PostgreSQL; both have to say the same, value by value.

Rows are compared without regard to their order (a question that is about order says so in its rows, by rank), values
exactly: no question adds up floating-point numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import psycopg

from bench.support import Connection


@dataclass(frozen=True)
class Question:
    """One query and what it is about."""

    title: str
    sql: str


QUESTIONS = (
    Question("rows of every table", """
        SELECT (SELECT count(*) FROM flights), (SELECT count(*) FROM planes), (SELECT count(*) FROM weather),
               (SELECT count(*) FROM airlines), (SELECT count(*) FROM airports)"""),
    Question("flights and delays of each airline (reference join)", """
        SELECT a.name, count(*), avg(f.dep_delay), max(f.arr_delay)
          FROM flights f JOIN airlines a USING (carrier) GROUP BY a.name"""),
    Question("delays of each month and origin", """
        SELECT month, origin, count(dep_delay), sum(dep_delay), avg(arr_delay) FROM flights GROUP BY month, origin"""),
    Question("the ten busiest routes, with names (reference join, top n)", """
        SELECT rank() OVER (ORDER BY count(*) DESC, f.origin, f.dest), f.origin, f.dest, p.name, count(*)
          FROM flights f LEFT JOIN airports p ON p.faa = f.dest
         GROUP BY f.origin, f.dest, p.name ORDER BY 1 LIMIT 10"""),
    Question("flights of each manufacturer (colocated join)", """
        SELECT p.manufacturer, count(*), count(DISTINCT p.tailnum), sum(f.distance)
          FROM flights f JOIN planes p USING (tailnum) GROUP BY p.manufacturer"""),
    Question("seats flown by each airline, of planes built before 2000 (colocated and reference join)", """
        SELECT a.name, sum(p.seats), avg(f.air_time)
          FROM flights f JOIN planes p USING (tailnum) JOIN airlines a ON a.carrier = f.carrier
         WHERE p.year < 2000 GROUP BY a.name"""),
    Question("one plane and its year (by key)", """
        SELECT p.manufacturer, p.model, f.month, count(*), sum(f.distance)
          FROM planes p JOIN flights f USING (tailnum) WHERE p.tailnum = 'N14228'
         GROUP BY p.manufacturer, p.model, f.month"""),
    Question("flights of planes that are not on record (colocated anti-join)", """
        SELECT f.carrier, count(*) FROM flights f
         WHERE NOT EXISTS (SELECT FROM planes p WHERE p.tailnum = f.tailnum) GROUP BY f.carrier"""),
    Question("the plane with the most flights of each airline (group by key, window)", """
        SELECT carrier, tailnum, flights FROM (
          SELECT carrier, tailnum, count(*) AS flights,
                 row_number() OVER (PARTITION BY carrier ORDER BY count(*) DESC, tailnum) AS place
            FROM flights WHERE tailnum <> '' GROUP BY carrier, tailnum) ranked WHERE place = 1"""),
    Question("delays by wind (join of tables with different keys)", """
        SELECT width_bucket(w.wind_speed, 0, 40, 8), count(*), avg(f.dep_delay)
          FROM flights f JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
         WHERE f.month IN (1, 7) GROUP BY 1"""),
    Question("weather extremes of each origin", """
        SELECT origin, min(temp), max(temp), avg(humid), sum(precip), count(wind_gust), count(*)
          FROM weather GROUP BY origin"""),
    Question("distinct planes, places and days", """
        SELECT count(DISTINCT tailnum), count(DISTINCT dest), count(DISTINCT (month, day)) FROM flights"""),
    Question("cancelled flights of each month, with totals (rollup)", """
        SELECT month, origin, count(*) FROM flights WHERE dep_time IS NULL GROUP BY ROLLUP (month, origin)"""),
    Question("median and 90th percentile of the arrival delay", """
        SELECT origin, percentile_disc(0.5) WITHIN GROUP (ORDER BY arr_delay),
               percentile_disc(0.9) WITHIN GROUP (ORDER BY arr_delay) FROM flights GROUP BY origin"""),
    Question("planes that went to the same place twice within a day (colocated self-join)", """
        SELECT a.dest, count(*) FROM flights a
          JOIN flights b ON b.tailnum = a.tailnum AND b.month = a.month AND b.day = a.day
                        AND b.dest = a.dest AND b.id > a.id
         WHERE a.tailnum <> '' AND a.month = 6 GROUP BY a.dest"""),
    Question("airports that nobody flew to (reference table outside)", """
        SELECT count(*), min(faa), max(alt) FROM airports p
         WHERE NOT EXISTS (SELECT FROM flights f WHERE f.dest = p.faa)"""),
    Question("one page of a long list (order, limit, offset)", """
        SELECT row_number() OVER (), * FROM (
          SELECT id, carrier, flight, origin, dest, time_hour, air_time FROM flights
           WHERE arr_delay > 60 ORDER BY time_hour, id LIMIT 25 OFFSET 5000) page"""),
    Question("airlines that are later than the average (with, subquery)", """
        WITH late AS (SELECT carrier, avg(arr_delay) AS delay FROM flights GROUP BY carrier)
        SELECT a.name, l.delay FROM late l JOIN airlines a USING (carrier)
         WHERE l.delay > (SELECT avg(arr_delay) FROM flights)"""),
    Question("places in the north that two airports serve (set operations)", """
        SELECT dest FROM flights WHERE origin = 'JFK' INTERSECT SELECT dest FROM flights WHERE origin = 'LGA'
        EXCEPT SELECT faa FROM airports WHERE lat < 40"""),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """How one question was answered."""

    question: Question
    cluster_seconds: float
    plain_seconds: float
    difference: str
    """empty: the same rows; else what differs, in one line"""


Rows = list[tuple[object, ...]]


def ask(connection: Connection, question: Question) -> Rows:
    """All rows of the answer."""
    return connection.execute(question.sql.encode()).fetchall()


def difference(cluster: Rows | psycopg.Error, plain: Rows) -> str:
    """What differs between two answers, in one line; empty if nothing does."""
    if isinstance(cluster, psycopg.Error):
        return f"{cluster.sqlstate}: {str(cluster).strip().splitlines()[0]}"
    ours, theirs = Counter(cluster), Counter(plain)
    if ours == theirs:
        return ""
    missing, extra = list((theirs - ours).elements()), list((ours - theirs).elements())
    example = f"missing {missing[0]}" if missing else f"not expected {extra[0]}"
    return f"{len(missing)} rows missing, {len(extra)} too many; {example}"
