"""What the commands about backups are told where clusters run in Kubernetes: not yet."""

from __future__ import annotations

from typing import Any, NoReturn

from pgherd.errors import BadInput


class WithoutBackups:
    """Refuses every command about backups in one line."""

    def backup(self, name: str, kind: str) -> NoReturn:
        raise _refusal()

    def wait_backup(self, name: str, backup: str, **options: Any) -> NoReturn:
        raise _refusal()

    def backups(self, name: str, repository: str | None = None) -> NoReturn:
        raise _refusal()

    def restore_points(self, name: str, repository: str | None = None) -> NoReturn:
        raise _refusal()

    def restore(self, source: str, target: str, **options: Any) -> NoReturn:
        raise _refusal()

    def drill(self, name: str, **options: Any) -> NoReturn:
        raise _refusal()

    def restore_outcome(self, name: str) -> NoReturn:
        raise _refusal()

    def confirm_restore(self, name: str) -> NoReturn:
        raise _refusal()

    def repair(self, name: str, group: str, *, accept_data_loss: bool) -> NoReturn:
        raise _refusal()

    def wait_repair(self, name: str, group: str, identity: str, **options: Any) -> NoReturn:
        raise _refusal()

    def confirm_repair(self, name: str, group: str) -> NoReturn:
        raise _refusal()

    def clone(self, source: str, target: str) -> NoReturn:
        raise _refusal()


def _refusal() -> BadInput:
    return BadInput("backups are not available on kubernetes in this version: they are on --platform local")
