"""Bring a data directory's control file into the state in which a server leaves it that is killed at a moment that no
test can hit."""

from __future__ import annotations

import struct
from pathlib import Path

SHUTTING_DOWN, IN_RECOVERY = 3, 5
"""``DBState`` as PostgreSQL numbers it; the first also while it writes the checkpoint that ends recovery"""
_STATE = 16
"""where it is: after the system's identifier and two versions"""
_POLYNOMIAL = 0x82F63B78


def set_state(data: Path, state: int) -> None:
    """Nothing else is changed; the checksum fits."""
    path = data / "global" / "pg_control"
    content = bytearray(path.read_bytes())
    place = _place_of_checksum(content)
    struct.pack_into("<I", content, _STATE, state)
    struct.pack_into("<I", content, place, _crc32c(content[:place]))
    path.write_bytes(content)


def _place_of_checksum(content: bytes | bytearray) -> int:
    """It follows the last field, which is elsewhere in each version."""
    crc = 0xFFFFFFFF
    for place, byte in enumerate(content[:512]):
        if place > _STATE and struct.unpack_from("<I", content, place)[0] == crc ^ 0xFFFFFFFF:
            return place
        crc = _step(crc, byte)
    raise AssertionError("no checksum in the control file")


def _crc32c(content: bytes | bytearray) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _step(crc, byte)
    return crc ^ 0xFFFFFFFF


def _step(crc: int, byte: int) -> int:
    crc ^= byte
    for _ in range(8):
        crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc
