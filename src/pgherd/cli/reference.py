"""The reference pages, written from what the program itself says: ``python -m pgherd.cli.reference docs/reference``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from pgherd.cli.main import app
from pgherd.model import explain
from pgherd.model.documents import KINDS
from pgherd.model.spec_models import KIND
from pgherd.model.spec_parameters import FLOORS, OWNED
from pgherd.model.spec_schema import IMMUTABLE, Schema, declaration_schema
from pgherd.patroni.config import BASE_PARAMETERS, NETWORK_PARAMETERS

_WIDTH = 100
_EXAMPLE = """\
apiVersion: pgherd.io/v1alpha1
kind: PostgresCluster
metadata: {name: shop}
spec:
  segments:
    count: 2
"""


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {"spec.md": "\n".join(_spec_page()) + "\n", "cli.md": "\n".join(_cli_page()) + "\n"}


def _spec_page() -> Iterator[str]:
    yield "# The declaration"
    yield ""
    yield "One YAML (or JSON) file says what a cluster should be. `pgherd up -f FILE` makes it so, and a changed file"
    yield "changes the cluster. `pgherd explain FIELD` shows what stands here. The smallest useful file:"
    yield from ("", "```yaml", _EXAMPLE.rstrip(), "```", "")
    yield "A file with anything wrong in it is refused as a whole, with every problem, path and line; exit code 2."
    yield ""
    yield "## Fields"
    yield from ("", "| Field | Type | Default | Bounds | Meaning |", "|---|---|---|---|---|")
    yield from _rows(declaration_schema(), "")
    yield from ("", "## What can't be changed", "")
    yield "Fixed once a cluster exists, besides its name; storage sizes may grow, never shrink:"
    yield ""
    yield from (f"* `spec.{'.'.join(path)}`" for path in IMMUTABLE)
    yield from ("", "## Parameters that belong to pgherd", "")
    yield "`spec.postgres.parameters` takes every PostgreSQL parameter but these:"
    yield from ("", "| Parameter | Why |", "|---|---|")
    yield from (f"| `{name}` | {reason} |" for name, reason in sorted(OWNED.items()))
    yield "| `wal_level` | must stay `logical`: moves of shards replicate logically |"
    yield "| `fsync`, `full_page_writes` | must stay on: acknowledged commits would not survive a crash |"
    yield "| `synchronous_commit` | `on` or `remote_apply`, unless `spec.durability` is `asynchronous` |"
    yield from (
        f"| `{name}` | at least {floor}: standbys and moves of shards use them |"
        for name, floor in FLOORS.items()
    )
    yield from _parameters_set()
    yield from _other_kinds()


def _parameters_set() -> Iterator[str]:
    yield from ("", "## Parameters that pgherd sets", "")
    yield "What is set where `spec.postgres.parameters` says nothing else. The engine raises some of these where moves"
    yield "of shards need more (slots, senders, workers, locks), and citus has settings of its own; `SHOW` tells what"
    yield "is in force at a member."
    yield from ("", "| Parameter | Value |", "|---|---|")
    yield from (f"| `{name}` | `{value}` |" for name, value in BASE_PARAMETERS.items())
    yield from (f"| `{name}` | `{value}` (Kubernetes only) |" for name, value in NETWORK_PARAMETERS.items())
    yield "| `shared_buffers`, `effective_cache_size` | 1/4 and 3/4 of `resources.memory` |"
    yield "| `maintenance_work_mem`, `work_mem` | 1/16 and 1/400 of it, at most 2 GiB and 256 MiB |"
    yield ""
    yield "New databases have data checksums, encoding UTF8, and one collation that sorts alike everywhere: `C.UTF-8`."


def _other_kinds() -> Iterator[str]:
    yield from ("", "## Other kinds", "")
    yield "Documents of these kinds may stand in the same file, or in files of their own; `pgherd explain KIND.FIELD`"
    yield "shows what stands here."
    for kind, model in KINDS.items():
        if kind != KIND:
            yield from ("", f"### {kind}", "", model.__doc__ or "", "")
            yield from ("| Field | Type | Default | Bounds | Meaning |", "|---|---|---|---|---|")
            yield from _rows(declaration_schema(model), "")


def _rows(schema: Schema, prefix: str) -> Iterator[str]:
    required = explain.schema_of_fields(schema).get("required", [])
    for name, field in explain.fields_of(schema).items():
        path = f"{prefix}{name}"
        default = "required" if name in required else code(explain.default_of(field))
        cells = [
            f"`{path}`",
            explain.type_of(field),
            default,
            explain.bounds_of(field),
            field.get("description", ""),
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield from _rows(field, f"{path}[]." if "items" in field else f"{path}.")


def code(text: str) -> str:
    """The text as code, if there is any."""
    return f"`{text}`" if text else ""


def _cli_page() -> Iterator[str]:
    yield "# The command line"
    yield ""
    yield "Exit codes: 0 done; 1 it failed, one line says what and what to do next; 2 bad input; 130 interrupted, a"
    yield "line says what goes on in the background. Results go to standard output, everything said on the way to"
    yield "standard error. Global options may stand anywhere before `--`. `PGHERD_DEBUG=1` shows where an error came"
    yield "from."
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="pgherd", terminal_width=_WIDTH, **root.context_settings)
    yield from ("", "## pgherd", "", "```text", root.get_help(context), "```")
    for name in root.list_commands(context):  # type: ignore[attr-defined]
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        below = typer.Context(command, info_name=name, parent=context, terminal_width=_WIDTH)
        yield from ("", f"## pgherd {name}", "", "```text", command.get_help(below), "```")


def write(folder: Path) -> None:
    """Write all pages into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))
