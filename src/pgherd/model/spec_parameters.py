"""Which PostgreSQL parameters a declaration may carry, and why not the others.

Parameters that carry a promise of pgherd (where members listen, how they replicate, that a commit is
durable) belong to pgherd. Of a few that moves and standbys live on only the floor is fixed. Everything
else passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

ParameterValue = str | int | float | bool

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?")
_FALSE = {"off", "false", "no", "0"}

_ADDRESSES = "pgherd gives every member its address"
_FILES = "pgherd decides where a member's files are"
_REPLICATION = "pgherd runs the replication; spec.durability and standbys say how"
_BACKUPS = "archiving and recovery are pgherd's backups"
_TLS = "the platform provides the certificates"
_LOGS = "pgherd collects the logs; see `pgherd logs`"
_AUTHENTICATION = "passwords are SCRAM everywhere"

OWNED: Mapping[str, str] = {
    **dict.fromkeys(("port", "listen_addresses", "unix_socket_directories", "bonjour"), _ADDRESSES),
    **dict.fromkeys(
        ("data_directory", "config_file", "hba_file", "ident_file", "external_pid_file", "cluster_name"),
        _FILES,
    ),
    **dict.fromkeys(
        (
            "hot_standby",
            "primary_conninfo",
            "primary_slot_name",
            "synchronous_standby_names",
            "synchronized_standby_slots",
            "wal_log_hints",
        ),
        _REPLICATION,
    ),
    **dict.fromkeys(
        (
            *("archive_mode", "archive_command", "archive_library", "archive_cleanup_command"),
            *("restore_command", "recovery_end_command", "recovery_target", "recovery_target_action"),
            *("recovery_target_inclusive", "recovery_target_lsn", "recovery_target_name"),
            *("recovery_target_time", "recovery_target_timeline", "recovery_target_xid"),
        ),
        _BACKUPS,
    ),
    **dict.fromkeys(("ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file"), _TLS),
    **dict.fromkeys(("logging_collector", "log_directory", "log_filename", "log_destination"), _LOGS),
    "password_encryption": _AUTHENTICATION,
    "default_transaction_read_only": "it would stop the loads and moves of shards",
}
"""Parameters that a declaration may not set, with the reason."""

FLOORS: Mapping[str, int] = {
    "max_connections": 20,
    "max_worker_processes": 8,
    "max_wal_senders": 10,
    "max_replication_slots": 10,
    "max_logical_replication_workers": 4,
}
"""Parameters that may be raised, not lowered below this: standbys and moves use them."""


def parameter_problem(name: str, value: ParameterValue) -> str | None:
    """Why a declaration may not set this parameter to this value, or None if it may."""
    if not _NAME.fullmatch(name):
        return "is not the name of a PostgreSQL parameter"
    if isinstance(value, str) and any(ord(character) < 32 for character in value):
        return "must be one line without control characters"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    key, text = name.lower(), _text(value)
    if key in OWNED:
        return f"is pgherd's to set: {OWNED[key]}"
    if key == "wal_level" and text != "logical":
        return f"must stay logical: moves of shards replicate logically, got {text}"
    if key in {"fsync", "full_page_writes"} and text in _FALSE:
        return "must stay on: acknowledged commits would not survive a crash"
    if key in FLOORS and (not text.isdecimal() or int(text) < FLOORS[key]):
        return f"must be a whole number >= {FLOORS[key]}: standbys and moves of shards use them, got {value}"
    return None


def weakens_durability(name: str, value: object, durability: object) -> bool:
    """Whether the parameter lets a commit be acknowledged before ``spec.durability`` is fulfilled."""
    return (
        name.lower() == "synchronous_commit"
        and durability != "asynchronous"
        and _text(value) not in {"on", "true", "yes", "1", "remote_apply"}
    )


def same_but_for_case(names: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Pairs of names that PostgreSQL, which ignores case, would take for the same."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.lower(), name)
        if first != name:
            yield name, first


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).strip().lower()
