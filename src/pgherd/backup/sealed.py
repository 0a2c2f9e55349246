"""A store whose contents only those can read who know the passphrase.

pgBackRest encrypts what it stores; records and points lie beside it, and are sealed here (AES-GCM, with a key that
scrypt makes of the passphrase and a salt). Names are not: they hold nothing but times and groups.

What can't be opened was sealed with another passphrase, or it is damaged. The repository's mark tells: once it, or any
other file, was opened with this passphrase, a file that it does not open is damaged, and is passed over like whatever
else is torn. Otherwise one bad sector would hide all that can be restored.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from pgherd.backup.archive import MARK
from pgherd.backup.store import Damaged, Entry, Store
from pgherd.errors import BadInput, Refused

MAGIC = b"pgherd-sealed-1\n"
_SALT = 16
_NONCE = 12
_BLOCK = len(MAGIC) + _SALT


class SealedStore(Store):
    """What another store holds, sealed.

    :param passphrase: of the repository
    """

    grows = False

    def __init__(self, inner: Store, passphrase: str) -> None:
        self._inner = inner
        self._passphrase = passphrase
        self.location = inner.location
        self.near = inner.near
        self._salt: bytes | None = None
        self._fits = False
        """the passphrase has opened a file"""

    def read(self, name: str) -> bytes | None:
        content = self._inner.read(name)
        try:
            return None if content is None else self._opened(name, content)
        except Damaged:
            return b""

    def write(self, name: str, content: bytes) -> None:
        salt = self._salt or os.urandom(_SALT)
        nonce = os.urandom(_NONCE)
        sealed = AESGCM(_key(self._passphrase, salt)).encrypt(nonce, content, MAGIC + name.encode())
        # One salt for all that this process writes: making a key of a passphrase is slow, on purpose.
        self._salt = salt
        self._inner.write(name, MAGIC + salt + nonce + sealed)

    def append(self, name: str, content: bytes) -> None:
        before = self._inner.read(name)
        self.write(name, (b"" if before is None else self._opened(name, before)) + content)

    def _opened(self, name: str, content: bytes) -> bytes:
        opened = self._unsealed(name, content)
        if opened is not None:
            return opened
        if self._is_right_for_others(name):
            raise Damaged(f"{self.location}/{name} is damaged: put it back from a copy, or remove it")
        if not content.startswith(MAGIC):
            raise BadInput(f"{self.location} is not encrypted: leave spec.backup.encrypt out")
        raise Refused(
            f"{self.location} is encrypted with another passphrase than that of spec.backup.secretRef"
        )

    def _unsealed(self, name: str, content: bytes) -> bytes | None:
        """What was sealed under this name; None: the passphrase does not open it."""
        if not content.startswith(MAGIC):
            return None
        salt, rest = content[len(MAGIC) : _BLOCK], content[_BLOCK:]
        cipher = AESGCM(_key(self._passphrase, salt))
        try:
            opened = cipher.decrypt(rest[:_NONCE], rest[_NONCE:], MAGIC + name.encode())
        except (InvalidTag, ValueError):
            return None
        self._salt = self._salt or salt
        self._fits = True
        return opened

    def _is_right_for_others(self, name: str) -> bool:
        """Whether another file than this was opened with the passphrase, or can be."""
        if self._fits:
            return True
        others = [MARK] if name != MARK else [entry.name for entry in self._inner.names("points")[-1:]]
        return any(self._unsealed(each, self._inner.read(each) or b"") is not None for each in others)

    def names(self, folder: str) -> list[Entry]:
        return self._inner.names(folder)

    def folders(self, folder: str) -> list[str]:
        return self._inner.folders(folder)

    def remove(self, name: str) -> None:
        self._inner.remove(name)

    def room(self) -> int | None:
        return self._inner.room()

    def locked(self) -> AbstractContextManager[None]:
        return self._inner.locked()

    def create(self) -> None:
        self._inner.create()


@lru_cache(maxsize=256)
def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << 14, r=8, p=1).derive(passphrase.encode())
