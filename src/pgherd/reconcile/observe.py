"""One look at the world: platform, Patroni, and the coordinator database.

Everything is asked anew each time. What can't be asked is None in the result, never a guess.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import psycopg

from pgherd.backup import far_view, restoring
from pgherd.backup.registry import make_method
from pgherd.backup.view import view as view_backups
from pgherd.engine.base import Engine
from pgherd.errors import PgherdError
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import COORDINATOR, Endpoint
from pgherd.operations import store
from pgherd.patroni.client import PatroniClient
from pgherd.patroni.config import dynamic_config
from pgherd.platform.base import Declaration, MemberView, Platform
from pgherd.postgres.connections import Connection, Databases
from pgherd.reconcile import access
from pgherd.reconcile.clones import with_clones
from pgherd.reconcile.state import Catalogue, GroupSize, MemberState, Observed, Operation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """What the loop works on: a cluster's platform, databases and engine."""

    name: str
    platform: Platform
    databases: Databases
    engine: Engine
    patroni: PatroniClient


def connect(
    platform: Platform, name: str, make_engine: Callable[[PostgresCluster, Databases], Engine]
) -> World:
    """The world of one cluster.

    :raises NoSuchCluster: there is none of this name
    """
    cluster = platform.declaration(name).cluster
    credentials = platform.credentials(name)
    databases = Databases(
        cluster.spec.database,
        credentials,
        lambda: addresses(platform, name),
        options=platform.connection_options(name),
    )
    patroni = _patroni(credentials.rest, platform.authority(name))
    return World(name, platform, databases, make_engine(cluster, databases), patroni)


@lru_cache(maxsize=1024)
def _patroni(password: str, authority: str | None) -> PatroniClient:
    """One client per cluster: its connections are kept."""
    return PatroniClient(password, authority=authority)


def addresses(platform: Platform, name: str) -> Mapping[int, Sequence[Endpoint]]:
    """Every group's endpoints as the platform has them now, by ordinal."""
    groups: dict[int, list[Endpoint]] = {}
    for view in sorted(platform.members(name).values(), key=lambda view: view.member):
        groups.setdefault(view.member.group, []).append(view.postgres)
    return groups


def primaries_in(seen: Observed) -> dict[int, Endpoint]:
    """Where each group's primary listens, as one look saw it; groups without one are left out."""
    groups = sorted({state.member.group for state in seen.members.values()})
    return {group: primary.view.postgres for group in groups if (primary := seen.primary(group)) is not None}


def observe(world: World, *, sizes: bool = False) -> Observed:
    """Look once.

    :param sizes: also ask each segment for its shards' sizes, what its engine is and what it can't read (a query each)
    """
    # Asked twice: it may be decided meanwhile, or be asked for, with other segments.
    pending = restoring.pending(world.platform, world.name)
    declaration = world.platform.declaration(world.name)
    pending = pending or restoring.pending(world.platform, world.name)
    # Before the question whether that is to be done: a status that knows of the wish must know what becomes of it.
    restore = restoring.in_place(world.platform, world.name)
    if (recovery := restoring.state(world.platform, declaration.cluster)) is not None:
        return replace(_of_recovery(world, declaration, recovery), restore=restore)
    declaration = replace(declaration, cluster=restoring.as_before(declaration.cluster, pending))
    members = _members(world.patroni, world.platform.members(world.name))
    repairs = restoring.repairs(world.platform, world.name)
    bare = Observed(
        declaration,
        members,
        {},
        _wanted_configs(world, declaration, members),
        None,
        {},
        restore=restore,
        repairs=repairs,
        admitted_before=_admitted_before(world),
    )
    with ThreadPoolExecutor(max_workers=8) as pool:
        groups = sorted({state.member.group for state in members.values()})
        configs = dict(zip(groups, pool.map(lambda group: _config(world, bare, group), groups), strict=True))
        prepared = dict(
            zip(groups, pool.map(lambda group: _prepared(world, bare, group), groups), strict=True)
        )
    known = {group: state for group, state in prepared.items() if state is not None}
    seen = replace(bare, configs=configs, initialised=known)
    if sizes and declaration.cluster.spec.backup is not None:
        method = make_method(world.platform, declaration.cluster)
        answering = [group for group in known if seen.primary(group) is not None]
        schedules = world.platform.schedules(world.name)
        backups = far_view.look(
            method,
            lambda: view_backups(method, world.databases, declaration.cluster, answering, schedules),
        )
        seen = replace(seen, backups=backups)
    # Where members may begin what is known from a while ago does not do.
    if COORDINATOR in known and (sizes or seen.has_beginnings()):
        seen = replace(seen, unfit=_unfit(world))
    if sizes or access.is_to_change(seen):
        declared = declaration.cluster.spec.postgres.host_based_authentication
        seen = replace(seen, unread=access.unread(world.databases, declared, access.servers(seen)))
    if known.get(COORDINATOR):
        return _with_catalogue(world, seen, sizes=sizes)
    return replace(seen, copies=_copies(world)) if COORDINATOR in known else seen


def _copies(world: World) -> Collection[int] | None:
    """Which groups begin as copies, where nothing else can be asked: a node that was registered a moment ago has to be
    fenced first, for which it has to run."""
    try:
        return tuple(world.engine.clones())
    except (PgherdError, psycopg.Error):
        return None


