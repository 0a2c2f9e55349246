"""Files that declare several things: documents of all kinds, checked together before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pgherd.errors import BadInput
from pgherd.model import spec, spec_yaml
from pgherd.model.backup_kinds import BACKUP, SCHEDULE, PostgresBackup, PostgresBackupSchedule
from pgherd.model.spec_models import KIND, PostgresCluster
from pgherd.model.spec_problems import nearest, shown

Declared = PostgresCluster | PostgresBackup | PostgresBackupSchedule

KINDS: Mapping[str, type[BaseModel]] = {
    KIND: PostgresCluster,
    SCHEDULE: PostgresBackupSchedule,
    BACKUP: PostgresBackup,
}
"""in the order in which they are made"""


def load_all(text: str, *, source: str, platform: str = "local") -> list[Declared]:
    """Read a file of one or more declarations (YAML or JSON): clusters first, then what refers to them.

    :param source: what to call the text in messages, for example its file name
    :raises BadInput: with every problem of every document
    """
    found: list[Declared] = []
    problems: list[str] = []
    for document in spec_yaml.read_all(text, source):
        declared, wrong = _read(document, source, platform)
        problems += wrong
        if declared is None:
            continue
        if any(_identity(each) == _identity(declared) for each in found):
            line = document.line(("metadata", "name"))
            problems.append(
                f"metadata.name: {declared.kind} {declared.metadata.name} is declared twice ({source}:{line})"
            )
        found.append(declared)
    if problems:
        raise BadInput(*problems)
    return sorted(found, key=lambda each: list(KINDS).index(each.kind))


def _identity(declared: Declared) -> tuple[str, str]:
    return declared.kind, declared.metadata.name


def _read(document: spec_yaml.Document, source: str, platform: str) -> tuple[Declared | None, list[str]]:
    kind = document.value.get("kind", KIND) if isinstance(document.value, Mapping) else KIND
    if not isinstance(kind, str) or kind not in KINDS:
        near = nearest(str(kind), list(KINDS))
        hint = f"; did you mean {near}?" if near else ""
        problem = (("kind",), f"must be one of {', '.join(KINDS)}, got {shown(kind)}{hint}")
        return None, spec.described([problem], document, source)
    model: Any = KINDS[kind]
    declared, found = spec.validate(document.value, model)
    if declared is None:
        return None, spec.described(found, document, source)
    if isinstance(declared, PostgresCluster):
        return spec.with_platform_defaults(declared, platform), []
    return declared, []


def schedule_from(value: object, *, source: str) -> PostgresBackupSchedule:
    """A schedule from plain data.

    :raises BadInput: with every problem, each with its path
    """
    declared, problems = spec.validate(value, PostgresBackupSchedule)
    if declared is None:
        raise BadInput(*(f"{spec.dotted(path) or source}: {what}" for path, what in problems))
    return declared
