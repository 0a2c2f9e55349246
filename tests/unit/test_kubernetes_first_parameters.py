"""What a new cluster declares, on Kubernetes: its pods ask their own PostgreSQL before anything is made."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pgherd.model.topology import Member
from pgherd.platform.kubernetes import first_parameters, names, patroni_files, trials, views
from pgherd.platform.kubernetes.advice import advised
from pgherd.platform.kubernetes.first_parameters import REFUSED
from pgherd.platform.local import binaries, runas
from tests.unit.test_kubernetes_objects import cluster, objects

HERE = binaries.find().directory


RULES = "# ours\nhost all app \\\n  all scram-sha-256\nhost all {} all scram-sha-256\n"
WRONG = r"/^(\n\\"


def script(**parameters: Any) -> str:
    return first_parameters.questions(cluster(postgres={"parameters": parameters}), 17, None)


def rules(user: str, **parameters: Any) -> str:
    """Asks about lines of which the last one is for this user."""
    declared = {"hostBasedAuthentication": RULES.format(user), "parameters": parameters}
    return first_parameters.questions(cluster(postgres=declared), 17, None)


def asked(folder: Path, text: str, program: Path = HERE / "postgres") -> tuple[int, str]:
    """How the script ends with the PostgreSQL that is here, and its last words."""
    for path, here in (
        ("/usr/lib/postgresql/17/bin/postgres", program),
        ("/usr/lib/postgresql/17/bin", HERE),
        ("/dev/termination-log", folder / "log"),
        ("/tmp/first-", folder / "first-"),
    ):
        text = text.replace(path, str(here))
    done = subprocess.run(
        [*runas.prefix(), "/bin/sh", "-c", text],
        capture_output=True,
        text=True,
        check=False,
    )
    log = folder / "log"
    assert done.stdout == (log.read_text() if log.exists() else "")
    return done.returncode, done.stdout


def test_what_postgresql_refuses_of_a_new_cluster_is_one_line_with_paths_and_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = subprocess.run([HERE / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=True)
    monkeypatch.setattr(patroni_files, "library_folder", lambda major: folder.stdout.strip())
    text = script(
        work_mem="nonsense",
        shared_bufers="1GB",
        jit=False,
        search_path='"$user", it\'s',
        shared_preload_libraries="auto_explain, nope",
    )
    code, said = asked(tmp_path, text)
    assert code == REFUSED
    path = "spec.postgres.parameters"
    assert said == (
        f'{path}.work_mem: invalid value for parameter "work_mem": "nonsense"; '
        f'{path}.shared_bufers: unrecognized configuration parameter "shared_bufers"; '
        f"{path}.shared_preload_libraries: there is no library nope here\n"
    )
    assert "declare something else" in advised(said)


def test_what_postgresql_takes_of_a_new_cluster_lets_it_begin(tmp_path: Path) -> None:
    assert asked(tmp_path, script(work_mem="64MB", log_line_prefix="%m it's $(no) `no` \\ @QUESTION@ ")) == (
        0,
        "",
    )


def test_access_rules_that_postgresql_can_not_read_are_told_before_anything_is_made(tmp_path: Path) -> None:
    code, said = asked(tmp_path, rules(WRONG))
    assert code == REFUSED
    path = "spec.postgres.hostBasedAuthentication"
    assert said.startswith(
        f"{path}: line 4 (host all {WRONG} all scram-sha-256) can't be read: invalid regular expression"
    )
    assert said.count("\n") == 1
    assert "line 2" not in said
    assert "declare something else" in advised(said)
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == []


def test_access_rules_that_postgresql_reads_let_a_new_cluster_begin(tmp_path: Path) -> None:
    assert asked(tmp_path, rules("/^app_[0-9]+$")) == (0, "")
    assert asked(tmp_path, rules(WRONG), tmp_path / "none") == (0, ""), "who can't be asked refuses nothing"


def test_what_is_wrong_with_parameters_and_rules_is_told_together(tmp_path: Path) -> None:
    code, said = asked(tmp_path, rules(WRONG, work_mem="nonsense"))
    assert code == REFUSED
    assert said.startswith("spec.postgres.parameters.work_mem: invalid value")
    assert "; spec.postgres.hostBasedAuthentication: line 4" in said


def test_a_pod_that_was_refused_knows_it_at_its_next_start(tmp_path: Path) -> None:
    """Kubernetes starts it over and over, and what it says must not go away each time."""
    refused = asked(tmp_path, rules(WRONG))
    assert asked(tmp_path, rules(WRONG), tmp_path / "none") == refused
    (tmp_path / "log").unlink()
    assert asked(tmp_path, rules("/^app$")) == (0, ""), "something else is declared"


def test_a_postgresql_that_can_not_be_asked_refuses_nothing_of_a_new_cluster(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    for program in (tmp_path / "none", killed):
        assert asked(tmp_path, script(work_mem="nonsense"), program) == (0, "")


def test_nobody_is_asked_of_first_parameters_once_somebody_takes_part_or_without_any() -> None:
    declared = cluster(postgres={"parameters": {"work_mem": "4MB"}})
    assert first_parameters.questions(declared, 17, {"admitted": []})
    assert not first_parameters.questions(declared, 17, {"admitted": [1]})
    assert not script()


def test_first_parameters_make_no_member_outdated_that_runs() -> None:
    without, told = objects(), objects(first="ask")
    template, made = (each["StatefulSet"]["spec"]["template"] for each in (without, told))
    assert views.template_of(template) == views.template_of(made)
    assert template["metadata"]["annotations"] != made["metadata"]["annotations"]
    assert told["ConfigMap"]["data"]["first.sh"] == "ask"
    assert without["ConfigMap"]["data"]["first.sh"] == ""


def refused(asked_of: str, code: int = REFUSED) -> dict[str, Any]:
    """A pod whose container ended and waits for its next start."""
    ended = {"terminated": {"exitCode": code, "message": "spec.postgres.parameters.jit: no"}}
    status = {
        "name": names.CONTAINER,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": ended,
    }
    mark = objects(first="")["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    return {
        "metadata": {
            "name": "shop-segment-1-0",
            "labels": names.labels("shop", 1),
            "annotations": {**mark, **first_parameters.marks(asked_of)},
        },
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"containerStatuses": [status]},
    }


def test_who_started_after_all_was_not_refused_for_good() -> None:
    """The files in a pod that is there change, too: it may hear of a correction before somebody replaces it."""
    pod = refused("before")
    assert first_parameters.is_refused(pod)
    pod["status"]["containerStatuses"][0]["state"] = {"running": {}}
    assert not first_parameters.is_refused(pod)


@pytest.mark.parametrize(
    ("pod", "now", "outdated"),
    [
        (refused("before"), "before", False),
        (refused("before"), "now", True),
        (refused("before"), "", True),
        (refused("before", code=1), "now", False),
    ],
    ids=["the same", "another", "none", "ended otherwise"],
)
def test_who_was_refused_is_replaced_once_something_else_is_declared(
    pod: dict[str, Any], now: str, outdated: bool
) -> None:
    group_set = objects(first=now)["StatefulSet"]
    found = views.members(
        "shop",
        "prod",
        pods=[pod],
        claims=[],
        sets=[group_set],
        winding_down=False,
        templates=views.fingerprints("shop", [group_set]),
        silent={},
    )["shop-segment-1-0"]
    assert found.outdated == outdated
    assert not found.running
    assert found.note.startswith("spec.postgres.parameters.jit: no: declare something else")


def test_who_was_refused_needs_no_trial() -> None:
    wanted = objects(first="now")["StatefulSet"]["spec"]["template"]
    case = trials.case(Member("shop", 1, 0), [refused("before")], wanted)
    assert trials.verdict(case) == (True, "")
    case = trials.case(Member("shop", 1, 0), [refused("before", code=1)], wanted)
    assert trials.verdict(case) == (None, "")
