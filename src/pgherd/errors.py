"""What can go wrong, in two kinds: the caller's mistake and the world's.

Every error that reaches a person is one of these, and its text is one clear line that names the thing and the
way out. Faces (CLI, operator, console) turn the kind into an exit code or a condition; nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence


def one_line(what: object) -> str:
    """A text, or what an error says, without line breaks and repeated blanks; an error without words gives ''."""
    return " ".join(str(what).split())


class PgherdError(Exception):
    """Something failed. The message says what, and what to do next. Exit code 1."""

    exit_code = 1


class BadInput(PgherdError):
    """The caller asked for something that can't be. Exit code 2.

    :param problems: every problem found, one line each (all at once, never only the first)
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class NoSuchCluster(BadInput):
    """There is no cluster of this name in this home or namespace."""


class Withheld(PgherdError):
    """What a declaration refers to is not to be had for now: a store. Nothing has to be declared anew."""


class Refused(Withheld, BadInput):
    """The same because it is not there, or because of keys that it refuses: somebody has to mend that."""


class Unavailable(PgherdError):
    """A database or member can't be reached right now: worth another try, nothing is known to be wrong."""


class Cancelled(PgherdError):
    """A long task was told to stop and did, leaving nothing half-made."""
