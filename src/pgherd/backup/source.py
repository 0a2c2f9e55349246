"""Where the backups are that a cluster is to be made from, where its declaration leaves that to another cluster's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.backup import pauses, registry, wish
from pgherd.backup.base import BackupMethod
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, one_line
from pgherd.model.spec import PostgresCluster
from pgherd.platform import origin
from pgherd.platform.base import Platform

_FIELD = "spec.bootstrap.recovery.cluster"


def is_to_be_found(cluster: PostgresCluster) -> bool:
    """Whether the declaration leaves it to another cluster's."""
    recovery = cluster.spec.bootstrap.recovery if cluster.spec.bootstrap is not None else None
    return recovery is not None and recovery.repository is None


def find(platform: Platform, cluster: PostgresCluster) -> dict[str, Any]:
    """What is remembered as :data:`pgherd.platform.origin.FOUND`: what is declared of the other cluster now.

    :raises BadInput: there is none, or it is declared to have no backups
    :raises PgherdError: nobody can tell
    """
    assert cluster.spec.bootstrap is not None, "asked only where is_to_be_found"
    assert cluster.spec.bootstrap.recovery is not None, "asked only where is_to_be_found"
    source = cluster.spec.bootstrap.recovery.cluster
    try:
        backup = platform.declaration(source).cluster.spec.backup
        owner = platform.owner(source).id if backup is not None else ""
    except NoSuchCluster:
        raise BadInput(
            f"{_FIELD}: there is no cluster {source} here: declare it, or name with repository where its backups are"
        ) from None
    if backup is None:
        raise BadInput(
            f"{_FIELD}: {source} has no backups: declare its spec.backup, or name with repository where backups of it "
            "are"
        )
    return {"recovery": registry.source_of(backup, source), "owner": owner}


def require(platform: Platform, cluster: PostgresCluster) -> None:
    """Refuse to declare a new cluster, or what it is made of anew, that could only wait for its backups.

    :raises BadInput: the cluster whose backups these are is not there, or has none
    """
    name = cluster.metadata.name
    if not is_to_be_found(cluster) or any(view.has_data for view in platform.members(name).values()):
        return
    try:
        before = platform.declaration(name).cluster
    except NoSuchCluster:
        before = None
    if before is None or wish.told(before) != wish.told(cluster):
        find(platform, cluster)


def remembered(
    platform: Platform, cluster: PostgresCluster, known: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """What is known of a making, with the place of its backups, which is written down before anything is read there.

    :return: None: they are waited for, which is written down, and told once
    :raises PgherdError: it can't be written down
    """
    if not is_to_be_found(cluster) or origin.recovery({**known, wish.KEY: wish.told(cluster)}) is not None:
        return known
    begun = {"phase": "requested", **known, wish.KEY: wish.told(cluster)}
    workshop = platform.workshop(cluster.metadata.name)
    try:
        found = {**begun, **pauses.NO_PAUSE, origin.FOUND: find(platform, cluster)}
    except PgherdError as error:
        awaited = pauses.Awaited(f"{one_line(error)}: it is waited for")
        waiting = {**begun, **pauses.after_pause(awaited, known)}
        if waiting != known:
            workshop.write_state(waiting)
            platform.announce(cluster.metadata.name, f"can't be made yet: {awaited}", failed=True)
        return None
    workshop.write_state(found)
    return found


def require_its(method: BackupMethod, cluster: str, owner: str) -> None:
    """Refuse another cluster's backups that are where this cluster's are declared to be; wait for its first one.

    :param cluster: whose backups are wanted
    :param owner: the id that their repository must name, if any; empty: whoever's they are
    :raises BadInput: they are another's
    :raises Awaited: there is none yet
    """
    if not owner:
        return
    repository = method.repository
    is_there = repository.is_there()
    if is_there and (known := repository.identity().owner) not in ("", owner):
        raise BadInput(
            f"{_FIELD}: {method.location} holds the backups of another cluster than {cluster}, {known}: name with "
            "repository where these are that are meant"
        )
    if not is_there or not any(each.phase == "done" for each in repository.backups()):
        raise pauses.Awaited(f"{_FIELD}: {cluster} has no backup yet at {method.location}: it is waited for")
