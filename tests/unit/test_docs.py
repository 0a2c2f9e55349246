"""What README and docs tell people to type, to declare and to read on is there, and is taken as it stands."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from pgherd.cli.main import app, hoist_global_options
from pgherd.engine.registry import check_available
from pgherd.model import documents
from pgherd.model.spec_models import API_VERSION, KIND, PostgresCluster

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / folder / "README.md" for folder in ("examples", "lab", "deploy/image")),
    )
)
USAGES = "docs/reference/cli.md"
"""shows how commands are written, not commands"""
COMMAND = typer.main.get_command(app)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_TYPED = re.compile(r"(?:^|[(\s])(?<!helm install )(?:kubectl )?pgherd ([^#\n]*)")
_INLINE = re.compile(r"`(?:kubectl )?pgherd ([^`]+)`")
_ADVICE = r"['`]pgherd (?=[a-z])"
_END = re.compile(r'\\?\||\)"|; ')
"""where a command in a line of a shell, or of a table, ends"""


def text(page: str) -> str:
    return (ROOT / page).read_text()


def prose(page: str) -> str:
    return _BLOCK.sub("", text(page))


def blocks(page: str, *languages: str) -> list[str]:
    return [block for language, block in _BLOCK.findall(text(page)) if language in languages]


def commands(page: str) -> Iterator[list[str]]:
    """The arguments of each pgherd that stands in the code blocks of a page."""
    for block in blocks(page, "", "console"):
        for command in _TYPED.findall(block.replace("\\\n", " ")):
            arguments = shlex.split(_END.split(command)[0])
            if "--help" not in arguments:
                yield arguments


def parse(arguments: list[str]) -> None:
    """Read a command line as ``pgherd`` does, and run nothing."""
    context = COMMAND.make_context("pgherd", hoist_global_options(arguments))
    rest = [*context._protected_args, *context.args]  # what a group leaves to its commands
    name, command, rest = COMMAND.resolve_command(context, rest)  # type: ignore[attr-defined]
    command.make_context(name, rest, parent=context)


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


def unknown_words(words: str) -> list[str]:
    """Of a command that is mentioned, not shown: its name and its options that there are not."""
    known: Mapping[str, Any] = COMMAND.commands  # type: ignore[attr-defined]
    name, *rest = hoist_global_options(shlex.split(_END.split(words)[0].replace("\n", " ")))
    while name in options(COMMAND):
        name, *rest = rest[1:] or ["list"]
    if name not in known:
        return [name]
    named = {each.partition("=")[0] for each in rest if each.startswith("-")}
    return sorted(named - options(known[name]) - {"--", "-"})


@pytest.mark.parametrize("page", [page for page in PAGES if page != USAGES])
def test_each_command_that_a_page_shows_is_taken(page: str) -> None:
    refused = []
    for arguments in commands(page):
        try:
            parse(arguments)
        except typer.TyperException as error:
            refused.append(f"pgherd {shlex.join(arguments)}: {error.format_message()}")
    assert refused == []


def test_commands_are_found_where_they_stand() -> None:
    shown = {page: list(commands(page)) for page in PAGES}
    assert ["dsn", "shop"] in shown["README.md"]  # within another program's arguments
    assert sum(map(len, shown.values())) > 50


@pytest.mark.parametrize("page", [page for page in PAGES if page != USAGES])
def test_each_command_that_a_page_mentions_exists_with_its_options(page: str) -> None:
    mentioned = [words for words in _INLINE.findall(prose(page)) if "…" not in words]
    assert {words: found for words in mentioned if (found := unknown_words(words))} == {}


def advice() -> Iterator[tuple[str, str]]:
    """The commands that the program's own texts name, each with the file that does."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        source = file.read_text()
        if not re.search(_ADVICE, source):
            continue  # to parse all of them takes its time
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.JoinedStr | ast.Constant):
                continue
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            said = "".join(
                str(each.value) if isinstance(each, ast.Constant) else "NAME"
                for each in parts
                if isinstance(each, ast.Constant | ast.FormattedValue)
            )
            yield from ((file.name, words) for words in re.findall(_ADVICE + r"([a-z][^'`%]*)['`]", said))


def test_each_command_that_the_program_advises_exists_with_its_options() -> None:
    advised = set(advice())
    assert len(advised) > 30
    assert [(file, words) for file, words in sorted(advised) if unknown_words(words)] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_target_of_make_that_a_page_names_exists(page: str) -> None:
    there = set(re.findall(r"^([a-z][-a-z0-9]*):", text("Makefile"), re.MULTILINE))
    shown = re.findall(
        r"^(?:[$#] )?make ([a-z][-a-z0-9]*)", "\n".join(blocks(page, "", "console")), re.MULTILINE
    )
    mentioned = re.findall(r"`make ([a-z][-a-z0-9]*)", prose(page))
    assert {*shown, *mentioned} - there == set()


def whole(document: str) -> str:
    """A declaration of which only a part is shown, made whole."""
    if re.match(r"\s+\w", document) or document.startswith(("backup:", "bootstrap:")):
        document = "spec:\n" + textwrap.indent(textwrap.dedent(document), "  ")
    if document.startswith("spec:"):
        document = f"apiVersion: {API_VERSION}\nkind: {KIND}\nmetadata: {{name: test}}\n{document}"
    return document


def declarations(page: str) -> list[str]:
    """What of a page's YAML is for pgherd."""
    found = [
        whole(document)
        for block in blocks(page, "yaml")
        for document in re.split(r"^---\n", block, flags=re.M)
    ]
    return [document for document in found if "pgherd.io/" in document]


@pytest.mark.parametrize("page", PAGES)
def test_each_declaration_that_a_page_shows_is_taken(page: str) -> None:
    for document in declarations(page):
        platform = "local" if "path: /" in document else "kubernetes"
        for declared in documents.load_all(document, source=page, platform=platform):
            if isinstance(declared, PostgresCluster):
                check_available(declared)


def test_declarations_are_found_where_they_stand() -> None:
    found = {page: len(declarations(page)) for page in PAGES}
    assert found["README.md"] == 1
    assert sum(found.values()) > 10


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, as GitHub makes it."""
    titles = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_each_link_of_a_page_leads_somewhere(page: str) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(link)
    assert dead == []
