"""Cron lines: when a schedule is due. UTC, five fields, as Debian's cron understands them. Pure.

Parsing and counting are cronsim's; what it lacks are words for people, and the question asked here: of all the times
since the last look, which is the latest?
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

MAX_CHARACTERS = 200
_FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def check_cron(line: str) -> str:
    """A cron line as it is.

    :raises ValueError: it is none, or its time never comes
    """
    fields = line.split()
    if len(fields) != len(_FIELDS) or len(line) > MAX_CHARACTERS:
        raise ValueError(f"must be a cron line of five fields ({' '.join(_FIELDS)}) such as 0 2 * * *")
    try:
        next(CronSim(line, _ANY_DAY))
    except StopIteration:
        raise ValueError("never comes: no day is all of that") from None
    except (CronSimError, AssertionError, TypeError, ValueError) as error:
        if _is_sound([*fields[:3], "*", fields[4]]) and _is_sound([*fields[:2], "*", *fields[3:]]):
            raise ValueError("never comes: no such day in that month") from None
        reason = str(error).replace("Bad ", "wrong ") if isinstance(error, CronSimError) else "not understood"
        raise ValueError(f"must be a cron line such as 0 2 * * * ({reason})") from None
    return line


def _is_sound(fields: list[str]) -> bool:
    try:
        CronSim(" ".join(fields), _ANY_DAY)
    except (CronSimError, AssertionError, TypeError, ValueError):
        return False
    return True


def next_time(line: str, after: datetime) -> datetime:
    """The first time of a (checked) cron line after a moment."""
    return next(CronSim(line, after.astimezone(UTC)))


def last_time(line: str, since: datetime, now: datetime) -> datetime | None:
    """The latest time of a cron line after ``since``, up to now; None: there was none."""
    if next_time(line, since) > now:
        return None
    whole = now.astimezone(UTC).replace(microsecond=0)
    return next(CronSim(line, whole + timedelta(seconds=1), reverse=True))
