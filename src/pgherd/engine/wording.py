"""What engines say to people in the same words."""

from __future__ import annotations

from datetime import datetime


def transaction_of(pid: object, where: str, since: datetime | None) -> str:
    """Whose open transaction somebody waits for.

    :param where: the server that the process is on, such as ``segment-1``
    :param since: when it was begun, in the server's time zone; None: the server does not say
    """
    told = f"{since:%H:%M:%S}" if since is not None else "an unknown time"
    return f"process {pid} on {where}, in a transaction since {told}"
