"""A look at a repository that nobody waits for.

A reconcile loop looks at a cluster all the time, and heals it; a store on the network may answer late or not at all, so
may a directory that is mounted from there. So it is asked in a thread, one for each repository, and the loop gets what
was seen last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgherd.backup.base import BackupMethod
from pgherd.errors import PgherdError, one_line

View = Mapping[str, Any]
PATIENCE_SECONDS = 1.0
"""how long a look is waited for after all: as a rule it takes less"""
SILENT_SECONDS = 15.0
"""a look that takes longer is told as a problem"""
_SILENT = "does not answer"
"""also the end of what a store's own error says that gave up waiting"""
KEPT = 4096
"""repositories that are remembered: those of as many clusters as an operator looks after, with older keys, too"""


@dataclass
class _Look:
    """What is known of one repository."""

    seen: View | None = None
    begun: float = 0.0
    thread: threading.Thread | None = None
    waited: bool = False
    """the first look was waited for"""
    guard: threading.Lock = field(default_factory=threading.Lock)


_looks: dict[str, _Look] = {}


def look(method: BackupMethod, view: Callable[[], View]) -> View:
    """What ``view`` says, or said last: nobody waits for more than a moment.

    :param view: asks the repository; does not raise what a repository may run into
    """
    try:
        method.repository  # noqa: B018
    except PgherdError:  # there is nobody to wait for
        return view()
    known = _looks.setdefault(method.fingerprint(), _Look())
    for old in list(_looks)[:-KEPT]:
        _looks.pop(old, None)
    return _latest(method, known, view)


def _latest(method: BackupMethod, known: _Look, view: Callable[[], View]) -> View:
    with known.guard:
        if known.thread is None or not known.thread.is_alive():
            known.begun = time.monotonic()
            known.thread = threading.Thread(target=_ask, args=(known, view), name="far-look", daemon=True)
            known.thread.start()
    # Who looks once, a command, has nothing older to show.
    known.thread.join(PATIENCE_SECONDS if known.waited else SILENT_SECONDS)
    known.waited = True
    bare: View = {"method": method.name, "repository": method.location, "problems": []}
    seen = known.seen or bare
    if known.thread.is_alive() and time.monotonic() - known.begun > SILENT_SECONDS:
        known_problems = seen.get("problems", ())
        if not any(each.endswith(_SILENT) for each in known_problems):
            return {**seen, "problems": [f"{method.location} {_SILENT}", *known_problems]}
    return seen


def _ask(known: _Look, view: Callable[[], View]) -> None:
    try:
        known.seen = view()
    except Exception as error:  # whoever looks next is told, and asks again
        known.seen = {"problems": [one_line(error) or type(error).__name__]}
