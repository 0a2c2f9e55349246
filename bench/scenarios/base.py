"""What every benchmark gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.support import Pgherd, PlainPostgres

DECLARATION = """\
apiVersion: pgherd.io/v1alpha1
kind: PostgresCluster
metadata: {{name: {name}}}
spec:
  engine: {engine}
  durability: synchronous
  shardCount: {shards}
  coordinator: {{standbys: {standbys}}}
  segments: {{count: {segments}, standbys: {standbys}}}
  expansion: {{parallelMoves: {parallel_moves}}}
"""

SAME_SETTINGS = (
    "shared_buffers",
    "work_mem",
    "maintenance_work_mem",
    "effective_cache_size",
    "max_wal_size",
    "jit",
    "random_page_cost",
    "max_parallel_workers_per_gather",
)
"""what the plain PostgreSQL takes over from a member, so that only the engine differs"""


@dataclass
class Lab:
    """Where benchmarks run: a directory, and a line of text for each thing done."""

    directory: Path
    say: Callable[[str], None]

    @contextmanager
    def cluster(
        self,
        name: str,
        *,
        segments: int = 2,
        standbys: int = 1,
        shards: int = 16,
        engine: str = "fdw",
        parallel_moves: int = 2,
        more: str = "",
    ) -> Iterator[Pgherd]:
        """A fresh cluster for the length of a ``with`` block.

        :param more: further lines of its ``spec``
        """
        pgherd = self.home()
        declaration = self.directory / f"{name}.yaml"
        declaration.write_text(
            DECLARATION.format(
                name=name,
                engine=engine,
                segments=segments,
                standbys=standbys,
                shards=shards,
                parallel_moves=parallel_moves,
            )
            + more
        )
        try:
            pgherd("up", "-f", str(declaration))
            yield pgherd
        finally:
            pgherd.remove_everything()

    def home(self) -> Pgherd:
        """The benchmarks' own home, emptied of what a killed run left behind."""
        pgherd = Pgherd(self.directory / "home")
        pgherd.remove_everything()
        return pgherd

    @contextmanager
    def plain(self, settings: Mapping[str, str] | None = None) -> Iterator[PlainPostgres]:
        """A plain PostgreSQL for the length of a ``with`` block."""
        server = PlainPostgres(self.directory / "plain", dict(settings or {}))
        try:
            yield server.start()
        finally:
            server.remove()


@dataclass
class Result:
    """What a benchmark found: numbers for programs, and rows (what, value) for people."""

    numbers: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, value: Any, what: str, shown: str) -> None:
        """One finding."""
        self.numbers[key] = value
        self.rows.append((what, shown))


Scenario = Callable[[Lab, int], Result]
