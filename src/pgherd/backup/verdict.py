"""Whether a group that was rebuilt from the repository has all that it ever acknowledged. Pure.

That can be *proven* in one case only: the group was shut down, its primary's last checkpoint is known, and the archived
log goes up to it. Everything else is told as it is: what is known to be missing, or that nobody can tell. A server that
died has no last word: what its leader told Patroni's store is up to a second old.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgherd.backup.wal import SEGMENT_BYTES
from pgherd.platform.bench import Ending, LastWords

FIRST_RECORD = 0x28
"""where in a file of the log the first record begins"""
_CHECKPOINT_BYTES = 4096
"""more than a record of a checkpoint takes"""


@dataclass(frozen=True)
class Reached:
    """How far a group was rebuilt."""

    timeline: int
    lsn: int
    """where the archived log ends (bytes)"""
    committed_at: str | None
    """when its last transaction was committed, as the log says; None: there was none since the copy"""


@dataclass(frozen=True)
class Verdict:
    """What is known of what is missing."""

    complete: bool
    """proven: nothing is missing"""
    reason: str
    """one sentence"""
    missing_bytes: int | None = None
    """at least so much of the log is missing; 0: nothing is known to be; None: not asked"""


def judge(reached: Reached, known: LastWords, marks: Mapping[int, str]) -> Verdict:
    """Compare what was rebuilt with what is known.

    :param marks: further places that the log is known to have reached (bytes), and what tells so
    """
    if known.data:
        return Verdict(
            False,
            f"{_end(reached)}; newer rows may be in what is left of its members' data ({', '.join(known.data)}), which "
            "nobody has looked at",
        )
    signs = {known.store_lsn: "its primary told Patroni's store", **marks} if known.store_lsn else marks
    last = _last_checkpoint(known)
    beyond = {lsn: who for lsn, who in signs.items() if lsn > reached.lsn}
    if last is not None and _has(reached, last):
        later = {lsn: who for lsn, who in beyond.items() if lsn > last.checkpoint + _CHECKPOINT_BYTES}
        if not later:
            return Verdict(
                True,
                f"its primary was shut down at {lsn_text(last.checkpoint)}, and all of its log up to there is archived",
                0,
            )
    if last is not None and last.checkpoint > reached.lsn:
        beyond[last.checkpoint] = "its primary was shut down there"
    if beyond:
        farthest = max(beyond)
        return Verdict(
            False,
            f"{_end(reached)}, but the log is known to have reached {lsn_text(farthest)} ({beyond[farthest]}): at "
            f"least {farthest - reached.lsn} bytes of it are missing, and every row that is only there",
            farthest - reached.lsn,
        )
    return Verdict(
        False,
        f"{_end(reached)}; nothing is known to be missing, but it was not shut down: rows of its last moments may be",
        0,
    )


def _last_checkpoint(known: LastWords) -> Ending | None:
    """How the group's last primary was shut down; None: that is not known of every member."""
    endings = list(known.endings.values())
    if not endings or any(each is None for each in endings):
        return None
    last = max((each for each in endings if each is not None), key=lambda each: (each.timeline, each.primary))
    return last if last.primary else None


def _has(reached: Reached, last: Ending) -> bool:
    """Whether everything before the checkpoint was there. The checkpoint's own record is the first of a file that a
    server which is shut down does not archive any more."""
    if reached.timeline != last.timeline:
        return False
    alone = last.checkpoint % SEGMENT_BYTES == FIRST_RECORD
    return reached.lsn > last.checkpoint or (alone and reached.lsn >= last.checkpoint - FIRST_RECORD)


def _end(reached: Reached) -> str:
    when = f", its last transaction was committed at {reached.committed_at}" if reached.committed_at else ""
    return f"the archived log ends at {lsn_text(reached.lsn)} of timeline {reached.timeline}{when}"


def lsn_text(lsn: int) -> str:
    """``1/A0000028``"""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
