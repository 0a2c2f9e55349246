"""Methods, and how to get the one a declaration names."""

from __future__ import annotations

from pathlib import Path

from pgherd.backup.base import BackupMethod, NoBackups
from pgherd.backup.native import Native
from pgherd.model.spec import PostgresCluster, RepositorySpec, parse_bytes
from pgherd.platform.base import Platform


def make_method(platform: Platform, cluster: PostgresCluster) -> BackupMethod:
    """The backups of a cluster, as declared."""
    declared = cluster.spec.backup
    if declared is None or not platform.keeps_backups:
        return NoBackups()
    let_go = parse_bytes(declared.wal_limit) if declared.when_full == "drop" else None
    root = Path(declared.repository.path) / cluster.metadata.name
    return Native(root, platform.programs, let_go=let_go)


def native(platform: Platform, repository: RepositorySpec, cluster: str) -> Native:
    """The backups of a cluster, declared or not, in a repository."""
    return Native(Path(repository.path) / cluster, platform.programs)
