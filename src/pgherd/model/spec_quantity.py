"""Quantities, durations and times of day as people write them: ``10Gi``, ``500m``, ``30s``, ``22:00``.

The notation is Kubernetes' own, so that one declaration means the same on every platform: a decimal
number with a binary (``Ki``) or decimal (``k``) suffix for bytes, whole or thousandth (``500m``) cores
for CPU.
"""

from __future__ import annotations

import re
from datetime import time
from decimal import Decimal

_BYTES = {
    "": 1,
    **{f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)},
    **{letter: 1000**power for power, letter in enumerate("kMGTPE", start=1)},
}
_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)([A-Za-z]*)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


def parse_bytes(text: str) -> int:
    """Bytes of a quantity such as ``10Gi``, ``512M`` or ``1000``; a fraction of a byte is rounded down.

    :raises ValueError: it is not a quantity of bytes
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _BYTES:
        raise ValueError("must be a quantity of bytes such as 512Mi or 10Gi")
    return int(Decimal(match[1]) * _BYTES[match[2]])


def parse_cpu(text: str) -> int:
    """Thousandths of a core of a quantity such as ``2``, ``0.5`` or ``500m``.

    :raises ValueError: it is not a quantity of cores, or finer than a thousandth
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in {"", "m"}:
        raise ValueError("must be a number of cores such as 2, 0.5 or 500m")
    millis = Decimal(match[1]) * (1 if match[2] else 1000)
    if millis != int(millis):
        raise ValueError("must not be finer than a thousandth of a core (1m)")
    return int(millis)


def parse_time(text: str) -> time:
    """A time of day ``HH:MM``, 00:00 to 23:59.

    :raises ValueError: it is not one
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("must be a time of day HH:MM such as 22:00")
    return time(int(match[1]), int(match[2]))


def parse_duration(text: str) -> int:
    """Seconds of a duration such as ``30s``, ``5m``, ``2h`` or ``7d``.

    :raises ValueError: it is not one
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("must be a duration such as 30s, 5m, 2h or 7d")
    return int(match[1]) * _SECONDS[match[2]]
