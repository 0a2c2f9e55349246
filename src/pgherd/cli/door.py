"""What the commands ask of a platform, whichever it is.

:class:`pgherd.supervisor.client.Client` answers for this machine, :class:`pgherd.remote.client.KubernetesClient` for a
Kubernetes cluster. Neither knows of this file; the type checker holds them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pgherd.engine.base import Finding
    from pgherd.model.backup_kinds import PostgresBackup, PostgresBackupSchedule
    from pgherd.model.spec import PostgresCluster
    from pgherd.operations.copy import Summary, Tell


class Door(Protocol):
    """The clusters of one home or namespace. Wishes are durable when a method returns, fulfilled later."""

    carries_sessions: bool
    """programs that :meth:`psql_command` names need this process for as long as they run"""

    # wishes

    def up(self, cluster: PostgresCluster) -> None:
        """Create or change a cluster."""

    def scale(self, name: str, segments: int) -> None:
        """Declare another number of segments."""

    def pause(self, name: str) -> None:
        """Start no further move."""

    def resume(self, name: str) -> None:
        """Undo :meth:`pause`."""

    def cancel(self, name: str) -> None:
        """Call the running operation off."""

    def rebalance(self, name: str) -> int:
        """Request a rebalance; returns the operation's id."""

    def stop(self, name: str) -> None:
        """Processes gone, data kept."""

    def start(self, name: str) -> None:
        """Undo :meth:`stop`."""

    def delete(self, name: str, *, purge: bool) -> None:
        """Ask for the cluster to go; with ``purge`` its data too."""

    def require_known(self, name: str) -> None:
        """Refuse what can't be deleted: nothing of this name is here, not even data that a deletion kept."""

    # backups

    def backup(self, name: str, kind: str) -> str:
        """Ask for a backup; returns its id."""

    def wait_backup(
        self,
        name: str,
        backup: str,
        *,
        timeout: float = 600.0,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Until a backup has ended."""

    def backups(self, name: str, repository: str | None = None) -> list[dict[str, Any]]:
        """Every backup, oldest first."""

    def restore_points(self, name: str, repository: str | None = None) -> list[dict[str, Any]]:
        """Every restore point, oldest first."""

    def restore_points_since(self, name: str) -> str:
        """From which time on all are listed; empty: all are."""

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
    ) -> dict[str, Any]:
        """Declare a new cluster made from backups."""

    def drill(
        self,
        name: str,
        *,
        keep: bool = False,
        tables: Sequence[str] = (),
        timeout: float = 3600.0,
        told: Callable[[str], None] = lambda text: None,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Restore the newest point into a scratch cluster, examine it, remove it."""

    def drills(self, name: str) -> list[dict[str, Any]]:
        """The last drills of a cluster, oldest first."""

    def declare_backup(self, backup: PostgresBackup) -> str:
        """Ask for a backup of this name, unless it is there; returns its id."""

    def declare_schedule(self, schedule: PostgresBackupSchedule) -> None:
        """Create or change a schedule."""

    def schedules(self, cluster: str | None = None) -> list[dict[str, Any]]:
        """All schedules, or those of one cluster, by name, and what comes next."""

    def suspend_schedule(self, name: str, suspend: bool) -> None:
        """Begin no more backups by this schedule, or again."""

    def delete_schedule(self, name: str) -> None:
        """Remove a schedule; what it made stays."""

    def restored_point(self, name: str) -> dict[str, Any] | None:
        """The point that a cluster was made of, its time and what follows; None: nobody has written that down."""

    def restore_outcome(self, name: str) -> str | None:
        """Why the last restore in place was taken back."""

    def confirm_restore(self, name: str) -> None:
        """Remove what a restore in place kept."""

    def repair(self, name: str, group: str, *, accept_data_loss: bool) -> dict[str, Any]:
        """Ask for a group to be rebuilt."""

    def wait_repair(
        self, name: str, group: str, identity: str, *, timeout: float, progress: Any
    ) -> dict[str, Any]:
        """Until a repair has ended, or waits for somebody."""

    def confirm_repair(self, name: str, group: str) -> None:
        """Remove what a repair kept."""

    def clone(self, source: str, target: str, at: str | None = None) -> dict[str, Any] | None:
        """Declare a new cluster that is a copy of another; of which restore point, None: as it is now."""

    # looks

    def names(self) -> list[str]:
        """All clusters, sorted."""

    def declared(self, name: str) -> PostgresCluster:
        """The declaration in force."""

    def generation(self, name: str) -> int:
        """The declaration's generation."""

    def status(self, name: str) -> dict[str, Any]:
        """The status (DESIGN section 3)."""

    def wait(
        self,
        name: str,
        *,
        generation: int | None = None,
        operation: int = 0,
        timeout: float = 600.0,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Until the cluster is as declared."""

    def wait_gone(self, name: str, timeout: float = 120.0) -> None:
        """Until a deletion is complete."""

    def dsn(self, name: str, *, role: str = "rw", group: str = "coordinator") -> str:
        """One libpq URI, password included."""

    def psql_command(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Program and environment of a session as the owner."""

    def logs(self, name: str, member: str | None, follow: bool) -> Iterator[str]:
        """Log lines of one member, or of all."""

    def check(self, name: str) -> list[Finding]:
        """Everything that the catalogue and the world disagree on."""

    def plan_rebalance(self, name: str) -> list[dict[str, Any]]:
        """The moves that a rebalance would make."""

    def copy_to(self, source: str, destination: str, tell: Tell, parallel: int) -> Summary:
        """Copy a cluster's database to another cluster, or go on with it."""

    # what Patroni does

    def switchover(self, name: str, group: str, to: str | None) -> str:
        """Let another member of a group lead. Returns the new primary's name."""

    def restart(
        self, name: str, group: str | None, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        """Restart PostgreSQL of every member, one at a time."""
