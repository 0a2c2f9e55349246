"""The commands about backups, of one home: making, restoring and scheduling them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgherd.backup import listing, restoring
from pgherd.backup.catalogue import Catalogue
from pgherd.model.backup_kinds import PostgresBackup, PostgresBackupSchedule
from pgherd.model.spec import PostgresCluster
from pgherd.platform.local.platform import LocalPlatform
from pgherd.reconcile import observe
from pgherd.supervisor import backups, repairs
from pgherd.supervisor import schedules as scheduling

Progress = Callable[[dict[str, Any]], None]


class BackupCommands:
    """The rest of the client is :class:`pgherd.supervisor.client.Client`."""

    _platform: LocalPlatform

    def up(self, cluster: PostgresCluster) -> None:
        """Create or change a cluster."""
        raise NotImplementedError

    def ensure_daemon(self) -> None:
        """Start a supervisor unless one runs."""
        raise NotImplementedError

    def _staying(self, name: str) -> PostgresCluster:
        raise NotImplementedError

    def _world(self, name: str) -> observe.World:
        raise NotImplementedError

    def backup(self, name: str, kind: str) -> str:
        """Ask for a backup; returns its id, to :meth:`wait_backup` for.

        :raises BadInput: no such type, none are declared, another one is not done, or the cluster is stopped
        """
        self._staying(name)
        made = backups.request(self._platform, name, kind)
        self.ensure_daemon()
        return made

    def wait_backup(
        self, name: str, backup: str, *, timeout: float = 600.0, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Until a backup has ended.

        :raises PgherdError: it failed, or time ran out
        """
        self.ensure_daemon()
        method = backups.method_of(self._platform, name, None)
        return backups.wait(method, name, backup, timeout=timeout, progress=progress)

    def backups(self, name: str, repository: str | None = None) -> list[dict[str, Any]]:
        """Every backup of a cluster, oldest first.

        :param repository: where they are, if the cluster is gone
        """
        kept = backups.method_of(self._platform, name, repository).repository
        kept.require()
        return [listing.described(each) for each in kept.backups()]

    def restore_points_since(self, name: str) -> str:
        """All are listed."""
        return ""

    def restore_points(self, name: str, repository: str | None = None) -> list[dict[str, Any]]:
        """Every restore point of a cluster, oldest first."""
        return listing.restore_points(backups.method_of(self._platform, name, repository))

    def restore(
        self,
        source: str,
        target: str,
        *,
        repository: str | None = None,
        restore_point: str | None = None,
        time: str | None = None,
        backup: str | None = None,
        inclusive: bool = True,
        declared: PostgresCluster | None = None,
        in_place: bool = False,
        as_clone: bool = False,
    ) -> dict[str, Any]:
        """Declare a new cluster made from backups; :meth:`wait` for it.

        :param inclusive: False: the newest point before the one that is meant
        :param in_place: ``target`` is ``source`` itself, whose data are set aside
        :param as_clone: without backups of its own
        :return: ``restorePoint``, its ``time``, and the ``following`` one (None: there is none)
        :raises BadInput: there is no such point, or the new name is taken
        """
        found = backups.plan(
            self._platform,
            source,
            target,
            repository=repository,
            restore_point=restore_point,
            moment=time,
            backup=backup,
            inclusive=inclusive,
            declared=declared,
            in_place=in_place,
            as_clone=as_clone,
        )
        if in_place:
            self._staying(target)
            backups.restore_in_place(self._platform, target, found)
            self.ensure_daemon()
        else:
            self.up(found.cluster)
        following = found.following
        return {
            "restorePoint": found.point.name,
            "time": found.point.time,
            "following": {"name": following.name, "time": following.time} if following else None,
        }

    def declare_backup(self, backup: PostgresBackup) -> str:
        """Ask for a backup of this name, unless it is there; returns its id.

        :raises BadInput: as :meth:`backup`, or it is there and of another type
        """
        self._staying(backup.spec.cluster)
        made = backups.request(self._platform, backup.spec.cluster, backup.spec.type, backup.metadata.name)
        self.ensure_daemon()
        return made

    def declare_schedule(self, schedule: PostgresBackupSchedule) -> None:
        """Create or change a schedule.

        :raises BadInput: its cluster is not there or has no backups, or the schedule is of another cluster
        """
        self._staying(schedule.spec.cluster)
        scheduling.declare(self._platform, schedule)
        self.ensure_daemon()

    def schedules(self, cluster: str | None = None) -> list[dict[str, Any]]:
        """All schedules, or those of one cluster, by name, and what comes next."""
        return scheduling.listed(self._platform, cluster)

    def suspend_schedule(self, name: str, suspend: bool) -> None:
        """Begin no more backups by this schedule, or again.

        :raises BadInput: there is none of this name
        """
        scheduling.suspend(self._platform, name, suspend)
        self.ensure_daemon()

    def delete_schedule(self, name: str) -> None:
        """Remove a schedule; what it made stays.

        :raises BadInput: there is none of this name
        """
        scheduling.remove(self._platform, name)

    def repository(self, name: str) -> Catalogue:
        """Where a cluster's backups are; refuses one that has none, or is gone."""
        self._platform.declaration(name)
        return backups.method_of(self._platform, name, None).repository

    def restored_point(self, name: str) -> dict[str, Any] | None:
        """The point that a cluster was made of, its time and what follows; None: nobody has written that down."""
        return restoring.made_of(self._platform.workshop(name).read_state() or {})

    def restore_outcome(self, name: str) -> str | None:
        """Why the last restore in place was taken back; None: it was not."""
        return backups.outcome(self._platform, name)

    def confirm_restore(self, name: str) -> None:
        """Remove what a restore in place kept.

        :raises BadInput: nothing is kept, or the restore is not done
        """
        backups.confirm(self._platform, name)

    def repair(self, name: str, group: str, *, accept_data_loss: bool) -> dict[str, Any]:
        """Ask for a group to be rebuilt; ``id`` is to be waited for (None: nothing is), ``message`` says what is done.

        :raises BadInput: no such group, nothing is wrong with it, or there is nothing to rebuild it from
        """
        self._staying(name)
        asked = repairs.request(self._platform, self._world(name), group, accept=accept_data_loss)
        self.ensure_daemon()
        return asked

    def wait_repair(self, name: str, group: str, identity: str, **options: Any) -> dict[str, Any]:
        """Until a repair has ended; its entry of ``status.repairs``.

        :param options: of :func:`pgherd.supervisor.repairs.wait`
        :raises PgherdError: it failed, waits for somebody to accept a loss, or time ran out
        """
        return repairs.wait(self._platform, name, group, identity, see_to_it=self.ensure_daemon, **options)

    def confirm_repair(self, name: str, group: str) -> None:
        """Remove what a repair kept.

        :raises BadInput: nothing is kept, or the repair is not done
        """
        repairs.confirm(self._platform, self._world(name), group)

    def clone(self, source: str, target: str, at: str | None = None) -> dict[str, Any] | None:
        """Declare a new cluster that is a copy of a running one; :meth:`wait` for it.

        :param at: a restore point: what it holds is copied, from the backups
        :return: as of :meth:`restore`; None: it is copied as it is
        :raises BadInput: it is not running, there is no such point, or the new name is taken
        """
        if at is not None:
            return self.restore(source, target, restore_point=at, as_clone=True)
        self.up(backups.plan_clone(self._platform, source, target))
        return None
