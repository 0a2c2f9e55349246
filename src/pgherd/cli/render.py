"""The status and other answers as tables for people. Pure: from plain data to what rich prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgherd.reconcile.drill_words import unchecked

_PHASE_STYLES = {
    "Running": "bold green",
    "Degraded": "bold yellow",
    "Failed": "bold red",
    "Stopped": "dim",
}
_WELL = {"running", "streaming"}


def size(count: float | None) -> str:
    """Bytes for people: ``117.7 MiB``; ``-`` for what is not known."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 10 s``, ``2 h 5 min``"""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(*headers: str) -> Table:
    """An empty table without lines; a header that begins with ``>`` stands over numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for header in headers:
        made.add_column(
            header.lstrip(">"), justify="right" if header.startswith(">") else "left", overflow="fold"
        )
    return made


def phase(name: str) -> Text:
    """A phase in its colour."""
    return Text(name, style=_PHASE_STYLES.get(name, "bold cyan"))


def status(now: Mapping[str, Any]) -> RenderableType:
    """All of a cluster's status."""
    parts: list[RenderableType] = [_headline(now), Text(), members(now)]
    if operation := now.get("operation"):
        parts += [Text(), Text("operation: " + operation_line(operation))]
    if last := now.get("lastOperation"):
        parts += [Text(), Text("last operation: " + last_operation_line(last))]
    for repair in now.get("repairs") or ():
        parts += [Text(), Text(repair_line(repair))]
    problems = list(_problems(now))
    if problems:
        parts += [Text(), Text("problems:", style="bold")]
        parts += [Text(f"  {problem}", style="yellow") for problem in problems]
    return Group(*parts)


def repair_line(repair: Mapping[str, Any]) -> str:
    """``repair of segment-1, done: from the repository: all of its log is archived; ...``"""
    line = f"repair of {repair['group']}, {repair['phase']}"
    line += f" (rung: {repair['rung']})" if repair.get("rung") else ""
    told = [repair.get("reason"), *(repair.get("done") or ()), *(repair.get("findings") or ())]
    if repair.get("kept"):
        told.append(f"what was left of it is kept in {repair['kept']}")
    if repair.get("refused") and repair["phase"] != "refused":
        told.append(f"what else is asked for is refused: {repair['refused']['reason']}")
    return ": ".join(filter(None, [line, "; ".join(filter(None, told))]))


def _headline(now: Mapping[str, Any]) -> Text:
    line = Text(f"{now['name']}  ")
    line.append_text(phase(now["phase"]))
    line.append(f"  engine {now.get('engine') or '-'}")
    message = _condition(now, "Ready").get("message", "")
    if message and now["phase"] not in ("Stopped", "Deleting"):
        line.append(f"  {message}")
    return line


def _condition(now: Mapping[str, Any], kind: str) -> Mapping[str, str]:
    return next((c for c in now.get("conditions", ()) if c.get("type") == kind), {})


def _problems(now: Mapping[str, Any]) -> Iterator[str]:
    degraded = _condition(now, "Degraded")
    if degraded.get("status") == "True":
        yield from degraded.get("message", "").split("; ")
    for kind in ("EngineUnfit", "AccessRulesUnread"):
        yield from filter(None, _condition(now, kind).get("message", "").split("; "))
    for kind in ("BackupsHealthy", "RestoreProven"):
        condition = _condition(now, kind)
        # That the last drill failed is said by the first already.
        if condition.get("status") == "False" and condition.get("reason") != "DrillFailed":
            yield f"{kind} is False: {condition.get('message', '')}"
    yield from now.get("errors") or ()


def members(now: Mapping[str, Any]) -> Table:
    """One row for each member; what belongs to the group stands in its first row."""
    made = table("GROUP", "MEMBER", "ROLE", "STATE", ">LAG", "ADDRESS", ">SHARDS", ">SIZE")
    for group in now.get("groups", ()):
        first = True
        for member in group["members"]:
            holds = group["id"] != 0 and first
            made.add_row(
                group["name"] if first else "",
                member["name"],
                _role(member),
                _state(member),
                size(member.get("lagBytes")) if member.get("role") != "primary" else "",
                f"{member['host']}:{member['port']}" if member.get("port") else "-",
                str("-" if group.get("shards") is None else group["shards"]) if holds else "",
                size(group.get("bytes")) if holds else "",
            )
            first = False
    return made


def _role(member: Mapping[str, Any]) -> Text:
    role = str(member.get("role") or "unknown")
    return Text("sync standby" if member.get("sync") else role, style="bold" if role == "primary" else "")


def _state(member: Mapping[str, Any]) -> Text:
    state = str(member.get("state") or "unknown")
    text = Text(state, style="green" if state in _WELL else "yellow")
    if member.get("pendingRestart"):
        text.append(" (restart pending)", style="yellow")
    return text


