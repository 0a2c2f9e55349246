"""A store on a volume that only pods mount: a pod that has it does what is to be done there (``volume_files``).

Each look and each change is one program in that pod. As with a bucket, writers exclude each other by a lock file on the
machine that asks: a cluster's repository is written from one, the operator's.
"""

from __future__ import annotations

import base64
import json
import secrets
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from pgherd.backup import volume_files
from pgherd.backup.object_store import lock_file
from pgherd.backup.store import Damaged, Entry, Store
from pgherd.errors import BadInput, PgherdError, Unavailable, Withheld
from pgherd.platform.local import files
from pgherd.platform.machine import Machine

PATIENCE_SECONDS = 30.0
"""for one program: an outage is to be told, not waited for"""
REMOVAL_SECONDS = 300.0
"""the same for a removal; what is left then is swept later"""
PART = 48 << 10
"""bytes of a content that go at a time: a program's arguments are bounded"""


class VolumeStore(Store):
    """One cluster's folder on a volume.

    :param location: what to call it
    :param root: where it is in the pods that mount the volume
    :param holder: such a pod
    """

    # Written anew with each change, in place: a file that a reader has seen never changes under it.
    grows = False
    near = False

    def __init__(self, location: str, root: Path, holder: Callable[[], Machine]) -> None:
        self.location = location
        self._root = root
        self._holder = holder
        self._lock = files.Lock(lock_file(location))

    def read(self, name: str) -> bytes | None:
        told = self._ask("read", name)
        if told[:1] == b"+":
            return told[1:]
        return b"" if told == volume_files.LOST else None

    def write(self, name: str, content: bytes) -> None:
        token = secrets.token_hex(8)
        parts = [content[at : at + PART] for at in range(0, len(content), PART)] or [b""]
        for number, part in enumerate(parts, 1):
            command = "keep" if number == len(parts) else "put"
            self._ask(command, name, token, str((number - 1) * PART), _text(part))

    def append(self, name: str, content: bytes) -> None:
        is_lost = False
        if len(content) <= PART:
            is_lost = self._ask("add", name, secrets.token_hex(8), _text(content)) == volume_files.LOST
        elif not (is_lost := self.is_damaged(name)):
            self.write(name, (self.read(name) or b"") + content)
        if is_lost:
            raise Damaged(f"{self.location}/{name} is damaged: put it back from a copy, or remove it")

    def names(self, folder: str) -> list[Entry]:
        return [Entry(name, version) for name, version in json.loads(self._ask("names", folder))]

    def folders(self, folder: str) -> list[str]:
        return list(json.loads(self._ask("folders", folder)))

    def remove(self, name: str) -> None:
        self._ask("remove", name, seconds=REMOVAL_SECONDS)

    def sweep(self, folder: str) -> None:
        self._ask("sweep", folder, seconds=REMOVAL_SECONDS)

    def room(self) -> int | None:
        return int(self._ask("room"))

    def locked(self) -> AbstractContextManager[None]:
        return self._lock.held()

    def create(self) -> None:
        self._ask("create")

    def _ask(self, command: str, *arguments: str, seconds: float = PATIENCE_SECONDS) -> bytes:
        try:
            program = ["python3", "-I", "-S", "-c", _text_of_program(), command, str(self._root), *arguments]
            return self._holder().output(program, seconds=seconds)
        except Unavailable as error:
            raise Withheld(f"{self.location} does not answer: {error}") from error
        except (Withheld, BadInput):
            raise
        except PgherdError as error:
            raise PgherdError(f"{self.location}: {error}") from error


@cache
def _text_of_program() -> str:
    # It is part of an address: what would be escaped there is better packed.
    packed = zlib.compress(Path(volume_files.__file__).read_bytes(), 9)
    return f"import base64,zlib;exec(zlib.decompress(base64.urlsafe_b64decode('{_text(packed)}')))"


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()
