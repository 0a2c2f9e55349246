"""A script of SQL, statement by statement: some extensions send a whole script to other nodes where one is meant.

Knows what may contain a semicolon that ends nothing: strings, quoted names, comments, dollar quotes, parentheses
(rules) and bodies of functions in SQL's own form (``BEGIN ATOMIC ... END``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | \$((?:[A-Za-z_]\w*)?)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/ | \w+ | .""",
    re.DOTALL | re.VERBOSE,
)


def statements(script: str) -> Iterator[str]:
    """Each statement without its semicolon; none that is empty."""
    text, inside = "", 0
    words: list[str] = []
    for token in _TOKEN.finditer(script):
        word = token[0].upper()
        if word == ";" and not inside and not _is_open(words):
            if words:
                yield text.strip()
            text, words = "", []
            continue
        inside += (word == "(") - (word == ")")
        if not (word.isspace() or word.startswith(("--", "/*"))):
            words.append(word)
        text += token[0]
    if words:
        yield text.strip()


def _is_open(words: list[str]) -> bool:
    """Whether a routine's body of statements has not ended."""
    if words[:1] != ["CREATE"] or not {"FUNCTION", "PROCEDURE"} & set(words[1:4]):
        return False
    depth = 0
    for before, word in zip(["", *words], words, strict=False):
        if (word == "ATOMIC" and before == "BEGIN") or (word == "CASE" and depth):
            depth += 1
        elif word == "END" and depth:
            depth -= 1
    return depth > 0
