"""Backups and schedules as declarations: what is taken, what is refused, and what Kubernetes is told of them."""

from __future__ import annotations

from typing import Any

import pytest

from pgherd.errors import BadInput
from pgherd.model import spec_yaml
from pgherd.model.backup_kinds import PostgresBackup, PostgresBackupSchedule
from pgherd.model.documents import load_all, schedule_from
from pgherd.model.explain import explain, fields_of
from pgherd.model.spec_schema import declaration_schema
from pgherd.platform.kubernetes.crd import backup_crd, schedule_crd
from tests.unit.test_explain import paths
from tests.unit.test_spec import HEADER
from tests.unit.test_spec_schema import walk

SCHEDULE = """\
apiVersion: pgherd.io/v1alpha1
kind: PostgresBackupSchedule
metadata: {name: nightly}
spec:
  cluster: shop
  cron: 0 2 * * *
"""
BACKUP = """\
apiVersion: pgherd.io/v1alpha1
kind: PostgresBackup
metadata: {name: before-release}
spec: {cluster: shop}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load_all(text, source="all.yaml")
    return list(caught.value.problems)


def test_a_file_may_declare_a_cluster_its_schedules_and_backups_in_any_order() -> None:
    found = load_all(f"{BACKUP}---\n{SCHEDULE}---\n{HEADER}", source="all.yaml")
    assert [each.kind for each in found] == ["PostgresCluster", "PostgresBackupSchedule", "PostgresBackup"]
    assert [each.metadata.name for each in found] == ["shop", "nightly", "before-release"]


def test_a_schedule_reads_back_as_it_was() -> None:
    text = (
        SCHEDULE
        + "  type: incremental\n  suspend: true\n  drill: {every: 12h, keep: true, tables: [a, s.b]}\n"
    )
    (made,) = load_all(text, source="all.yaml")
    assert isinstance(made, PostgresBackupSchedule)
    assert made.spec.drill is not None
    assert made.spec.drill.tables == ("a", "s.b")
    raw = made.model_dump(mode="json", by_alias=True, exclude_none=True)
    again = spec_yaml.read(spec_yaml.write(raw), "again").value
    assert schedule_from(again, source="again") == made


def test_what_is_left_out_has_its_default() -> None:
    schedule, backup = load_all(f"{SCHEDULE}---\n{BACKUP}", source="all.yaml")
    assert isinstance(schedule, PostgresBackupSchedule)
    assert isinstance(backup, PostgresBackup)
    assert (schedule.spec.type, schedule.spec.suspend, schedule.spec.drill) == ("full", False, None)
    assert (backup.spec.cluster, backup.spec.type) == ("shop", "full")


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 0 30 2 *", "spec.cron: never comes: no such day in that month, got '0 0 30 2 *' (all.yaml:6)"),
        ("0 0 31 4,6 *", "spec.cron: never comes: no such day in that month"),
        ("0 2 * *", "spec.cron: must be a cron line of five fields"),
        ("0 0 2 * * *", "spec.cron: must be a cron line of five fields"),
        ("'@daily'", "spec.cron: must be a cron line of five fields"),
        ("61 2 * * *", "spec.cron: must be a cron line such as 0 2 * * * (wrong minute)"),
        ("0 2 * * fry", "spec.cron: must be a cron line such as 0 2 * * * (wrong day-of-week)"),
        ("0 0 30 2 fry", "spec.cron: must be a cron line such as 0 2 * * * (wrong day-of-week)"),
        ("0 0 99 2 *", "spec.cron: must be a cron line such as 0 2 * * * (wrong day-of-month)"),
        ("0 0 L/2-3 * *", "spec.cron: must be a cron line such as 0 2 * * *"),
    ],
)
def test_a_cron_line_that_is_none_or_never_comes_is_refused(cron: str, expected: str) -> None:
    found = problems(SCHEDULE.replace("0 2 * * *", cron))
    assert len(found) == 1
    assert found[0].startswith(expected), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SCHEDULE.replace("  cluster: shop\n", ""), ["spec.cluster: is required (all.yaml:4)"]),
        (SCHEDULE + "  crone: 1\n", ["spec.crone: unknown field; did you mean cron? (all.yaml:7)"]),
        (
            SCHEDULE + "  type: huge\n",
            ["spec.type: must be one of differential, full, incremental, got 'huge' (all.yaml:7)"],
        ),
        (
            SCHEDULE + "  drill: {every: 1s}\n",
            ["spec.drill.every: must be between 1m and 365d, got '1s' (all.yaml:7)"],
        ),
        (
            SCHEDULE.replace("PostgresBackupSchedule", "PostgresBackupSchedul"),
            [
                "kind: must be one of PostgresCluster, PostgresBackupSchedule, PostgresBackup, got"
                " 'PostgresBackupSchedul'; did you mean PostgresBackupSchedule? (all.yaml:2)"
            ],
        ),
        (
            f"{SCHEDULE}---\n{SCHEDULE}",
            ["metadata.name: PostgresBackupSchedule nightly is declared twice (all.yaml:10)"],
        ),
        (
            f"{BACKUP}  type: full\n".replace("before-release", "Before_"),
            None,
        ),
        (f"{HEADER}kind: [1]\n", None),
    ],
)
def test_a_document_with_anything_wrong_is_refused_with_path_and_line(
    text: str, expected: list[str] | None
) -> None:
    found = problems(text)
    assert expected is None or found == expected


def test_problems_of_all_documents_are_told_at_once() -> None:
    found = problems(SCHEDULE.replace("shop", "1") + "---\n" + HEADER + "spec: {segments: {count: 0}}\n")
    assert len(found) == 2


@pytest.mark.parametrize("model", [PostgresBackup, PostgresBackupSchedule])
def test_every_field_is_explained(model: Any) -> None:
    kind = model.__name__
    for path in paths(declaration_schema(model)):
        text = explain(f"{kind}.{path}")
        assert text.startswith(f"FIELD: {kind}.{path} <"), path
        assert len(text.splitlines()) >= 3, path
    assert "  spec <object>  (required)" in explain(kind.lower())


def test_explain_names_the_nearest_field_of_the_kind() -> None:
    with pytest.raises(BadInput) as caught:
        explain("PostgresBackupSchedule.spec.crn")
    assert str(caught.value) == "spec.crn: unknown field; did you mean cron?"


@pytest.mark.parametrize("made", [backup_crd(), schedule_crd()])
def test_the_definitions_for_kubernetes_are_structural(made: dict[str, Any]) -> None:
    schema = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, inner in walk(schema):
        assert not {"$ref", "anyOf", "allOf", "oneOf", "title", "const", "$defs"} & set(inner), path
        assert "type" in inner, path
    for path, inner in walk(schema["properties"]["spec"]):
        assert path.endswith("[]") or inner.get("description"), path
    assert "cluster" in schema["properties"]["spec"]["required"]
    assert "cluster" in fields_of(schema["properties"]["spec"])
    assert {rule["fieldPath"] for rule in schema["x-kubernetes-validations"]} >= {".spec.cluster"}
