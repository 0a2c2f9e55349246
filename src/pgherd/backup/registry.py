"""Methods, and how to get the one a declaration names."""

from __future__ import annotations

from pathlib import Path

from pgherd.backup.base import BackupMethod, NoBackups
from pgherd.backup.native import Native
from pgherd.model.spec import PostgresCluster, RepositorySpec
from pgherd.platform.base import Platform


def make_method(platform: Platform, cluster: PostgresCluster) -> BackupMethod:
    """The backups of a cluster, as declared."""
    declared = cluster.spec.backup
    if declared is None or not platform.keeps_backups:
        return NoBackups()
    return native(platform, declared.repository, cluster.metadata.name)


def native(platform: Platform, repository: RepositorySpec, cluster: str) -> Native:
    """The backups of a cluster, declared or not, in a repository."""
    return Native(Path(repository.path) / cluster, platform.programs)