def _of_recovery(world: World, declaration: Declaration, recovery: Mapping[str, Any]) -> Observed:
    """While a cluster is made from a backup there is nobody to ask."""
    members = {name: MemberState(view) for name, view in world.platform.members(world.name).items()}
    return Observed(
        declaration,
        members,
        {},
        _wanted_configs(world, declaration, members),
        None,
        {},
        operation_status=restoring.operation_status(recovery),
        recovery=recovery,
    )


def _admitted_before(world: World) -> tuple[int, ...]:
    """What the status remembers of the catalogue: it is needed just when that can't be asked."""
    told = (world.platform.read_status(world.name) or {}).get("admitted")
    return tuple(group for group in told if type(group) is int) if isinstance(told, list) else ()


def _members(patroni: PatroniClient, views: Mapping[str, MemberView]) -> dict[str, MemberState]:
    def ask(view: MemberView) -> MemberState:
        return MemberState(view, patroni.member_status(view.rest) if view.running else None)

    if not views:
        return {}
    with ThreadPoolExecutor(max_workers=min(16, len(views))) as pool:
        return dict(zip(views, pool.map(ask, views.values()), strict=True))


def _wanted_configs(
    world: World, declaration: Declaration, members: Mapping[str, MemberState]
) -> dict[int, Mapping[str, Any]]:
    declared = set(range(declaration.cluster.spec.segments.count + 1))
    return {
        group: wanted_config(world.platform, world.engine, declaration.cluster, group)
        for group in sorted(declared | {state.member.group for state in members.values()})
    }


def wanted_config(platform: Platform, engine: Engine, cluster: PostgresCluster, group: int) -> dict[str, Any]:
    """Patroni's dynamic configuration as it should be in this group."""
    parameters = {
        **platform.parameters,
        **engine.parameters(group, cluster.spec.shard_count),
        **make_method(platform, cluster).parameters(group),
    }
    return dynamic_config(
        cluster,
        group,
        parameters,
        engine.preload_libraries(),
        restart_seconds=engine.restart_seconds,
        networks=platform.networks,
        local=platform.shared_machine,
        tls=platform.tls,
    )


def _config(world: World, seen: Observed, group: int) -> Mapping[str, Any] | None:
    for state in seen.of_group(group):
        if state.patroni is None:
            continue
        try:
            return world.patroni.get_config(state.view.rest)
        except PgherdError:
            continue
    return None


def _prepared(world: World, seen: Observed, group: int) -> bool | None:
    """Whether the engine's objects are there; None if the primary can't be asked."""
    if seen.primary(group) is None:
        return None
    try:
        return world.engine.is_initialised(group)
    except (PgherdError, psycopg.Error):
        return None


def _unfit(world: World) -> Sequence[str] | None:
    """None: nobody can tell now, and what was known before goes on to hold."""
    try:
        return world.engine.unfit()
    except (PgherdError, psycopg.Error) as error:
        logger.info("nodes can't be compared: %s", error)
        return None


def _with_catalogue(world: World, seen: Observed, *, sizes: bool) -> Observed:
    try:
        with world.databases.connect(COORDINATOR) as connection:
            catalogue = _catalogue(world.engine, connection)
        running, last = store.statuses(world.databases)
        return replace(
            seen,
            wanted_configs=with_clones(
                seen.wanted_configs,
                catalogue.clones,
                seen.configs,
                primaries_in(seen),
                catalogue.clone_parameters,
            ),
            catalogue=catalogue,
            sizes=_sizes(world.engine, catalogue.segments) if sizes else {},
            operation_status=running,
            last_operation_status=last,
        )
    except (PgherdError, psycopg.Error) as error:
        logger.info("the coordinator can't be asked: %s", error)
        return seen


def _catalogue(engine: Engine, connection: Connection) -> Catalogue:
    rows = connection.execute(
        "SELECT id, kind, phase, to_segments, (parameters->>'generation')::bigint, finished_at IS NOT NULL, error"
        " FROM pgherd.operations ORDER BY finished_at IS NULL DESC, id DESC LIMIT 2"
    ).fetchall()
    operations = [Operation(*row) for row in rows]
    due = connection.execute("SELECT count(*) FROM pgherd.cleanup").fetchone()
    # Before the segments: the commit that makes a copy one takes it from here to there, and one of them has to have it.
    clones = engine.clones()
    configuration = connection.execute("SELECT member, role, mode, status FROM pgherd.segment_configuration")
    return Catalogue(
        tuple(engine.segments()),
        engine.endpoints(),
        next((operation for operation in operations if not operation.finished), None),
        next((operation for operation in operations if operation.finished), None),
        due[0] if due else 0,
        {row[0]: (row[1], row[2], row[3]) for row in configuration},
        clones,
        engine.clone_parameters(),
    )


def _sizes(engine: Engine, segments: Sequence[int]) -> dict[int, GroupSize]:
    sizes = {segment: GroupSize(0, 0) for segment in segments}
    try:
        groups = engine.shard_groups()
    except (PgherdError, psycopg.Error) as error:
        # A segment that does not answer must not hide what the coordinator says.
        logger.info("sizes can't be asked: %s", error)
        return {}
    for group in groups:
        before = sizes.get(group.segment, GroupSize(0, 0))
        sizes[group.segment] = GroupSize(before.shards + 1, before.bytes + group.bytes)
    return sizes
