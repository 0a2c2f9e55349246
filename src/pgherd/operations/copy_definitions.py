"""What is defined at the source of a copy, as statements for its destination.

``pg_dump`` writes the coordinator's definitions. What makes a table distributed there (partitions, triggers of ours) is
left out, the destination distributes it in its own way; what our catalogue knows besides (constraints that only shards
have) is added. Roles, rights and large objects are not copied.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from pgherd.engine.base import TableLayout
from pgherd.errors import PgherdError, one_line
from pgherd.model.topology import COORDINATOR
from pgherd.operations.copy_rows import OF_USERS
from pgherd.operations.statements import statements
from pgherd.postgres.connections import Connection, Databases

_SCHEMAS = f"""
SELECT nspname::text FROM pg_namespace n WHERE {OF_USERS.format("nspname")}
   AND NOT EXISTS (SELECT FROM pg_depend p WHERE p.objid = n.oid AND p.classid = 'pg_namespace'::regclass
                      AND p.deptype = 'e')
 ORDER BY 1
"""
_EXTENSIONS = """
SELECT e.extname::text, n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname NOT IN ('plpgsql', 'postgres_fdw', 'citus', 'citus_columnar') ORDER BY e.oid
"""
_DUMP_SECONDS = 600
_FIRST = "--\n-- Name: "
"""what stands before each definition in a dump; all before the first are settings"""
_END = re.compile(r"\n\\unrestrict \w+\s*\Z")
_OWNER = re.compile(r"^(ALTER .* OWNER TO ).*;$", re.MULTILINE)
_SCHEMA_OF_ALL = re.compile(r"^(CREATE|ALTER|COMMENT ON) SCHEMA public[ ;].*\n", re.MULTILINE)
_TRIGGER = re.compile(
    r"^(CREATE (CONSTRAINT )?TRIGGER .* EXECUTE FUNCTION pgherd\..*|ALTER TABLE .* TRIGGER pgherd_.*)\n",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Definitions:
    """Everything to be made at the destination."""

    extensions: Sequence[tuple[str, str]]
    """name and schema of each"""
    before: str
    """what has to be there before rows: types, functions, tables, views"""
    after: str
    """what is made faster when they are there: indexes, constraints, triggers"""

    @property
    def digest(self) -> str:
        """Tells whether two are the same."""
        return hashlib.sha256(f"{self.extensions}{self.before}{self.after}".encode()).hexdigest()


def read(
    databases: Databases, connection: Connection, tables: Sequence[TableLayout], pg_dump: Path
) -> Definitions:
    """The definitions at the source.

    :raises PgherdError: ``pg_dump`` fails
    """
    schemas = [str(row[0]) for row in connection.execute(_SCHEMAS.encode()).fetchall()]
    extensions = [
        (str(name), str(schema)) for name, schema in connection.execute(_EXTENSIONS.encode()).fetchall()
    ]
    distributed = [table.name for table in tables if table.kind == "distributed"]
    before, after = (
        plain(_dump(databases, schemas, section, pg_dump), distributed)
        for section in ("pre-data", "post-data")
    )
    lacking = "".join(f"{statement};\n" for table in tables for statement in table.constraints)
    return Definitions(extensions, before, lacking + after)


def _dump(databases: Databases, schemas: Sequence[str], section: str, pg_dump: Path) -> str:
    parameters = databases.parameters(COORDINATOR)
    password = parameters.pop("password")
    chosen = [f"--schema={_exactly(schema)}" for schema in schemas]
    conninfo = " ".join(f"{key}='{value}'" for key, value in parameters.items())
    options = ["--no-privileges", f"--section={section}", *chosen, f"--dbname={conninfo}"]
    done = subprocess.run(
        [pg_dump, *options],
        env={**os.environ, "PGPASSWORD": password},
        capture_output=True,
        text=True,
        timeout=_DUMP_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise PgherdError(f"the definitions can't be read: {one_line(done.stderr)}")
    return done.stdout


def _exactly(schema: str) -> str:
    """A pattern for ``pg_dump`` that means this name."""
    return '"' + schema.replace('"', '""') + '"'


def plain(dump: str, distributed: Sequence[str]) -> str:
    """A dump without what only the source's way of distributing needs.

    :param distributed: names of distributed tables, as the dump writes them
    """
    _settings, first, text = dump.partition(_FIRST)
    text = _TRIGGER.sub("", _SCHEMA_OF_ALL.sub("", _END.sub("\n", first + text)))
    text = re.sub(
        r"^CREATE SCHEMA (?!IF NOT EXISTS)", "CREATE SCHEMA IF NOT EXISTS ", text, flags=re.MULTILINE
    )
    for name in map(re.escape, distributed):
        text = re.sub(
            rf"^(CREATE (?:UNLOGGED )?TABLE {name} \(\n.*?^\))\nPARTITION BY HASH \([^\n]*\)",
            r"\1",
            text,
            count=1,
            flags=re.MULTILINE | re.DOTALL,
        )
        text = re.sub(rf"^(CREATE INDEX [^\n]* ON )ONLY (?={name} )", r"\1", text, flags=re.MULTILINE)
        text = re.sub(rf"^ALTER TABLE ONLY (?={name}\s)", "ALTER TABLE ", text, flags=re.MULTILINE)
    return text


def problems(source: Connection, destination: Connection, definitions: Definitions) -> list[str]:
    """What would not come through, one line each."""
    known = {
        row[0] for row in destination.execute("SELECT name::text FROM pg_available_extensions").fetchall()
    }
    found = [
        f"extension {name} is not installed at the destination: install it there, or drop it here"
        for name, _schema in definitions.extensions
        if name not in known
    ]
    foreign = source.execute(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.relkind = 'f' AND {OF_USERS.format('n.nspname')} ORDER BY 1".encode()
    ).fetchall()
    found += [
        f"foreign table {name} can't be copied: drop it here, and make it anew there" for (name,) in foreign
    ]
    triggers = source.execute(
        "SELECT t.tgname::text, t.tgrelid::regclass::text, d.kind FROM pg_trigger t"
        " JOIN pgherd.distributed_table d ON d.relation = t.tgrelid"
        " WHERE NOT t.tgisinternal AND t.tgname NOT LIKE 'pgherd%' ORDER BY 1, 2"
    ).fetchall()
    found += [
        f"trigger {name} on {table} can't be on a {kind} table there: drop it"
        for name, table, kind in triggers
    ]
    keys = source.execute(
        "SELECT k.conname::text, k.conrelid::regclass::text, k.confrelid::regclass::text FROM pg_constraint k"
        " JOIN pgherd.distributed_table d ON d.relation = k.conrelid AND d.kind = 'reference'"
        " WHERE k.contype = 'f' AND (k.confdeltype NOT IN ('a', 'r') OR k.confupdtype NOT IN ('a', 'r'))"
        " AND k.confrelid NOT IN (SELECT relation FROM pgherd.distributed_table) ORDER BY 1, 2"
    ).fetchall()
    found += [
        f"foreign key {name} from the reference table {table} to {other} can't CASCADE or SET there: make {other} a"
        " reference table, too, or make the key anew with NO ACTION"
        for name, table, other in keys
    ]
    if source.execute("SELECT FROM pg_largeobject_metadata LIMIT 1").fetchone() is not None:
        found.append("large objects can't be copied: keep them in bytea columns, or remove them")
    return found


def make(connection: Connection, owner: str, definitions: Definitions, tables: Sequence[TableLayout]) -> None:
    """Make what has to be there before rows, and distribute the tables; within the caller's transaction."""
    for name, schema in definitions.extensions:
        where = sql.Identifier(schema)
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(where))
        statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}")
        connection.execute(statement.format(sql.Identifier(name), where))
    run(connection, owner, definitions.before)
    first: dict[int | None, str] = {}
    for table in tables:
        if table.kind == "reference":
            connection.execute("SELECT create_reference_table(%s)", [table.name])
        elif table.kind == "distributed":
            beside = first.setdefault(table.colocation, table.name)
            connection.execute(
                "SELECT create_distributed_table(%s, %s, colocate_with => %s)",
                [table.name, table.key, "none" if beside == table.name else beside],
            )


def run(connection: Connection, owner: str, script: str) -> None:
    """Run statements within the caller's transaction; what they make belongs to the owner of the database.

    Not as the owner: what belongs to an ordinary role Citus can't make on all nodes within a transaction of that role.
    """
    connection.execute(
        "SET LOCAL check_function_bodies TO off; SET LOCAL citus.multi_shard_modify_mode TO 'sequential';"
        "SET LOCAL search_path TO ''; SET LOCAL client_min_messages TO error"
    )
    name = sql.Identifier(owner).as_string(connection).replace("\\", r"\\")
    for statement in statements(_OWNER.sub(rf"\g<1>{name};", script)):
        connection.execute(statement.encode())
