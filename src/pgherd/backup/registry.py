"""Methods, and how to get the one a declaration names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pgherd.backup import keys, pgbackrest
from pgherd.backup.base import BackupMethod, NoBackups
from pgherd.backup.native import Native
from pgherd.backup.object_store import ObjectStore, bucket_url
from pgherd.backup.pgbackrest import PgBackRest, Place
from pgherd.backup.pgbackrest_config import Settings, archives_alone
from pgherd.backup.pgbackrest_program import Here, Runner, WithMembers
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import DirectoryStore, Store
from pgherd.backup.volume_store import VolumeStore
from pgherd.errors import BadInput
from pgherd.model.spec import BackupSpec, PostgresCluster, RecoverySpec, RepositorySpec, parse_bytes
from pgherd.platform.base import Owner, Platform
from pgherd.platform.machine import VOLUMES, Machine, Machines

MOST = 4096
"""uses of backups that are remembered: some for each of as many clusters as an operator looks after"""
_Place = tuple[int, Path, str, bool]


def make_method(platform: Platform, cluster: PostgresCluster) -> BackupMethod:
    """The backups of a cluster, as declared."""
    declared = cluster.spec.backup
    if declared is None or not platform.keeps_backups:
        return NoBackups()
    name = cluster.metadata.name
    folder, machines = platform.backup_folder(name), platform.machines(name)
    return open_method(platform, declared, name, folder, machines, own=True, kept=True)


def open_method(
    platform: Platform,
    declared: BackupSpec | RecoverySpec,
    cluster: str,
    folder: Path,
    machines: Machines | None = None,
    *,
    own: bool = False,
    kept: bool = False,
) -> BackupMethod:
    """The backups of a cluster, declared here or not.

    :param folder: for files that are needed meanwhile: a configuration, locks
    :param machines: where members run, or are put together; None: here
    :param own: it is that cluster which asks, to keep its backups there
    :param kept: who keeps it brings its members keys that were renewed: nobody else does
    """
    let_go, compress = None, None
    if isinstance(declared, BackupSpec):
        compress = declared.compress
        let_go = parse_bytes(declared.wal_limit) if declared.when_full == "drop" else None
    if declared.method == "native":
        owner = partial(platform.owner, cluster) if own else Owner
        return native(platform, declared.repository, cluster, let_go, owner)
    source = _Source(
        platform,
        machines,
        declared.repository,
        cluster,
        folder,
        declared.secret_ref,
        compress or "zst",
        declared.encrypt,
        let_go,
        own,
        kept,
    )
    return _pgbackrest(source, platform.secret_stamp(declared.secret_ref))


_kept: dict[_Place, tuple[_Source, str, PgBackRest]] = {}
"""one for each use of a cluster's backups, however many clusters there are"""
_guard = threading.Lock()


def _pgbackrest(source: _Source, stamp: str) -> PgBackRest:
    """Kept for as long as nothing changes: it remembers what it read of a distant repository."""
    place = (id(source.platform), source.files, source.cluster, source.own)
    with _guard:
        known = _kept.pop(place, None)
        if known is None or known[:2] != (source, stamp):
            known = (source, stamp, PgBackRest(source.place(stamp), source.runner()))
        _kept[place] = known
        while len(_kept) > MOST:
            del _kept[next(iter(_kept))]
        return known[2]


def native(
    platform: Platform,
    repository: RepositorySpec,
    cluster: str,
    let_go: int | None = None,
    owner: Callable[[], Owner] = Owner,
) -> Native:
    """The backups of a cluster, declared or not, in a directory."""
    assert repository.path is not None, "native writes to a path"
    return Native(Path(repository.path) / cluster, platform.programs, let_go=let_go, owner=owner)


def source_of(declared: BackupSpec, cluster: str) -> dict[str, object]:
    """What ``spec.bootstrap.recovery`` says to restore from these backups, as files hold it."""
    raw = declared.model_dump(mode="json", by_alias=True, exclude_none=True)
    names = ("method", "repository", "secretRef", "encrypt")
    return {"cluster": cluster, **{name: raw[name] for name in names if name in raw}}


@dataclass(frozen=True)
class _Source:
    """pgBackRest's repository of one cluster, as declared."""

    platform: Platform
    machines: Machines | None
    repository: RepositorySpec
    cluster: str
    files: Path
    secret: str | None
    compress: str
    encrypt: bool
    let_go: int | None
    own: bool
    kept: bool = False

    def place(self, stamp: str) -> Place:
        """Nothing is read before it is needed."""
        known = (
            self.repository,
            self.cluster,
            self.files,
            self.secret,
            self.compress,
            self.encrypt,
            self.let_go,
        )
        owner = partial(self.platform.owner, self.cluster) if self.own else Owner
        shared = self._folder if archives_alone(self.repository) else None
        return Place(
            self._location,
            f"{known}",
            stamp,
            self._open,
            self._settings,
            owner,
            shared,
            lambda: not self.kept or self.platform.secret_stamp(self.secret) == stamp,
            self.let_go,
        )

    def runner(self) -> Runner:
        """Who runs pgBackRest."""
        if self.machines is not None:
            return WithMembers(self.machines)
        return Here(self.files, self.platform.programs)

    @property
    def _folder(self) -> str:
        if self.repository.path is not None:
            return str(Path(self.repository.path) / self.cluster)
        if self.repository.volume is not None:
            return str(VOLUMES / self.repository.volume.claim_name / self._below)
        return self._below

    @property
    def _below(self) -> str:
        """The cluster's place in the bucket, or on the volume."""
        declared = self.repository
        remote = declared.volume or declared.s3 or declared.gcs or declared.azure
        assert remote is not None, "it is one of these"
        return "/".join(filter(None, (remote.prefix, self.cluster)))

    @property
    def _location(self) -> str:
        if self.repository.volume is not None:
            return f"volume://{self.repository.volume.claim_name}/{self._below}"
        return self._folder if self.repository.path else f"{bucket_url(self.repository)}/{self._folder}"

    def _secrets(self) -> Mapping[str, str]:
        if self.secret is None:
            return {}
        found = self.platform.secret(self.secret)
        keys.check(found, self.repository, encrypt=self.encrypt)
        return found

    def _open(self) -> tuple[Store, Store]:
        secrets = self._secrets()
        plain = self._plain(secrets)
        return (SealedStore(plain, secrets["passphrase"]) if self.encrypt else plain), plain

    def _plain(self, secrets: Mapping[str, str]) -> Store:
        if self.repository.path is not None:
            return DirectoryStore(Path(self._folder))
        if self.repository.volume is not None:
            return VolumeStore(self._location, Path(self._folder), self._holder)
        return ObjectStore(self.repository, self._folder, secrets)

    def _holder(self) -> Machine:
        assert self.repository.volume is not None, "asked only of volumes"
        if self.machines is None:
            raise BadInput("repository.volume: only pods of Kubernetes have it")
        return self.machines.holder(self.repository.volume)

    def _settings(self) -> Settings:
        secrets = self._secrets()
        remote = self.repository.s3 or self.repository.gcs or self.repository.azure
        files = self.files if self.machines is None else self.machines.folder
        own = str(files / "ca.crt") if "ca.crt" in secrets else None
        return Settings(
            self.repository,
            self._folder,
            pgbackrest.cores() if self.machines is None else self.machines.processes,
            self.compress,
            self.encrypt,
            secrets,
            key_file=str(files / "service-account.json") if "service-account" in secrets else None,
            let_go=self.let_go,
            authority=own or (remote.ca_file if remote is not None else None),
        )
