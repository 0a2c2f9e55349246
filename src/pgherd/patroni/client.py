"""Ask a member's Patroni, over its REST API, what it sees; and ask it for what only Patroni may do.

Patroni answers from its own memory and one query to its PostgreSQL, so an answer is cheap and at most a moment
old. Every call has short time limits: a member that hangs (SIGSTOP, cut link) costs the caller at most ``timeout``
seconds. Reading needs no password; calls that change something send basic authentication.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import urllib3

from pgherd.errors import PgherdError, Unavailable
from pgherd.model.topology import Endpoint
from pgherd.patroni.config import REST_USER, RETRY_SECONDS, TTL_SECONDS

CONNECT_SECONDS = 10.0
"""how long a call that may take longer than the usual waits to be connected"""

Role = Literal["primary", "standby", "unknown"]
State = Literal[
    "running", "starting", "restarting", "creating", "stopping", "stopped", "crashed", "failed", "unknown"
]

_STATES: Mapping[str, State] = {
    "running": "running",
    "streaming": "running",
    "in archive recovery": "running",
    "starting": "starting",
    "restarting": "restarting",
    "initializing new cluster": "creating",
    "running custom bootstrap script": "creating",
    "starting after custom bootstrap": "creating",
    "creating replica": "creating",
    "stopping": "stopping",
    "stopped": "stopped",
    "crashed": "crashed",
    "initdb failed": "failed",
    "custom bootstrap failed": "failed",
    "start failed": "failed",
    "restart failed": "failed",
    "stop failed": "failed",
}
_ROLES: Mapping[str, Role] = {
    "primary": "primary",
    "master": "primary",
    "leader": "primary",
    "replica": "standby",
    "standby": "standby",
    "standby_leader": "standby",
    "sync_standby": "standby",
    "quorum_standby": "standby",
}


@dataclass(frozen=True)
class Downstream:
    """One replication connection to a primary."""

    name: str
    """``application_name``: the member's name"""
    streaming: bool
    synchronous: bool
    """a commit waits for it (alone, or as one of a quorum)"""


@dataclass(frozen=True)
class MemberStatus:
    """One member's own view of itself."""

    name: str
    role: Role
    state: State
    leader: bool
    """it holds the leader lock: the group's one true primary"""
    timeline: int | None
    lsn: int | None
    """primary: flushed; standby: received (bytes since the beginning of the log)"""
    replayed_lsn: int | None
    streaming: bool
    """a standby that streams from its primary"""
    sync_standby: bool
    """a standby without which (or without a quorum of which) no commit is acknowledged"""
    pending_restart: bool
    pending_restart_reason: Mapping[str, Mapping[str, Any]]
    """parameter name -> ``old_value`` and ``new_value``, both texts"""
    server_version: int | None
    """for example 180006"""
    system_identifier: str | None
    downstreams: Sequence[Downstream]
    """on a primary: who replicates from it"""
    paused: bool


@dataclass(frozen=True)
class ClusterMember:
    """One member as the group's store knows it (refreshed by each member once a second)."""

    name: str
    role: Role
    state: State
    endpoint: Endpoint | None
    timeline: int | None
    lag_bytes: int | None
    streaming: bool
    sync_standby: bool
    pending_restart: bool


@dataclass(frozen=True)
class ClusterView:
    """One group as its store knows it."""

    scope: str
    members: Sequence[ClusterMember]
    paused: bool

    @property
    def leader(self) -> str | None:
        """Name of the member that holds the leader lock."""
        return next((member.name for member in self.members if member.role == "primary"), None)


def lag_bytes(primary: MemberStatus, standby: MemberStatus) -> int | None:
    """How many bytes of log the standby has not yet received, or None where one of the two doesn't say."""
    if primary.lsn is None or standby.lsn is None:
        return None
    return max(0, primary.lsn - standby.lsn)


