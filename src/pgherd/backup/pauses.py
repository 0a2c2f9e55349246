"""What ends a restore or a repair for good, and what is tried again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from pgherd.errors import PgherdError, Unavailable, one_line
from pgherd.postgres.connections import is_passing

TRIES = 5
"""of one step that loses its connections, or ends in what nobody expected"""
NO_PAUSE: Mapping[str, Any] = {"tries": 0, "waits": None}
"""what the state says of pauses when a step is done"""


class Awaited(Unavailable):
    """Nothing was tried: something has to be there first, which may take days."""


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, PgherdError | psycopg.Error | OSError) and (text := one_line(error)):
        return text
    return one_line(repr(error))


def is_worth_a_try(error: Exception, state: Mapping[str, Any]) -> bool:
    """Whether what a step ended in may pass: a server that does not answer is waited for; lost connections, and
    what nobody expected, are tried again some times."""
    if isinstance(error, Unavailable):
        return True
    if isinstance(error, PgherdError | psycopg.Error) and not is_passing(error):
        return False
    return int(state.get("tries") or 0) + 1 < TRIES


def after_pause(error: Exception, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the state says of a pause, for whoever waits and for the next try."""
    if isinstance(error, Awaited):
        return {**NO_PAUSE, "waits": reason_of(error)}
    return {"tries": int(state.get("tries") or 0) + 1, "waits": reason_of(error)}
