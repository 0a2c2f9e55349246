"""Keys and passphrases on this machine: a YAML file that only its owner may read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pgherd.errors import BadInput, Refused

WHERE = "spec.backup.secretRef"


def load(path: str) -> Mapping[str, str]:
    """What the file says.

    :raises BadInput: its name makes no sense
    :raises Refused: it is not there, others may read it, or it is no mapping of texts: whoever renews keys may be at it
    """
    if not path.startswith("/"):
        raise BadInput(f"{WHERE}: must be the absolute path of a file on this platform, got {path!r}")
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(1 << 20)
    except OSError as error:
        raise Refused(f"{WHERE}: {path} can't be read: {(error.strerror or str(error)).lower()}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise Refused(f"{WHERE}: others may read {path}: 'chmod 600 {path}'")
    try:
        found: Any = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Refused(f"{WHERE}: {path} must be YAML, each key a text such as 'passphrase: ...'")
    return {str(key): value for key, value in found.items()}


def stamp(path: str | None) -> str:
    """Something that differs whenever the file was changed; cheap."""
    if path is None:
        return ""
    try:
        found = Path(path).stat()
    except OSError:
        return "unreadable"
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