def operation_line(operation: Mapping[str, Any]) -> str:
    """``expand, moving: 3 of 16 moves, 12.0 MiB of 50.0 MiB, about 12 s left: moving 1/5 to segment-3``"""
    facts = []
    if operation.get("movesTotal"):
        facts.append(
            f"{operation.get('movesDone', 0)} of {operation['movesTotal']} {operation.get('unit', 'moves')}"
        )
    if operation.get("bytesTotal"):
        facts.append(f"{size(operation.get('bytesDone', 0))} of {size(operation['bytesTotal'])}")
    if operation.get("bytesPerSecond"):
        facts.append(f"{operation['bytesPerSecond'] / 1e6:.1f} MB/s")
    if operation.get("etaSeconds") is not None:
        facts.append(f"about {duration(operation['etaSeconds'])} left")
    text = f"{operation.get('kind')}, {operation.get('phase')}"
    text += ": " + ", ".join(facts) if facts else ""
    return text + (f"; {operation['message']}" if operation.get("message") else "")


def last_operation_line(last: Mapping[str, Any]) -> str:
    """``expand, done: 16 of 16 moves``"""
    line = operation_line({**last, "etaSeconds": None, "message": ""})
    reason = last.get("error") or last.get("message")
    return f"{line}; {reason}" if reason else line


def clusters(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each cluster."""
    made = table("NAME", "PHASE", "ENGINE", ">SEGMENTS", "MEMBERS", ">SIZE", "OPERATION")
    for row in rows:
        everyone = [member for group in row.get("groups", ()) for member in group["members"]]
        well = sum(member.get("state") in _WELL for member in everyone)
        made.add_row(
            row["name"],
            phase(row["phase"]),
            row.get("engine") or "-",
            str(sum(group["id"] != 0 for group in row.get("groups", ()))),
            f"{well}/{len(everyone)} running",
            _total_size(row.get("groups", ())),
            operation_line(row["operation"]) if row.get("operation") else "-",
        )
    return made


def _total_size(groups: Sequence[Mapping[str, Any]]) -> str:
    sizes = [group.get("bytes") for group in groups]
    return size(None if None in sizes else sum(filter(None, sizes)))


def moves(plan: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each move, in order."""
    made = table(">#", "SHARD GROUP", "FROM", "TO", ">SIZE", "TABLES")
    for number, move in enumerate(plan, start=1):
        shard_group = f"{move['colocation']}/{move['index']}"
        tables = ", ".join(move.get("tables") or ())
        made.add_row(
            str(number), shard_group, str(move["source"]), str(move["target"]), size(move["bytes"]), tables
        )
    return made


def backups(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each backup, oldest first."""
    made = table("BACKUP", "TYPE", "PHASE", ">SIZE", "FINISHED", "RESTORE POINT")
    for row in rows:
        made.add_row(
            row["id"],
            row["type"],
            row["phase"] + (f": {row['error']}" if row.get("error") else ""),
            size(row["bytes"] or None),
            row.get("finishedAt") or "-",
            row.get("restorePoint") or "-",
        )
    return made


def restore_points(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each restore point, oldest first."""
    made = table("RESTORE POINT", "TIME", "STATE", ">GROUPS", ">PLACEMENT", ">WRITERS HELD")
    for row in rows:
        held = "-" if row.get("heldMs") is None else f"{row['heldMs']:.1f} ms"
        made.add_row(row["name"], row["time"], row["state"], str(row["groups"]), str(row["placement"]), held)
    return made


def drills(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each drill, oldest first."""
    made = table("FINISHED", "RESTORE POINT", ">SECONDS", ">ROWS COMPARED", "RESULT")
    for row in rows:
        compared = row.get("compared") or {}
        made.add_row(
            row["finishedAt"],
            row.get("restorePoint") or "-",
            f"{row['seconds']:.1f}",
            f"{compared['rows']:,}" if compared else "-",
            f"sound{unchecked(row)}" if row["passed"] else "; ".join(row["problems"]),
        )
    return made


def schedules(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each schedule."""
    made = table("SCHEDULE", "CLUSTER", "CRON (UTC)", "TYPE", "NEXT", "LAST BACKUP", "DRILL", "NOTE")
    for row in rows:
        drill = row.get("drill")
        due = "" if not drill else f"every {drill['every']}" + (", overdue" if drill["overdue"] else "")
        made.add_row(
            row["name"],
            row["cluster"],
            row["cron"],
            row["type"],
            "suspended" if row["suspend"] else row.get("nextAt") or "-",
            row.get("lastBackup") or "-",
            due or "-",
            row.get("problem") or (f"skipped {row['skipped']}" if row.get("skipped") else ""),
        )
    return made


def findings(found: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each finding, with what to do about it."""
    made = table("GROUP", "CHECK", "FOUND", "WHAT TO DO")
    for finding in found:
        made.add_row(finding["group"], finding["check"], finding["message"], finding["fix"])
    return made
