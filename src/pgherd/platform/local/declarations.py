"""Declarations on disk: one ``cluster.yaml`` per cluster, replaced as a whole.

It is the declaration as `pgherd up` takes it, with one more section ``pgherd`` for what was asked for by other
commands. Every change raises the generation. Writers hold the home's lock; readers need none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgherd.errors import BadInput, NoSuchCluster
from pgherd.model import spec, spec_yaml
from pgherd.model.spec import PostgresCluster
from pgherd.platform.base import Declaration
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout

_SECTION = "pgherd"
_Version = tuple[int, int, int]


class Declarations:
    """The declarations of one home."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._read_before: dict[str, tuple[_Version, Declaration]] = {}

    def get(self, name: str) -> Declaration:
        """What was asked for.

        :raises NoSuchCluster: there is none of this name
        """
        path = self._layout.declaration(name)
        try:
            version = _version(path)
            known = self._read_before.get(name)
            if known is not None and known[0] == version:
                return known[1]
            with files.explained(f"read {path}"):
                declaration = _parse(path.read_text(encoding="utf-8"), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise self._no_such_cluster(name) from None
        self._read_before[name] = (version, declaration)
        return declaration

    def put(self, cluster: PostgresCluster) -> None:
        """Create a declaration, or change it; no-op if it is the same."""
        name = cluster.metadata.name
        try:
            before = self.get(name)
        except NoSuchCluster:
            before = Declaration(cluster)
        if before.generation == 0 or before.cluster != cluster:
            self._write(name, replace(before, cluster=cluster))

    def set_stopped(self, name: str, stopped: bool) -> None:
        """Change that alone."""
        before = self.get(name)
        if before.stopped != stopped:
            self._write(name, replace(before, stopped=stopped))

    def set_deleting(self, name: str, *, purge: bool) -> None:
        """Change that alone; what was once to be purged stays so."""
        before = self.get(name)
        wanted = replace(before, deleting=True, purge=purge or before.purge)
        if before != wanted:
            self._write(name, wanted)

    def _write(self, name: str, declaration: Declaration) -> None:
        value = {
            **spec.to_mapping(declaration.cluster),
            _SECTION: {
                "generation": declaration.generation + 1,
                "stopped": declaration.stopped,
                "deleting": declaration.deleting,
                "purge": declaration.purge,
            },
        }
        files.write(self._layout.declaration(name), spec_yaml.write(value))

    def _no_such_cluster(self, name: str) -> NoSuchCluster:
        known = ", ".join(self._layout.clusters())
        there = f"there are: {known}" if known else "there is none"
        return NoSuchCluster(f"no cluster {name!r} in {self._layout.home}: {there}")


def _version(path: Path) -> _Version:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _parse(text: str, source: str) -> Declaration:
    value = spec_yaml.read(text, source).value
    asked = value.pop(_SECTION, None) or {} if isinstance(value, dict) else {}
    if not isinstance(asked, dict) or not isinstance(asked.get("generation", 1), int):
        raise BadInput(
            f"{source}: {_SECTION}: must be a mapping with a number as generation: restore it from a copy"
        )
    return Declaration(
        spec.from_mapping(value, source=source, kept=True),
        stopped=bool(asked.get("stopped")),
        deleting=bool(asked.get("deleting")),
        purge=bool(asked.get("purge")),
        generation=int(asked.get("generation", 1)),
    )
