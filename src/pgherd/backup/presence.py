"""Whether a repository that was there can be read now: a disk or a share may drop, and come back.

What is copied or replayed meanwhile fails in words that speak of damage. None of them counts unless the repository is
there before, during and after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgherd.backup.base import BackupMethod
from pgherd.errors import Cancelled, PgherdError, Withheld, one_line

LOOK_SECONDS = 1.0
"""between two looks while something reads a repository for long"""


def obstacle(method: BackupMethod) -> Withheld | None:
    """What keeps everybody from reading a repository now, and may pass; None: nothing does, or it is gone for good."""
    try:
        method.repository.require()
    except Withheld as found:
        return found
    except PgherdError as error:
        # The operating system's word for a share that does not answer, or a disk that was pulled.
        return Withheld(one_line(error)) if isinstance(error.__cause__, OSError) else None
    return None


@contextmanager
def watched(method: BackupMethod, stopping: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Around what reads a repository for long; gives what tells it to stop, also once the repository is away.

    :raises Withheld: the repository is away, or was meanwhile; instead of what that ended in
    """
    if not method.repository.store.near:
        yield stopping  # what asks it says by itself that there was no answer
        return
    found: list[Withheld] = []
    over = threading.Event()

    def look() -> None:
        while not found and not over.wait(LOOK_SECONDS):
            found.extend(filter(None, [obstacle(method)]))

    found.extend(filter(None, [obstacle(method)]))
    if found:
        raise found[0]
    # By itself, and left behind: a share may keep whoever looks for as long as it is away.
    threading.Thread(target=look, name="repository-watch", daemon=True).start()
    try:
        yield lambda: bool(found) or stopping()
    except (PgherdError, OSError) as error:
        if isinstance(error, Cancelled) and stopping():
            raise
        away = found[0] if found else obstacle(method)
        if away is not None:
            raise away from error
        raise
    finally:
        over.set()