class PatroniClient:
    """Calls to the Patronis of one cluster. Safe to share between threads.

    :param password: ``Credentials.rest``
    :param timeout: seconds for a quick call; long ones (restart, switchover) have limits of their own
    :param authority: file of the certificate authority that signed the members' certificates; None: no encryption
    """

    def __init__(self, password: str, *, timeout: float = 2.0, authority: str | None = None) -> None:
        self._headers = urllib3.make_headers(basic_auth=f"{REST_USER}:{password}")
        self._timeout = timeout
        self._scheme = "https" if authority else "http"
        # Members are asked by address; that their cluster's own authority vouches for them is what counts.
        trust: dict[str, Any] = {
            "ca_certs": authority,
            "cert_reqs": "CERT_REQUIRED",
            "assert_hostname": False,
        }
        self._http = urllib3.PoolManager(
            num_pools=64, maxsize=4, retries=False, **(trust if authority else {})
        )

    def member_status(self, endpoint: Endpoint) -> MemberStatus | None:
        """What this member says of itself, or None when it doesn't answer."""
        try:
            # 200 from the leader, 503 from all others, the same body from both
            status, body = self._call("GET", endpoint, "/primary")
            answer = _object(body)
        except PgherdError:
            return None
        return _member_status(answer, leader=status == 200)

    def cluster_view(self, endpoint: Endpoint) -> ClusterView:
        """The whole group as this member's store knows it.

        :raises Unavailable: no answer
        """
        answer = self._get(endpoint, "/cluster")
        members = tuple(_cluster_member(item) for item in answer.get("members", []))
        return ClusterView(str(answer.get("scope", "")), members, bool(answer.get("pause")))

    def get_config(self, endpoint: Endpoint) -> dict[str, Any]:
        """The group's dynamic configuration.

        :raises Unavailable: no answer, or the group has none yet
        """
        return self._get(endpoint, "/config")

    def patch_config(self, endpoint: Endpoint, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``patch`` into the group's dynamic configuration (None removes a key); returns the result.

        All members apply it within a second or two by themselves, reloading PostgreSQL; parameters that need
        a restart show up as ``pending_restart``.

        :raises Unavailable: no answer
        :raises PgherdError: refused
        """
        return _object(self._change("PATCH", endpoint, "/config", patch))

    def reload(self, endpoint: Endpoint) -> None:
        """Make a member read its ``patroni.yml`` again."""
        self._change("POST", endpoint, "/reload", {})

    def restart(self, endpoint: Endpoint, *, only_if_pending: bool = False, timeout: float = 60.0) -> None:
        """Restart this member's PostgreSQL in place; returns when it runs again.

        :param only_if_pending: no-op unless a changed parameter waits for a restart
        :raises Unavailable: no answer
        :raises PgherdError: Patroni refused or the restart failed
        """
        body = {"restart_pending": True} if only_if_pending else {}
        try:
            self._change("POST", endpoint, "/restart", body, timeout=timeout)
        except PgherdError as error:
            if not (only_if_pending and "restart conditions are not satisfied" in str(error)):
                raise

    def switchover(self, endpoint: Endpoint, leader: str, candidate: str | None = None) -> str:
        """Hand the group over, without loss; returns Patroni's sentence once the new primary leads.

        :param endpoint: any member of the group
        :param leader: name of the present primary
        :param candidate: name of the member to lead, or None for the best
        :raises Unavailable: no answer
        :raises PgherdError: Patroni refused (it says why) or it did not happen
        """
        body = {"leader": leader, **({"candidate": candidate} if candidate else {})}
        return self._change("POST", endpoint, "/switchover", body, timeout=30.0)

    def announce_primary(self, coordinator: Endpoint, group: int, leader: str) -> None:
        """Tell the coordinator's Patroni that a segment's new primary serves, as that one's own Patroni does later.

        It believes it only of whom its store calls the group's leader (Patroni's ``handle_event``), and whoever is no
        coordinator does nothing.

        :param leader: name of the new primary
        :raises Unavailable: no answer
        :raises PgherdError: refused
        """
        limits = {"timeout": TTL_SECONDS, "cooldown": RETRY_SECONDS}
        self._change(
            "POST",
            coordinator,
            "/citus",
            {"type": "after_promote", "group": group, "leader": leader, **limits},
        )

    def reinitialize(self, endpoint: Endpoint) -> None:
        """Throw a standby's data away and copy it anew from the primary; returns when that has begun."""
        self._change("POST", endpoint, "/reinitialize", {"force": True})

    def _get(self, endpoint: Endpoint, path: str) -> dict[str, Any]:
        status, body = self._call("GET", endpoint, path)
        if status != 200:
            raise Unavailable(f"Patroni at {endpoint.host}:{endpoint.port} has no {path} yet (HTTP {status})")
        return _object(body)

    def _change(
        self,
        method: str,
        endpoint: Endpoint,
        path: str,
        body: Mapping[str, Any],
        timeout: float | None = None,
    ) -> str:
        status, answer = self._call(method, endpoint, path, body, timeout)
        if status >= 300:
            where = f"Patroni at {endpoint.host}:{endpoint.port}"
            raise PgherdError(
                f"{where} refused {path[1:]}: {answer.strip() or 'no reason given'} (HTTP {status})"
            )
        return answer

    def _call(
        self,
        method: str,
        endpoint: Endpoint,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> tuple[int, str]:
        # Who waits for half a minute for an answer does not give up on a busy machine that is slow to shake hands.
        connect = min(1.0, self._timeout) if timeout is None else min(CONNECT_SECONDS, timeout)
        limits = urllib3.Timeout(connect=connect, read=timeout or self._timeout)
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        try:
            response = self._http.request(
                method,
                f"{self._scheme}://{host}:{endpoint.port}{path}",
                body=None if body is None else json.dumps(body).encode(),
                headers=None if body is None else {**self._headers, "Content-Type": "application/json"},
                timeout=limits,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(
                f"Patroni at {host}:{endpoint.port} does not answer: {_reason(error)}"
            ) from error
        return response.status, response.data.decode("utf-8", "replace")


def _reason(error: BaseException) -> str:
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return getattr(cause, "strerror", None) or type(cause).__name__


def _object(body: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise PgherdError(f"Patroni gave an answer that is not JSON: {body[:80]!r}") from error
    if not isinstance(answer, dict):
        raise PgherdError(f"Patroni gave an unexpected answer: {body[:80]!r}")
    return answer


def _member_status(answer: Mapping[str, Any], *, leader: bool) -> MemberStatus:
    log = answer.get("xlog") or {}
    role = _ROLES.get(str(answer.get("role")), "unknown")
    return MemberStatus(
        name=str((answer.get("patroni") or {}).get("name", "")),
        role=role,
        state=_STATES.get(str(answer.get("state")), "unknown"),
        leader=leader,
        timeline=answer.get("timeline"),
        lsn=log.get("location") or log.get("received_location"),
        replayed_lsn=log.get("replayed_location"),
        streaming=role == "standby" and answer.get("replication_state") == "streaming",
        sync_standby=bool(answer.get("sync_standby") or answer.get("quorum_standby")),
        pending_restart=bool(answer.get("pending_restart")),
        pending_restart_reason=answer.get("pending_restart_reason") or {},
        server_version=answer.get("server_version"),
        system_identifier=answer.get("database_system_identifier"),
        downstreams=tuple(_downstream(item) for item in answer.get("replication") or ()),
        paused=bool(answer.get("pause")),
    )


def _downstream(item: Mapping[str, Any]) -> Downstream:
    return Downstream(
        name=str(item.get("application_name", "")),
        streaming=item.get("state") == "streaming",
        synchronous=item.get("sync_state") in ("sync", "quorum"),
    )


def _cluster_member(item: Mapping[str, Any]) -> ClusterMember:
    lag = item.get("lag")
    return ClusterMember(
        name=str(item.get("name", "")),
        role=_ROLES.get(str(item.get("role")), "unknown"),
        state=_STATES.get(str(item.get("state")), "unknown"),
        endpoint=Endpoint(item["host"], int(item["port"])) if "host" in item and "port" in item else None,
        timeline=item.get("timeline"),
        lag_bytes=lag if isinstance(lag, int) else None,
        streaming=item.get("state") == "streaming",
        sync_standby=item.get("role") in ("sync_standby", "quorum_standby"),
        pending_restart=bool(item.get("pending_restart")),
    )
