"""Factories of what one look at a cluster may have seen, for tests of the pure planner and the status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.model.spec import PostgresCluster, load
from pgherd.model.topology import Endpoint, Member
from pgherd.patroni.client import MemberStatus
from pgherd.patroni.config import dynamic_config
from pgherd.platform.base import Declaration, MemberView
from pgherd.reconcile.plan import segment_configuration
from pgherd.reconcile.state import Catalogue, MemberState, Observed, Operation


def cluster(segments: int = 2, standbys: int = 1, engine: str = "fdw", **spec: Any) -> PostgresCluster:
    """A declaration named ``shop``."""
    extra = "".join(f"  {key}: {value}\n" for key, value in spec.items())
    return load(
        "apiVersion: pgherd.io/v1alpha1\nkind: PostgresCluster\nmetadata: {name: shop}\n"
        f"spec:\n  engine: {engine}\n"
        f"  coordinator: {{standbys: {standbys}}}\n  segments: {{count: {segments}, standbys: {standbys}}}\n{extra}",
        source="test",
    )


def endpoint(group: int, ordinal: int) -> Endpoint:
    """Where PostgreSQL of that member listens."""
    return Endpoint("127.0.0.1", 7000 + 10 * group + ordinal)


def patroni(
    name: str,
    *,
    leader: bool,
    state: str = "running",
    sync: bool | None = None,
    pending: Mapping[str, tuple[int, int]] | None = None,
) -> MemberStatus:
    """What a member's Patroni says of it. ``pending``: parameter -> (old, new) that wait for a restart."""
    reasons = {
        key: {"old_value": str(old), "new_value": str(new)} for key, (old, new) in (pending or {}).items()
    }
    return MemberStatus(
        name=name,
        role="primary" if leader else "standby",
        state=state,  # type: ignore[arg-type]
        leader=leader,
        timeline=1,
        lsn=1000,
        replayed_lsn=1000,
        streaming=not leader,
        sync_standby=(not leader) if sync is None else sync,
        pending_restart=bool(pending),
        pending_restart_reason=reasons,
        server_version=180006,
        system_identifier="1",
        downstreams=(),
        paused=False,
    )


def member(
    group: int,
    ordinal: int,
    *,
    running: bool = True,
    data: bool = True,
    status: MemberStatus | None = None,
    **says: Any,
) -> MemberState:
    """A member; ``says`` goes to :func:`patroni`. Ordinal 0 leads unless told otherwise."""
    who = Member("shop", group, ordinal)
    view = MemberView(
        who, running, data, endpoint(group, ordinal), Endpoint("127.0.0.1", 8000 + 10 * group + ordinal)
    )
    if not running:
        return MemberState(view, None)
    says.setdefault("leader", ordinal == 0)
    return MemberState(view, status or patroni(who.name, **says))


def look(
    declared: PostgresCluster | None = None,
    *,
    changes: list[MemberState] | None = None,
    gone: list[tuple[int, int]] | None = None,
    admitted: int | None = 2,
    operation: Operation | None = None,
    last: Operation | None = None,
    catalogue: bool = True,
    initialised: bool = True,
    generation: int = 1,
    stopped: bool = False,
    deleting: bool = False,
    members_for: int | None = None,
    cleanup_due: int = 0,
) -> Observed:
    """A healthy cluster as declared, with ``changes`` to single members and without those ``gone``.

    :param members_for: members exist for this many segments, default the declared count
    """
    declared = declared or cluster()
    spec = declared.spec
    members: dict[str, MemberState] = {}
    for group in range((members_for if members_for is not None else spec.segments.count) + 1):
        for ordinal in range((spec.segments if group else spec.coordinator).standbys + 1):
            members[Member("shop", group, ordinal).name] = member(group, ordinal)
    for state in changes or []:
        members[state.member.name] = state
    for where in gone or []:
        members.pop(Member("shop", *where).name, None)
    groups = sorted({state.member.group for state in members.values()} | set(range(spec.segments.count + 1)))
    configs = {group: dynamic_config(declared, group, {}, ()) for group in groups}
    seen = Observed(
        Declaration(declared, stopped, deleting, purge=deleting, generation=generation),
        members,
        configs,
        configs,
        None,
        dict.fromkeys(groups, initialised),
    )
    if not catalogue:
        return seen
    segments = tuple(range(1, (admitted or 0) + 1))
    known = {
        group: [state.view.postgres for state in seen.of_group(group)][: spec.segments.standbys + 1]
        for group in segments
    }
    bare = Catalogue(segments, known, operation, last, cleanup_due)
    object.__setattr__(seen, "catalogue", bare)
    complete = Catalogue(segments, known, operation, last, cleanup_due, segment_configuration(seen))
    object.__setattr__(seen, "catalogue", complete)
    return seen
