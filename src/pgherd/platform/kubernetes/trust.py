"""A cluster's passwords and certificates: made once, kept in Secrets, made anew before they end."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pgherd.errors import PgherdError
from pgherd.model.topology import Credentials
from pgherd.platform.kubernetes import certificates, names
from pgherd.platform.kubernetes.api import SECRET, VOLUME_CLAIM, Api, Object
from pgherd.platform.kubernetes.cache import Reader
from pgherd.platform.kubernetes.certificates import Authority
from pgherd.platform.kubernetes.cluster_objects import (
    authority_secret,
    credentials_secret,
    decoded,
    tls_secret,
)

CHECK_SECONDS = 600.0
"""how often a certificate that nobody touched is looked at"""

T = TypeVar("T")


class Trust:
    """Passwords, authorities and certificates of one namespace's clusters. Safe to share between threads.

    :param now: the time
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        reader: Reader,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        announce: Callable[[str, str], None] = lambda cluster, what: None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._reader = reader
        self._now = now
        self._announce = announce
        self._known: dict[str, tuple[str, Any]] = {}
        self._checked: dict[str, tuple[str, float]] = {}
        self._guard = threading.RLock()

    def credentials(self, cluster: str) -> Credentials:
        """The cluster's passwords, made at the first call.

        :raises PgherdError: they are damaged, or were lost: no new ones can be made for databases that are there
        """

        def make() -> dict[str, Any]:
            return credentials_secret(cluster, self._remembered(cluster) or self._new(cluster))

        return self._kept(names.credentials_secret(cluster), make, lambda values: Credentials(**values))

    def _remembered(self, cluster: str) -> Credentials | None:
        """What somebody has just deleted."""
        _, known = self._known.get(names.credentials_secret(cluster), ("", None))
        return known if isinstance(known, Credentials) else None

    def _new(self, cluster: str) -> Credentials:
        name = names.credentials_secret(cluster)
        claims = self._api.list(VOLUME_CLAIM, self._namespace)
        if any(names.claim_of(cluster, claim["metadata"]["name"]) for claim in claims):
            raise PgherdError(
                f"Secret {name} is lost, and with it the passwords of {cluster}: restore it from a copy, or from "
                "what a running member was started with (docs/kubernetes.md)"
            )
        return Credentials(*(secrets.token_urlsafe(24) for _ in fields(Credentials)))

    def authority(self, cluster: str) -> Authority:
        """The cluster's certificate authority, made at the first call; one that was lost is replaced."""

        def make() -> dict[str, Any]:
            _, known = self._known.get(names.authority_secret(cluster), ("", None))
            return authority_secret(cluster, known or certificates.make_authority(cluster, self._now()))

        return self._kept(names.authority_secret(cluster), make, Authority.of)

    def authority_file(self, cluster: str) -> str:
        """A file with the authority's certificate, where members have it, too."""
        path = Path(names.authority_file(cluster, self._namespace))
        certificate = self.authority(cluster).certificate
        with self._guard:
            if not path.exists() or path.read_text() != certificate:
                new = path.with_suffix(f".{os.getpid()}.new")
                new.write_text(certificate)
                new.rename(path)
        return str(path)

    def ensure_certificate(self, cluster: str, group: int) -> None:
        """See to it that a group has a certificate that is good for some time."""
        name = names.tls_secret(cluster, group)
        found = self._reader.get(SECRET, self._namespace, name)
        version = found["metadata"]["resourceVersion"] if found else ""
        seen, at = self._checked.get(name, ("", 0.0))
        if found and seen == version and time.monotonic() - at < CHECK_SECONDS:
            return
        authority = self.authority(cluster)
        hosts = certificates.hosts(cluster, group, self._namespace)
        if found is None or not authority.is_good(decoded(found), hosts, self._now()):
            secret = tls_secret(cluster, group, authority.issue(hosts, self._now()))
            applied = self._api.apply(self._namespace, secret)
            if found is not None:
                self._announce(cluster, f"renew certificate of {names.group_object(cluster, group)}")
            found = applied
            self._reader.put(SECRET, found)
        self._checked[name] = (found["metadata"]["resourceVersion"], time.monotonic())

    def forget(self, cluster: str) -> None:
        """Nothing is remembered of a cluster that is gone."""
        for name in (names.credentials_secret(cluster), names.authority_secret(cluster)):
            self._known.pop(name, None)
        for name in [name for name in list(self._checked) if name.startswith(f"{cluster}-")]:
            self._checked.pop(name, None)
        with suppress(OSError):
            Path(names.authority_file(cluster, self._namespace)).unlink()

    def _kept(
        self, name: str, make: Callable[[], dict[str, Any]], read: Callable[[Mapping[str, str]], T]
    ) -> T:
        """What a Secret holds that is made once. Whoever was first decides; it is never written over."""
        found = self._reader.get(SECRET, self._namespace, name) or self._make(name, make)
        version = found["metadata"]["resourceVersion"]
        known = self._known.get(name)
        if known is None or known[0] != version:
            try:
                known = (version, read(decoded(found)))
            except (TypeError, ValueError) as error:
                raise PgherdError(f"Secret {name} is damaged ({error}): restore it from a copy") from None
            self._known[name] = known
        kept: T = known[1]
        return kept

    def _make(self, name: str, make: Callable[[], dict[str, Any]]) -> Object:
        found = self._api.create(self._namespace, make()) or self._api.get(SECRET, self._namespace, name)
        if found is None:
            raise PgherdError(f"Secret {name} was removed just now: trying again")
        self._reader.put(SECRET, found)
        return found
