"""A cluster of pgherd's beside one of the same shape made by hand: coordinator, two workers, Citus, the same memory.

Both are asked in turn; each ratio is the median of those of the pairs (above 1: the hand-made one was faster). Nodes of
the same shape ask one another for passwords, too. A second hand-made one trusts whoever comes: Citus opens connections
for a statement over many shards and closes them afterwards, so what proving oneself costs is part of such a statement.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import psycopg

from bench.scenarios.base import SAME_SETTINGS, Lab, Result
from bench.support import Connection, RunError, percentile, timed
from pgherd.platform.local import binaries, runas

NAME = "ratio"
SCALE, CLIENTS, SECONDS, ROWS = 10, 8, 8, 300_000
REPEATS = 25
"""a query takes some tens of milliseconds: of one alone the machine's other work would make the ratio"""
NODES = 3
PASSWORD = "by-hand-4f1c9a7e2b"
TABLES = {
    "pgbench_accounts": "aid",
    "pgbench_branches": "bid",
    "pgbench_tellers": "tid",
    "pgbench_history": "aid",
}
SALES = """
CREATE TABLE sale (customer int, id bigint, amount int NOT NULL, kind int NOT NULL, note text NOT NULL,
                   PRIMARY KEY (customer, id));
SELECT create_distributed_table('sale', 'customer');
"""
QUERIES = {
    "count": "SELECT count(*) FROM sale",
    "group_by": "SELECT kind, count(*), avg(amount) FROM sale GROUP BY kind",
}
Work = Callable[[str], float]
"""asked of the cluster at this address; gives seconds"""

KEY_READ = f"\\set k random(1, {SCALE * 100_000})\nSELECT abalance FROM pgbench_accounts WHERE aid = :k;\n"


def run(lab: Lab, runs: int) -> Result:
    """Load both, then ask both ``runs`` times."""
    result = Result()
    with lab.cluster(NAME, engine="citus", standbys=0, shards=8) as pgherd:
        ours = pgherd.dsn(NAME)
        with closing(psycopg.connect(ours, autocommit=True)) as connection:
            rows = connection.execute(
                "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY (%s)",
                (list(SAME_SETTINGS),),
            ).fetchall()
        settings = {str(name): str(value) for name, value in rows}
        with (
            _hand_made(lab.directory / "hand", settings, "scram-sha-256") as theirs,
            _hand_made(lab.directory / "trusting", settings, "trust") as trusting,
        ):
            for dsn in (ours, theirs, trusting):
                _prepare(dsn)
            for key, (what, work) in _works(lab).items():
                _compare(lab, result, key, what, work, (ours, theirs, trusting), runs)
    return result


def _works(lab: Lab) -> dict[str, tuple[str, Work]]:
    """What is asked of both: each returns the seconds of one unit of work."""
    script = lab.directory / "key_read.pgbench"
    script.write_text(KEY_READ)
    works: dict[str, tuple[str, Work]] = {
        "tpc_b": (f"pgbench TPC-B-like, {CLIENTS} clients", lambda dsn: _pgbench(dsn, "-b", "tpcb-like")),
        "key_read": (f"one row read by key, {CLIENTS} clients", lambda dsn: _pgbench(dsn, "-f", str(script))),
        "copy": (f"COPY of {ROWS:,} rows", lambda dsn: _timed(dsn, _copy)),
    }
    for key, query in QUERIES.items():
        works[key] = (query, partial(_timed, work=partial(_ask, query=query), repeats=REPEATS))
    return works


def _compare(
    lab: Lab, result: Result, key: str, what: str, work: Work, dsns: tuple[str, str, str], runs: int
) -> None:
    rounds = [[work(dsn) for dsn in dsns] for _ in range(runs + 1)][1:]  # the first warms the caches
    ours, theirs, trusting = (percentile([each[place] for each in rounds], 50) * 1000 for place in range(3))
    ratios, to_trusting = ([each[0] / each[place] for each in rounds] for place in (1, 2))
    numbers = {
        "ratio": percentile(ratios, 50),
        "ratios": [round(each, 3) for each in ratios],
        "ratio_to_trusting": percentile(to_trusting, 50),
        "ms": ours,
        "by_hand_ms": theirs,
        "trusting_ms": trusting,
    }
    text = (
        f"{ours:.2f} ms, by hand {theirs:.2f} ms: ratio {numbers['ratio']:.3f}; to one whose nodes trust one another "
        f"({trusting:.2f} ms) {numbers['ratio_to_trusting']:.3f}"
    )
    result.add(key, numbers, what, text)
    lab.say(" ".join(result.rows[-1]))


