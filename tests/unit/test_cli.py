"""The command line's manners: exit codes, one clear line, nothing but JSON where JSON was asked for."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pgherd.cli import entry, operation_commands
from pgherd.cli.main import hoist_global_options, run
from pgherd.model.explain import explain
from pgherd.platform.local.platform import LocalPlatform
from pgherd.supervisor.client import Client
from tests.support.platform import cluster

GOOD = "apiVersion: pgherd.io/v1alpha1\nkind: PostgresCluster\nmetadata: {name: shop}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own; nothing in these tests starts anything in it."""
    for name in ("PGHERD_PLATFORM", "PGHERD_BIN_DIR", "PGHERD_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    monkeypatch.setenv("PGHERD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status"], "Missing argument 'NAME' (see 'pgherd status --help')"),
        (["stat"], "No such command 'stat'. Did you mean"),
        (["status", "a", "b"], "Got unexpected extra argument"),
        (["status", "shop", "--frob"], "No such option: --frob"),
        (["list", "-o", "xml"], "'xml' is not one of 'table', 'json', 'yaml'"),
        (["scale", "shop", "--segments", "many"], "Invalid value for '--segments'"),
        (["scale", "shop"], "Missing option '--segments'"),
        (["up"], "Missing option '--file'"),
        (["up", "-f", "/nowhere/x.yaml"], "/nowhere/x.yaml: can't be read: No such file or directory"),
        (["up", "-f", "/"], "/: is a directory"),
        (["up", "-f", "/dev/zero"], "/dev/zero: too long: a declaration has at most 1000000 characters"),
        (["up", "-f", "x", "--timeout", "-1"], "--timeout: must be >= 0, got -1"),
        (["up", "-f", "x", "--timeout", "nan"], "--timeout: must be >= 0, got nan"),
        (
            ["--platform", "kubernetes", "list"],
            "no kubeconfig: /nowhere/kubeconfig not found; set KUBECONFIG to yours",
        ),
        (["install"], "no kubeconfig: /nowhere/kubeconfig not found"),
        (["install", "--dry-run", "--image", ""], "--image: '' must be the name of a container image"),
        (["install", "--dry-run", "-n", "No"], "--namespace: 'No' must be 1 to 63 lower-case letters"),
        (["uninstall", "--yes", "--context", "prod"], "no kubeconfig"),
        (["list", "--platform", "moon"], "--platform moon is not available in this version: use local"),
        (["list", "-n", "prod"], "--namespace is for --platform kubernetes; on local use --home"),
        (["--context", "prod", "list"], "--context is for --platform kubernetes"),
        (["--home", __file__, "list"], "test_cli.py: is not a directory"),
        (["explain", "segmets"], "segmets: unknown field; did you mean segments?"),
        (["status", "nope"], "nope"),
        (["scale", "nope", "--segments", "3"], "nope"),
        (["delete", "nope", "--yes"], "nope"),
        (["dsn", "nope"], "nope"),
        (["logs", "nope"], "nope"),
        (["psql", "nope"], "nope"),
        (["stop", "nope"], "nope"),
        (["start", "nope"], "nope"),
        (["restart", "nope"], "nope"),
        (["check", "nope"], "nope"),
        (["switchover", "nope", "--group", "coordinator"], "nope"),
        (["status", "../etc"], "../etc"),
        (["restore", "shop", "--confirm", "--in-place", "--yes"], "--confirm ends a restore in place"),
        (["restore", "shop", "--confirm", "--time", "2026-11-21T09:15:00Z"], "leave --time out"),
        (["restore", "shop", "other", "--confirm"], "leave NAME out"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("pgherd: ")
    assert not home.exists(), "bad input leaves nothing behind"


def test_every_problem_of_a_file_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(GOOD + "spec: {segments: {count: 0}, shardcount: 1}\n")
    assert run(["up", "-f", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"pgherd: spec.segments.count: must be >= 1, got 0 ({file}:4)",
        f"pgherd: spec.shardcount: unknown field; did you mean shardCount? ({file}:4)",
    ]


def test_a_file_that_is_not_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "shop.yaml"
    file.write_bytes(b"\xff\xfe\x00a")
    assert run(["up", "-f", str(file)]) == 2
    assert capsys.readouterr().err == f"pgherd: {file}: can't be read: is not UTF-8 text\n"


def test_standard_input_is_named_in_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a: [")))
    assert run(["up", "-f", "-"]) == 2
    assert capsys.readouterr().err.startswith("pgherd: stdin:1:5: broken YAML: ")


def test_an_interrupt_while_the_program_is_loaded_is_exit_130_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: list[str], program: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pgherd.cli.main.main", interrupted)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130


def test_an_interrupt_is_exit_130_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Keyboard(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Keyboard()))
    assert run(["up", "-f", "-"]) == 130
    assert capsys.readouterr().err.strip() == "pgherd: interrupted"


def test_an_unexpected_error_is_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def burst(field: str | None) -> str:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("pgherd.model.explain.explain", burst)
    assert run(["explain"]) == 1
    assert (
        capsys.readouterr().err
        == "pgherd: unexpected ZeroDivisionError: two lines (PGHERD_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("PGHERD_DEBUG", "1")
    assert run(["explain"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_does_no_harm(closed: int) -> None:
    command = f"exec {sys.executable} -m pgherd.cli.main list {closed}>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "pgherd: " not in done.stderr


def test_an_empty_home_lists_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "-o", "json"]) == 0
    printed = capsys.readouterr()
    assert (json.loads(printed.out), printed.err) == ([], "")
    assert run(["list"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("no clusters here; ")


def test_explain_prints_what_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "segments.count"]) == 0
    assert capsys.readouterr().out == explain("segments.count") + "\n"


@pytest.mark.parametrize(
    ("options", "program", "typed"),
    [
        ([], "pgherd", "'pgherd status shop'"),
        (["--platform", "kubernetes"], "pgherd", "'pgherd --platform kubernetes status shop'"),
        (
            ["--platform", "kubernetes", "-n", "prod", "--context", "eu"],
            "pgherd",
            "'pgherd --platform kubernetes --context eu -n prod status shop'",
        ),
        (
            ["--platform", "kubernetes", "-n", "prod"],
            "kubectl pgherd",
            "'kubectl pgherd -n prod status shop'",
        ),
    ],
)
def test_advice_can_be_typed(
    options: list[str],
    program: str,
    typed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "pgherd.model.explain.explain", lambda field: "see 'pgherd status shop' or 'pgherd install'"
    )
    assert run([*options, "explain"], program) == 0
    assert capsys.readouterr().out == f"see {typed} or '{program} install'\n"


def test_help_is_quick_to_come() -> None:
    script = (
        "import sys; from pgherd.cli.main import run; run(['--help']);"
        "print([m for m in ('lightkube', 'httpx2', 'psycopg', 'pgherd.deploy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n", "commands import what they need, not the command line"


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["-h"], ["--version"], ["up", "--help"], ["list", "-h"]]
)
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["status", "shop", "--home", "/x"], ["--home", "/x", "status", "shop"]),
        (["list", "--platform=local", "-o", "json"], ["--platform=local", "list", "-o", "json"]),
        (["psql", "shop", "--", "--home", "x", "-n"], ["psql", "shop", "--", "--home", "x", "-n"]),
        (["status", "--home"], ["status", "--home"]),
        ([], []),
    ],
)
def test_global_options_may_stand_anywhere_before_two_dashes(typed: list[str], meant: list[str]) -> None:
    assert hoist_global_options(typed) == meant


def test_scale_says_what_is_declared_in_the_end(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    platform = LocalPlatform(home)
    platform.declare(cluster(segments=1))

    def somebody_else(name: str, *_: object) -> dict[str, object]:
        platform.declare(cluster(segments=3))
        return {}

    monkeypatch.setattr(Client, "ensure_daemon", lambda self: None)
    monkeypatch.setattr(operation_commands, "await_fulfilment", somebody_else)
    assert run(["scale", "shop", "--segments", "2"]) == 0
    assert capsys.readouterr().out == "shop: 3 segments, as somebody else declared meanwhile\n"
