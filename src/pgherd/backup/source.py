"""Where the backups are that a cluster is to be made from, where its declaration leaves that to another cluster's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgherd.backup import pauses, registry, wish
from pgherd.backup.base import BackupMethod
from pgherd.backup.catalogue import Catalogue
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, Refused, Unavailable, one_line
from pgherd.model.spec import DeclaredRecoverySpec, PostgresCluster
from pgherd.platform import origin
from pgherd.platform.base import Platform

_FIELD = "spec.bootstrap.recovery.cluster"


def is_to_be_found(cluster: PostgresCluster) -> bool:
    """Whether the declaration leaves it to another cluster's."""
    recovery = _declared(cluster)
    return recovery is not None and recovery.repository is None


def _declared(cluster: PostgresCluster) -> DeclaredRecoverySpec | None:
    return cluster.spec.bootstrap.recovery if cluster.spec.bootstrap is not None else None


def find(platform: Platform, cluster: PostgresCluster) -> dict[str, Any]:
    """What is remembered as :data:`pgherd.platform.origin.FOUND`: what is declared of the other cluster now.

    :raises BadInput: there is none, or it is declared to have no backups
    :raises PgherdError: nobody can tell
    """
    recovery = _declared(cluster)
    assert recovery is not None, "asked only where is_to_be_found"
    source = recovery.cluster
    try:
        backup = platform.declaration(source).cluster.spec.backup
        owner = platform.owner(source).id if backup is not None else ""
    except NoSuchCluster:
        raise BadInput(
            f"{_FIELD}: there is no cluster {source} here: declare it, or name with repository where its backups are"
        ) from None
    except BadInput as error:
        raise BadInput(
            f"{_FIELD}: what is declared of {source} makes no sense ({one_line(error)}): mend it"
        ) from error
    if backup is None:
        raise BadInput(
            f"{_FIELD}: {source} has no backups: declare its spec.backup, or name with repository where backups of it "
            "are"
        )
    if not owner:
        # Between two looks; whose its backups must be is not known, and any others would be taken for them.
        raise Unavailable(f"{_FIELD}: {source} is being deleted")
    return {"recovery": registry.source_of(backup, source), "owner": owner}


def require(platform: Platform, cluster: PostgresCluster) -> None:
    """Refuse to declare a new cluster, or what it is made of anew, that could only wait for its backups.

    :raises BadInput: the cluster whose backups these are is not there, or has none
    """
    name = cluster.metadata.name
    if not is_to_be_found(cluster) or any(view.has_data for view in platform.members(name).values()):
        return
    # Nor is it asked for where that is known already, or while the cluster's own data are set aside.
    if _is_known(wish.standing(platform.workshop(name).read_state() or {}, cluster), cluster):
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
    if not is_to_be_found(cluster):
        return known
    if _is_known(known, cluster):
        return _followed(platform, cluster, known)
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


def _is_known(known: Mapping[str, Any], cluster: PostgresCluster) -> bool:
    """Whether what counts of a making says where its backups are."""
    return origin.recovery({**known, wish.KEY: wish.told(cluster)}) is not None


def _followed(platform: Platform, cluster: PostgresCluster, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, with how to get at the backups as the other cluster says by now. As long as nothing could be read of
    them it says where they are, too: nobody waits at a place that was a typo, or was another cluster's of that name."""
    if "settled" in known.get("steps", ()):
        return known
    try:
        now = find(platform, cluster)
    except PgherdError:  # it may be gone: what it has left is where it was
        return known
    before = known[origin.FOUND]
    if now == before or not (_is_awaited(known) or _place(now) == _place(before)):
        return known
    followed = {**known, origin.FOUND: now}
    platform.workshop(cluster.metadata.name).write_state(followed)
    return followed


def _is_awaited(known: Mapping[str, Any]) -> bool:
    """Whether nothing was there to be read. A store that is silent may hold what is wanted: that counts its tries."""
    return "point" not in known and bool(known.get("waits")) and not known.get("tries")


def _place(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**found, "recovery": wish.without_access(found["recovery"])}


def require_its(platform: Platform, cluster: PostgresCluster, method: BackupMethod, owner: str) -> None:
    """Refuse another cluster's backups that are where those are declared to be that are wanted; wait for the first one.

    :param cluster: the one that is made of them
    :param owner: the id that their repository must name, if any; empty: whoever's they are
    :raises BadInput: they are another's
    :raises Awaited: there is none yet, or who asks is refused
    """
    recovery = _declared(cluster)
    if not owner or recovery is None:
        return
    try:
        known, has_any = _look(method.repository)
    except Refused as error:
        raise pauses.Awaited(f"{one_line(error)}: it is waited for") from error
    if known not in ("", owner):
        raise BadInput(
            f"{_FIELD}: {method.location} holds the backups of another cluster than {recovery.cluster}, {known}: name "
            "with repository where these are that are meant"
        )
    if not has_any:
        none = f"{recovery.cluster} has no backup yet at {method.location}: it is waited for"
        gone = _why_gone(platform, cluster)
        raise pauses.Awaited(f"{gone}; {none}" if gone else f"{_FIELD}: {none}")


def _look(repository: Catalogue) -> tuple[str, bool]:
    """Whose it is, and whether it has any backup."""
    if not repository.is_there():
        return "", False
    return repository.identity().owner, any(each.phase == "done" for each in repository.backups())


def _why_gone(platform: Platform, cluster: PostgresCluster) -> str:
    """Why nobody is there to make a first backup; empty: somebody is, as far as is known."""
    try:
        find(platform, cluster)
    except BadInput as error:
        return one_line(error)
    except PgherdError:
        pass
    return ""
