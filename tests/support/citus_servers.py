"""A herd of plain servers with Citus, started in seconds: no Patroni, no standbys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgherd.engine.citus.engine import CitusEngine
from pgherd.engine.citus.session import superuser
from pgherd.postgres.connections import Databases
from tests.support import servers
from tests.support.citus import bin_dir
from tests.support.servers import Herd


class _Plain(CitusEngine):
    """What Patroni's configuration adds, is among the parameters here."""

    def __init__(self, databases: Databases) -> None:
        super().__init__(databases)

    def parameters(self, group: int, shard_count: int) -> dict[str, str | int | bool]:
        return {**super().parameters(group, shard_count), "shared_preload_libraries": "citus"}


class CitusHerd(Herd):
    """Its coordinator and segments are nodes of one Citus."""

    def __init__(self, directory: Path, segments: int = 2) -> None:
        super().__init__(directory, segments, shard_count=4)
        self.engine = _Plain(self.databases)  # type: ignore[assignment]

    def up(self) -> CitusHerd:
        for group in range(self._first + 1):
            self._new_server(group)
        self.engine.initialise_coordinator(self.shard_count)
        with superuser(self.databases) as desk:
            desk.execute("SELECT citus_set_coordinator_host('127.0.0.1', %s)", [self.servers[0].port])
        for group in range(1, self._first + 1):
            self.engine.initialise_segment(group)
            self.engine.admit(group, self.addresses()[group])
        return self

    def _template(self) -> Path:
        # Of another PostgreSQL than the other herds' one.
        return self.directory / "template"


@contextmanager
def running_citus_herd(directory: Path) -> Iterator[CitusHerd]:
    """A herd for the length of a ``with`` block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "binaries", bin_dir)
        herd = CitusHerd(directory)
        try:
            yield herd.up()
        finally:
            herd.down()
