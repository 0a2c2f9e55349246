"""What we tell Patroni: one dynamic configuration per group, one file per member.

Patroni keeps the *dynamic* configuration of a group (a scope) in its store and applies it to all members: what
every member must agree on. The *member* file holds what differs from one to the next: addresses, directories,
passwords. Both are built here from the declaration alone: pure functions, no I/O, the same on every platform.

Durations in Patroni's configuration are seconds, sizes bytes, PostgreSQL parameters strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pgherd.model.spec import PostgresCluster
from pgherd.model.spec_hba import hba_lines
from pgherd.model.topology import COORDINATOR, REPLICATION_USER, SUPERUSER, Credentials, Endpoint, Member
from pgherd.model.tuning import memory_parameters

REST_USER = "pgherd"
"""Basic authentication of the REST calls that change something"""

TTL_SECONDS = 20
"""how long a primary that is not heard of keeps the lead; no less is allowed by Patroni"""
RETRY_SECONDS = 3
"""how long a call to the store is tried again, and how long Citus waits for a lock before it ends who has it"""

REMEMBERED = "patroni.dynamic.json"
"""where Patroni keeps the dynamic configuration beside the data: where the store has none it comes before the
file's own, and every copy of the data has it"""

LOOPBACK = ("127.0.0.1/32",)

_MEBIBYTE = 1024 * 1024

BASE_PARAMETERS: Mapping[str, str] = {
    "autovacuum_max_workers": "2",
    "hot_standby": "on",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "max_connections": "200",
    "max_locks_per_transaction": "128",
    "max_logical_replication_workers": "16",
    "max_replication_slots": "32",
    "max_slot_wal_keep_size": "4GB",
    "max_sync_workers_per_subscription": "4",
    "max_wal_senders": "32",
    "max_worker_processes": "32",
    "password_encryption": "scram-sha-256",
    "wal_keep_size": "128MB",
    "wal_level": "logical",
    "wal_log_hints": "on",
    "wal_receiver_status_interval": "1s",
    # How long a standby or a subscription that lost its primary waits before the next try (5 s by default).
    "wal_retrieve_retry_interval": "200ms",
}
"""what is set in every member, below what the engine needs, and the user's own"""

NETWORK_PARAMETERS: Mapping[str, str] = {
    # A node that dies says nothing: without these a commit would wait a minute for its dead standby.
    "tcp_keepalives_count": "3",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_user_timeout": "8s",
    "wal_receiver_timeout": "8s",
    "wal_sender_timeout": "8s",
}
"""the same where members are on several machines"""


def standbys(cluster: PostgresCluster, group_id: int) -> int:
    """How many standbys the declaration asks for in this group."""
    spec = cluster.spec
    return spec.coordinator.standbys if group_id == COORDINATOR else spec.segments.standbys


def dynamic_config(
    cluster: PostgresCluster,
    group_id: int,
    engine_parameters: Mapping[str, str | int | bool],
    preload: Sequence[str],
    *,
    restart_seconds: int = 0,
    networks: Sequence[str] = LOOPBACK,
    local: bool = True,
    tls: bool = False,
) -> dict[str, Any]:
    """What all members of one group agree on; JSON-like, ready for ``PATCH /config`` or ``bootstrap.dcs``.

    :param engine_parameters: PostgreSQL parameters that the engine needs, below the user's own
    :param preload: ``shared_preload_libraries`` of the engine; the user's come after them
    :param restart_seconds: how long a primary that crashed may take to come back where it is, before a standby takes
        over; 0: one takes over at once
    :param networks: CIDRs from which members and clients connect (SCRAM in any case)
    :param local: members share one machine: small buffers by default
    :param tls: connections over the network are encrypted, or refused
    """
    has_standbys = standbys(cluster, group_id) > 0
    return {
        "ttl": TTL_SECONDS,
        "loop_wait": 1,
        "retry_timeout": RETRY_SECONDS,
        # The store may be away for a moment: a primary that still reaches its whole group stays primary.
        "failsafe_mode": True,
        "maximum_lag_on_failover": _lag_on_failover(cluster),
        "synchronous_mode": _synchronous_mode(cluster, has_standbys),
        "synchronous_mode_strict": False,
        "synchronous_node_count": 1,
        # A member alone can only come back itself: give it time. One that does not even start is never waited for.
        "primary_start_timeout": restart_seconds if has_standbys else 300,
        "primary_stop_timeout": 30,
        "ignore_slots": [
            {"type": "logical", "plugin": "pgoutput", "database": database}
            for database in (cluster.spec.database, SUPERUSER)
        ],
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
            "parameters": _parameters(
                cluster,
                {**_memory(cluster, group_id, local), **({} if local else NETWORK_PARAMETERS)},
                engine_parameters,
                preload,
            ),
            "pg_hba": _pg_hba(cluster, networks, tls=tls),
        },
    }


def _lag_on_failover(cluster: PostgresCluster) -> int:
    # With a synchronous standby every acknowledged commit is on the candidate, however far the unacknowledged
    # tail of a bulk load has run ahead: a small bound would only forbid harmless failovers.
    return (16 if cluster.spec.durability == "asynchronous" else 1024) * _MEBIBYTE


def _synchronous_mode(cluster: PostgresCluster, has_standbys: bool) -> bool | str:
    if not has_standbys or cluster.spec.durability == "asynchronous":
        return False
    return "quorum" if cluster.spec.durability == "quorum" else True


