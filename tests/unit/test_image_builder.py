"""Building images: what is asked wrongly is refused before anything is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab.builder import Recipe, name_for_containerd, parse_arguments, parse_pip_settings
from lab.cli import main
from lab.errors import BadRequestError


def test_what_pip_was_told_is_read_and_the_environment_wins() -> None:
    listing = (
        "global.index-url='https://files.example/simple'\n"
        "install.trusted-host='files.example\\nother.example'\n"
        ":env:.index-url='https://mirror.example/simple'\n"
        "no setting at all\n"
    )
    assert parse_pip_settings(listing) == {
        "index-url": "https://mirror.example/simple",
        "trusted-host": "files.example other.example",
    }


def test_a_build_argument_may_hold_anything_after_its_name() -> None:
    assert parse_arguments("--build-arg", ["A=deb [x=y] z", "B="]) == {"A": "deb [x=y] z", "B": ""}


@pytest.mark.parametrize("word", ["A", "=x", ""])
def test_a_build_argument_without_a_name_or_a_value_is_refused(word: str) -> None:
    with pytest.raises(BadRequestError, match="give NAME=VALUE"):
        parse_arguments("--build-arg", [word])


def recipe(folder: Path, **changes: object) -> Recipe:
    (folder / "Dockerfile").write_text("FROM scratch\n")
    whole = {"dockerfile": folder / "Dockerfile", "context": folder, "tag": "localhost/mine:1", **changes}
    return Recipe(**whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tag", ["mine", "mine:1", "localhost/mine", "localhost:5000/mine", "localhost/mine:"]
)
def test_a_name_that_is_not_whole_is_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(BadRequestError, match=r"give the whole name, such as localhost/mine:1"):
        recipe(tmp_path, tag=tag).check()


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    for changes in (
        {"dockerfile": tmp_path / "no"},
        {"context": tmp_path / "no"},
        {"secrets": {"a": tmp_path / "no"}},
    ):
        with pytest.raises(BadRequestError, match=f"{tmp_path}/no: no such"):
            recipe(tmp_path, **changes).check()
    recipe(tmp_path).check()


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build-image", str(tmp_path), "--tag", "localhost/mine:1", "--output", str(tmp_path / "out.tar")]
    assert main(words) == 2
    assert capsys.readouterr().err == f"lab: {tmp_path}/Dockerfile: no such file\n"
    assert not (tmp_path / "out.tar").exists()


def test_containerd_finds_an_image_under_its_whole_name(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"manifests": [{"digest": "sha256:0"}]}))
    name_for_containerd(index, "localhost/mine:1")
    (manifest,) = json.loads(index.read_text())["manifests"]
    assert manifest["annotations"] == {"io.containerd.image.name": "localhost/mine:1"}
