"""What the demo found out: ``build/demo/report.json`` for programs, a table for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.demo.questions import Comparison
from bench.workload import Audit, Refusal, Stalls


@dataclass(frozen=True)
class Scaling:
    """One change of the number of segments."""

    from_segments: int
    to_segments: int
    seconds: float
    moves: int
    groups: int
    """shard groups of the whole cluster"""
    bytes: int
    optimum_share: float
    stalls: Stalls
    reader_stall_max: float
    errors: int
    """that a reconnect and a retry do not explain"""
    retries: int
    """those that it does"""

    @property
    def moved_share(self) -> float:
        """of all shard groups"""
        return self.moves / self.groups if self.groups else 0.0

    def as_json(self) -> dict[str, Any]:
        """The part of the report about it."""
        return {
            "moves": self.moves,
            "moved_share": round(self.moved_share, 4),
            "optimum_share": round(self.optimum_share, 4),
            "stall_p50_ms": round(self.stalls.p50, 2),
            "stall_p99_ms": round(self.stalls.p99, 2),
            "stall_max_ms": round(self.stalls.max, 2),
            "errors": self.errors,
            "retries": self.retries,
            "seconds": round(self.seconds, 2),
            "bytes": self.bytes,
            "writes": self.stalls.count,
            "normal_ms": round(self.stalls.normal, 2),
            "reader_stall_max_ms": round(self.reader_stall_max, 2),
        }


@dataclass
class Report:
    """Filled act by act; what an act did not reach stays None."""

    ready_s: float | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    failover: dict[str, float] = field(default_factory=dict)
    expand: Scaling | None = None
    shrink: Scaling | None = None
    audit: Audit | None = None
    check_clean: bool | None = None
    unexplained: list[Refusal] = field(default_factory=list)
    retries: int = 0
    seconds: float = 0.0
    stopped_by: str = ""
    """why the demo could not go on"""

    def problems(self) -> list[str]:
        """Everything that makes the demo fail, a line each; empty: all is well."""
        found = [self.stopped_by] if self.stopped_by else []
        found += [f"'{c.question.title}': {c.difference}" for c in self.comparisons if c.difference]
        found += [f"a writer or reader met {refusal.message}" for refusal in self.unexplained[:5]]
        if self.audit is not None and not self.audit.is_clean:
            found.append(
                f"{self.audit.lost} acknowledged rows lost, {self.audit.duplicated} doubled,"
                f" {self.audit.unacknowledged} present without acknowledgement,"
                f" {self.audit.wrong_counters} counters wrong"
            )
        if self.check_clean is False:
            found.append("'pgherd check' found something")
        if not self.stopped_by and None in (self.expand, self.shrink, self.audit, self.check_clean):
            found.append("not every act was played")
        return found

    def as_json(self) -> dict[str, Any]:
        """The report; programs rely on its keys, more may come beside them."""
        return {
            "ok": not self.problems(),
            "queries": {
                "asked": len(self.comparisons),
                "equal": sum(not comparison.difference for comparison in self.comparisons),
            },
            "failover": {
                "segment_s": _rounded(self.failover.get("segment-1")),
                "coordinator_s": _rounded(self.failover.get("coordinator")),
            },
            "expand": self.expand.as_json() if self.expand else None,
            "shrink": self.shrink.as_json() if self.shrink else None,
            "acknowledged": self.audit.acknowledged if self.audit else 0,
            "lost": self.audit.lost if self.audit else None,
            "duplicated": self.audit.duplicated if self.audit else None,
            "audit": asdict(self.audit) if self.audit else None,
            "check_clean": self.check_clean,
            "ready_s": _rounded(self.ready_s),
            "retries": self.retries,
            "seconds": _rounded(self.seconds),
            "problems": self.problems(),
            "answers": [
                {
                    "question": comparison.question.title,
                    "equal": not comparison.difference,
                    "ms": round(comparison.cluster_seconds * 1000, 1),
                    "plain_ms": round(comparison.plain_seconds * 1000, 1),
                }
                for comparison in self.comparisons
            ],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def show(report: Report, console: Console) -> None:
    """The table for people."""
    table = Table(title="The herd on one machine", title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("result", justify="right")
    for what, result in _rows(report):
        table.add_row(what, result)
    console.print(table)
    for problem in report.problems():
        console.print(f"[red]not ok:[/red] {problem}", highlight=False)


def _rows(report: Report) -> list[tuple[str, str]]:
    equal = sum(not comparison.difference for comparison in report.comparisons)
    rows = [
        ("ready after 'pgherd up'", _seconds(report.ready_s)),
        ("answers equal to a plain PostgreSQL's", f"{equal} of {len(report.comparisons)}"),
        ("failover of a segment (kill -9 until served again)", _seconds(report.failover.get("segment-1"))),
        ("failover of the coordinator", _seconds(report.failover.get("coordinator"))),
    ]
    for scaling in (report.expand, report.shrink):
        if scaling is not None:
            rows += _scaling_rows(scaling)
    if report.audit is not None:
        rows += [
            ("acknowledged rows", f"{report.audit.acknowledged}"),
            ("lost / doubled", f"{report.audit.lost} / {report.audit.duplicated}"),
        ]
    rows.append(("transactions repeated after a reconnect", str(report.retries)))
    rows.append(("unexplained errors", str(len(report.unexplained))))
    rows.append(("'pgherd check'", {True: "clean", False: "findings", None: "-"}[report.check_clean]))
    rows.append(("the whole demo", _seconds(report.seconds)))
    return rows


def _scaling_rows(scaling: Scaling) -> list[tuple[str, str]]:
    name = f"{scaling.from_segments} -> {scaling.to_segments} segments"
    stalls = scaling.stalls
    return [
        (name, f"{scaling.moves} moves, {scaling.bytes / 1e6:.0f} MB in {scaling.seconds:.1f} s"),
        (f"{name}: shard groups moved", f"{scaling.moved_share:.1%} (optimum {scaling.optimum_share:.1%})"),
        (
            f"{name}: writers stalled",
            f"p50 {stalls.p50:.1f}, p99 {stalls.p99:.1f}, max {stalls.max:.0f} ms; {scaling.errors} errors",
        ),
        (f"{name}: reader waited longer by", f"at most {scaling.reader_stall_max:.0f} ms"),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