def _memory(cluster: PostgresCluster, group_id: int, local: bool) -> dict[str, str]:
    group = cluster.spec.coordinator if group_id == COORDINATOR else cluster.spec.segments
    return memory_parameters(group.resources, local=local)


def _parameters(
    cluster: PostgresCluster,
    surroundings: Mapping[str, str],
    engine_parameters: Mapping[str, str | int | bool],
    preload: Sequence[str],
) -> dict[str, str]:
    user = {name.lower(): _text(value) for name, value in cluster.spec.postgres.parameters.items()}
    engine = {name: _text(value) for name, value in engine_parameters.items()}
    parameters = {**BASE_PARAMETERS, **surroundings, **engine, **user}
    libraries = [*preload, *_split(parameters.pop("shared_preload_libraries", ""))]
    if libraries:
        parameters["shared_preload_libraries"] = ",".join(dict.fromkeys(libraries))
    return dict(sorted(parameters.items()))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _split(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def _pg_hba(cluster: PostgresCluster, networks: Sequence[str], *, tls: bool) -> list[str]:
    host = "hostssl" if tls else "host"
    # pgherd's own two roles come first: no line of the user's can lock Patroni or the engine out.
    own = [f"local replication {REPLICATION_USER} scram-sha-256"]
    own += [
        line
        for network in networks
        for line in (
            f"{host} replication {REPLICATION_USER} {network} scram-sha-256",
            f"{host} all {SUPERUSER} {network} scram-sha-256",
        )
    ]
    # A line that says host takes connections of both kinds; all does not mean replication.
    encrypted = [f"hostnossl {database} all all reject" for database in ("all", "replication")] if tls else []
    defaults = [
        "local all all scram-sha-256",
        *(f"{host} all all {network} scram-sha-256" for network in networks),
    ]
    return [*own, *encrypted, *hba_lines(cluster.spec.postgres.host_based_authentication), *defaults]


def config_patch(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest ``PATCH /config`` that brings ``current`` to ``wanted``; empty when nothing differs.

    Keys of Patroni's own (``pause``, ``slots``) stay; PostgreSQL parameters that are no longer wanted go.
    """
    patch = _difference(current, wanted)
    parameters_now = (current.get("postgresql") or {}).get("parameters") or {}
    gone = set(parameters_now) - set(wanted["postgresql"]["parameters"])
    if gone:
        patch.setdefault("postgresql", {}).setdefault("parameters", {}).update(dict.fromkeys(sorted(gone)))
    return patch


def _difference(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {}
    for key, value in wanted.items():
        now = current.get(key)
        if isinstance(value, Mapping) and isinstance(now, Mapping):
            if deeper := _difference(now, value):
                patch[key] = deeper
        elif now != value:
            patch[key] = value
    return patch


def member_config(
    cluster: PostgresCluster,
    member: Member,
    *,
    postgres: Endpoint,
    rest: Endpoint,
    data_dir: str,
    bin_dir: str,
    pgpass: str,
    credentials: Credentials,
    store: Mapping[str, Any],
    namespace: str,
    dcs_config: Mapping[str, Any],
    server_major: int,
    parameters: Mapping[str, str] | None = None,
    may_found: bool = True,
    mpp: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One member's ``patroni.yml``; holds passwords.

    :param postgres: where its PostgreSQL listens, under the address by which everyone reaches it
    :param rest: the same for Patroni's REST API
    :param pgpass: a file of this member's own, which Patroni overwrites at will
    :param store: Patroni's store section, for example ``{"raft": {...}}``
    :param namespace: the store's folder: of this cluster alone, so that what an earlier cluster of the same name
        left in the store can't be mistaken for this one's
    :param dcs_config: of :func:`dynamic_config`; used if this member founds its group
    :param server_major: PostgreSQL's major version, for initdb's options
    :param may_found: whether it may make a new database when its group has none
    :param mpp: the section by which Patroni knows the cluster's other groups, for example ``{"citus": {...}}``; all
        groups then share one scope, in one namespace
    :param parameters: PostgreSQL parameters of this member alone (socket directory and the like)
    """
    bootstrap = {"dcs": dict(dcs_config), "initdb": initdb_options(server_major)}
    return {
        "scope": member.cluster if mpp else member.scope,
        "namespace": namespace,
        "name": member.name,
        "log": {"level": "INFO", "deduplicate_heartbeat_logs": True},
        "restapi": {
            "listen": _address(rest),
            "connect_address": _address(rest),
            "authentication": {"username": REST_USER, "password": credentials.rest},
        },
        **store,
        **(mpp or {}),
        **({"bootstrap": bootstrap} if may_found else {}),
        "postgresql": {
            "listen": _address(postgres),
            "connect_address": _address(postgres),
            "data_dir": data_dir,
            "bin_dir": bin_dir,
            "pgpass": pgpass,
            "authentication": {
                "superuser": {"username": SUPERUSER, "password": credentials.superuser},
                "replication": {"username": REPLICATION_USER, "password": credentials.replication},
            },
            "basebackup": [{"checkpoint": "fast"}],
            "parameters": dict(parameters or {}),
        },
        "watchdog": {"mode": "off"},
    }


def initdb_options(server_major: int) -> list[Any]:
    """Checksums, UTF-8 and one collation that sorts alike on every machine and in every group."""
    common: list[Any] = ["data-checksums", {"encoding": "UTF8"}, {"auth": "scram-sha-256"}]
    if server_major >= 17:
        return [*common, {"locale": "C"}, {"locale-provider": "builtin"}, {"builtin-locale": "C.UTF-8"}]
    return [*common, {"locale": "C.UTF-8"}]


def _address(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"
