"""YAML to plain data and back, without YAML's traps, remembering where everything was written.

Read as YAML 1.2 and Kubernetes read it: ``22:00`` and ``2026-01-01`` are text (YAML 1.1 makes numbers and
dates of them), ``on``/``off`` stay booleans because PostgreSQL's parameters are written so. Keys given
twice and unknown tags are refused; aliases are expanded up to a bound, so that a small
file can't become a large one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pgherd.errors import BadInput

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 20_000

Path = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})$")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,300}\.[0-9]*|\.[0-9]+|[0-9]{1,300}(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?$")


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes for numbers only what YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text that any reader, old or new, could take for something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in {"bool", "null", "merge"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


@dataclass
class Document:
    """The value of a YAML text and the line (from 1) on which each part of it stands."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int | None:
        """The line of ``path``, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def read(text: str, source: str) -> Document:
    """Parse one YAML (or JSON) document.

    :param source: what to call the text in messages, for example its file name
    :raises BadInput: one line with line and column for what the parser met; all keys given twice; a second document
    """
    documents = read_all(text, source)
    if len(documents) > 1:
        line = documents[1].lines[()]
        raise BadInput(f"{source}:{line}: a second document: here a file declares one cluster")
    return documents[0]


def read_all(text: str, source: str) -> list[Document]:
    """Parse all documents of a text; there is at least one.

    :raises BadInput: as :func:`read`
    """
    if len(text) > MAX_CHARACTERS:
        raise BadInput(f"{source}: too long: a declaration has at most {MAX_CHARACTERS} characters")
    try:
        return _read(text, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        reason = " ".join(part for part in (error.problem, error.context and f"({error.context})") if part)
        raise BadInput(f"{source}{where}: broken YAML: {reason}") from None
    except yaml.reader.ReaderError as error:
        where = f":{text.count(chr(10), 0, error.position) + 1}"
        raise BadInput(f"{source}{where}: broken YAML: a control character is not allowed") from None
    except RecursionError:
        raise BadInput(f"{source}: broken YAML: nested too deeply") from None


def _read(text: str, source: str) -> list[Document]:
    loader = _Loader(text)
    try:
        nodes = list(_nodes(loader))
    finally:
        loader.dispose()
    if not nodes:
        raise BadInput(f"{source}: nothing in it: expected a PostgresCluster")
    return [_document(loader, node, source) for node in nodes]


def _document(loader: _Loader, node: yaml.Node, source: str) -> Document:
    builder = _Builder(loader, source)
    value = builder.build(node, ())
    if builder.problems:
        raise BadInput(*builder.problems)
    return Document(value, builder.lines)


def _nodes(loader: _Loader) -> Iterator[yaml.Node]:
    """The documents that hold anything (a lone ``---`` begins an empty one)."""
    while loader.check_node():
        node = loader.get_node()
        if node and not (isinstance(node, yaml.ScalarNode) and node.value == ""):
            yield node


class _Builder:
    """Makes plain data of YAML nodes."""

    def __init__(self, loader: _Loader, source: str) -> None:
        self.loader = loader
        self.source = source
        self.lines: dict[Path, int] = {}
        self.problems: list[str] = []
        self._left = MAX_VALUES

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0:
            raise BadInput(f"{self.source}: too much in it: a declaration has at most {MAX_VALUES} values")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return {key: self.build(value, (*path, key)) for key, value in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._unknown_tag(node)

    def _items(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"{self.source}:{key.start_mark.line + 1}: a key must be text")
            if key.value in seen:
                where = ".".join(map(str, (*path, key.value)))
                self.problems.append(f"{where}: given twice ({self.source}:{key.start_mark.line + 1})")
            seen.add(key.value)
        self.loader.flatten_mapping(node)
        merged = {key.value: (key, value) for key, value in node.value}
        for name, (key, value) in merged.items():
            self.lines[*path, name] = key.start_mark.line + 1
            yield name, value

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return self.loader.construct_yaml_bool(node)
            case "int" if _INT.match(node.value):
                return int(node.value)
            case "float" if _FLOAT.match(node.value):
                return float(node.value)
            case "str":
                return node.value
        raise self._unknown_tag(node)

    def _unknown_tag(self, node: yaml.Node) -> BadInput:
        line = node.start_mark.line + 1
        return BadInput(
            f"{self.source}:{line}: broken YAML: {node.tag.removeprefix(_TAG)} is not allowed here"
        )


def write(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """The value as YAML that :func:`read`, kubectl and YAML 1.1 parsers read alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