def _prepare(dsn: str) -> None:
    _run("pgbench", "-q", "-i", "-s", str(SCALE), "-I", "dtp", dsn)
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        for table, key in TABLES.items():
            connection.execute("SELECT create_distributed_table(%s, %s)", (table, key))
        connection.execute(SALES.encode())
    _run("pgbench", "-q", "-i", "-s", str(SCALE), "-I", "gv", dsn)


def _pgbench(dsn: str, *options: str) -> float:
    """Seconds from one transaction to the next."""
    out = _run("pgbench", "-n", "-c", str(CLIENTS), "-j", "2", "-T", str(SECONDS), *options, dsn)
    for line in out.splitlines():
        if line.startswith("tps = "):
            return 1 / float(line.split()[2])
    raise RunError("pgbench told no rate")


def _timed(dsn: str, work: Callable[[Connection], object], repeats: int = 1) -> float:
    """The median's seconds."""
    with closing(psycopg.connect(dsn, autocommit=True)) as connection:
        connection.execute("SELECT count(*) FROM pgbench_branches")  # Citus reads its metadata once a session
        return percentile([timed(lambda: work(connection))[0] for _ in range(repeats)], 50)


def _ask(connection: Connection, query: str) -> object:
    return connection.execute(query.encode()).fetchall()


def _copy(connection: Connection) -> None:
    connection.execute("TRUNCATE sale")
    with connection.cursor().copy("COPY sale FROM STDIN") as copy:
        for block in _cargo():
            copy.write(block)


@cache
def _cargo() -> list[str]:
    """Blocks of COPY data, made before any clock runs."""
    lines = [f"{n * 7919 % 50_000 + 1}\t{n}\t{n % 997}\t{n % 997}\tnote of sale {n}\n" for n in range(ROWS)]
    return ["".join(lines[at : at + 1000]) for at in range(0, ROWS, 1000)]


# the one made by hand


@contextmanager
def _hand_made(directory: Path, settings: dict[str, str], authentication: str) -> Iterator[str]:
    """Three servers on this machine; gives the coordinator's address.

    :param authentication: of whoever connects, nodes too, as initdb takes it
    """
    ports = [_free_port() for _ in range(NODES)]
    folders = [directory / str(number) for number in range(NODES)]
    try:
        for folder, port in zip(folders, ports, strict=True):
            _server(folder, port, settings, authentication)
        for port in ports:
            with closing(psycopg.connect(_dsn(port, "postgres"), autocommit=True)) as connection:
                connection.execute("CREATE DATABASE app")
            with closing(psycopg.connect(_dsn(port), autocommit=True)) as connection:
                connection.execute("CREATE EXTENSION citus")
                connection.execute(
                    "INSERT INTO pg_dist_authinfo VALUES (0, 'postgres', %s)", [f"password={PASSWORD}"]
                )
        with closing(psycopg.connect(_dsn(ports[0]), autocommit=True)) as connection:
            connection.execute("SELECT citus_set_coordinator_host('127.0.0.1', %s)", [ports[0]])
            for port in ports[1:]:
                connection.execute("SELECT citus_add_node('127.0.0.1', %s)", [port])
        yield _dsn(ports[0])
    finally:
        for folder in folders:
            with suppress(RunError):
                _as_server("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(folder))
        shutil.rmtree(directory, ignore_errors=True)


def _server(folder: Path, port: int, settings: dict[str, str], authentication: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    password = folder.parent / "password"
    password.write_text(PASSWORD)
    _as_server(
        "initdb", "-D", str(folder), "-U", "postgres", "-A", authentication, "-E", "UTF8", "--locale=C.UTF-8",
        "--no-instructions", f"--pwfile={password}",
    )  # fmt: skip
    wanted = {
        **settings,
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "shared_preload_libraries": "citus",
        "max_connections": "200",
        "max_prepared_transactions": "400",
        "wal_level": "logical",
        "citus.shard_count": "8",
        "citus.node_conninfo": "sslmode=prefer",
    }
    with (folder / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in wanted.items())
    _as_server("pg_ctl", "start", "-w", "-D", str(folder), "-l", str(folder.parent / f"{folder.name}.log"))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _dsn(port: int, database: str = "app") -> str:
    return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/{database}"


def _as_server(program: str, *arguments: str) -> str:
    return _run(program, *arguments, prefix=runas.prefix())


def _run(program: str, *arguments: str, prefix: list[str] | tuple[str, ...] = ()) -> str:
    command = [*prefix, str(binaries.find().program(program)), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RunError(f"{program} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return done.stdout
