"""The keys and passphrases of a repository, out of a file that only its owner may read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pgherd.errors import BadInput
from pgherd.model.spec import RepositorySpec

WHERE = "spec.backup.secretRef"
KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "path": (),
    "s3": (("access-key-id", "secret-access-key"),),
    "gcs": (("service-account",),),
    "azure": (("account-key",), ("sas-token",)),
}
"""for each kind of repository the sets of keys of which one has to be there, if there is a secret at all"""
OPTIONAL = {"s3": ("session-token",)}
ALWAYS = ("passphrase", "ca.crt")
_ONE_LINE = ("passphrase", "access-key-id", "secret-access-key", "session-token", "account-key", "sas-token")


def load(path: str) -> Mapping[str, str]:
    """What the file says.

    :raises BadInput: it is not there, others may read it, or it is no mapping of texts
    """
    if not path.startswith("/"):
        raise BadInput(f"{WHERE}: must be the absolute path of a file on this platform, got {path!r}")
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(1 << 20)
    except OSError as error:
        raise BadInput(f"{WHERE}: {path} can't be read: {(error.strerror or str(error)).lower()}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise BadInput(f"{WHERE}: others may read {path}: 'chmod 600 {path}'")
    try:
        found: Any = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BadInput(f"{WHERE}: {path} must be YAML, each key a text such as 'passphrase: ...'")
    return {str(key): value for key, value in found.items()}


def check(secrets: Mapping[str, str], repository: RepositorySpec, *, encrypt: bool) -> None:
    """Refuse keys that are missing, unknown or can't be written down.

    :raises BadInput: with every problem
    """
    choices = KEYS[repository.kind]
    known = {name for choice in choices for name in choice}
    known.update(OPTIONAL.get(repository.kind, ()), ALWAYS)
    listed = ", ".join(sorted(known))
    problems = [f"unknown key {name}: known here are {listed}" for name in secrets if name not in known]
    if choices and not any(all(secrets.get(name) for name in choice) for choice in choices):
        wanted = " or ".join(" and ".join(choice) for choice in choices)
        problems.append(f"{wanted} must be in it for repository.{repository.kind}")
    if encrypt and not secrets.get("passphrase"):
        problems.append("passphrase must be in it for encrypt")
    problems += [
        f"{name} must be one line without blanks around it"
        for name in _ONE_LINE
        if (value := secrets.get(name)) is not None
        and (value != value.strip() or len(value.splitlines()) > 1)
    ]
    if problems:
        raise BadInput(*(f"{WHERE}: {problem}" for problem in problems))


def stamp(path: str | None) -> str:
    """Something that differs whenever the file was changed; cheap."""
    if path is None:
        return ""
    try:
        found = Path(path).stat()
    except OSError:
        return "unreadable"
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
