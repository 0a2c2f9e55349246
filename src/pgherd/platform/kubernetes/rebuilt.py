"""Groups that were rebuilt, or are being: what follows from what was asked for and what was written down. Pure.

A repair touches no volume that is there: the group's members get new ones, of an epoch that nobody has used
(:mod:`~pgherd.platform.kubernetes.epochs`). What is known of it (:class:`Record`) is in the same ConfigMap as the
cluster's own epoch, which stays as long as the volumes do; which volumes are in force is one value of it, ``own``, and
putting the rebuilt ones in the place of the others is one write. It counts for the epoch that the cluster had when it
was made: a restore in place makes all volumes anew, and if it is taken back, the repaired ones are there again.

The group keeps its place in Patroni's store, which several groups may share. What is remembered there of the data that
are lost (who was synchronous, who led) is removed after that write, and before anybody starts.

What is asked for is an annotation of the cluster for each group, ``{"id": ..., "accept": true}``, and then
``{"id": ..., "confirmed": true}``; with a ``uid`` it is meant for that resource alone. To take it away before the
rebuilt volumes are in force is to call the repair off.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pgherd.model.topology import group_id, group_name
from pgherd.platform.base import CALLED_OFF, DOUBT, PLACING, REPAIR_ENDED
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.epochs import Own

REMEMBERED = 100
"""how many repairs of a group"""


@dataclass(frozen=True)
class Wish:
    """What somebody asks for."""

    id: str
    accept: bool = False
    confirmed: bool = False
    problem: str = ""
    """why it makes no sense"""

    def as_text(self, uid: str) -> str:
        """The annotation's value.

        :param uid: of the resource that it is for
        """
        told = {"confirmed": True} if self.confirmed else {"accept": self.accept}
        return json.dumps({"id": self.id, "uid": uid, **told}, sort_keys=True)


def wish_of(resource: Mapping[str, Any] | None, group: int) -> Wish | None:
    """What a cluster's resource asks for."""
    metadata = (resource or {}).get("metadata", {})
    text = (metadata.get("annotations") or {}).get(names.repair_annotation(group))
    if not text:
        return None
    try:
        value = json.loads(text)
        if value.get("uid") not in (None, metadata.get("uid")):
            return None
        identity = value["id"]
        if not isinstance(identity, str) or not identity:
            raise ValueError("id")
        return Wish(identity, value.get("accept") is True, value.get("confirmed") is True)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Wish(str(text)[:40], problem='it is not {"id": ..., "accept": ...}')


def asked_groups(resource: Mapping[str, Any] | None) -> set[int]:
    """The groups for which a resource asks anything."""
    found = set()
    for key in (resource or {}).get("metadata", {}).get("annotations") or {}:
        if key.startswith(names.REPAIR_ANNOTATION):
            try:
                found.add(group_id(key.removeprefix(names.REPAIR_ANNOTATION)))
            except ValueError:
                continue
    return found


@dataclass(frozen=True)
class Record:
    """What is known of one group's repairs."""

    own: int | None = None
    """the epoch of its volumes; None: the cluster's own"""
    made: int | None = None
    """the one that is being made"""
    kept: int | None = None
    """the one before, until somebody confirms"""
    spent: tuple[int, ...] = ()
    """those that are to go"""
    past: tuple[int, ...] = ()
    """those that are gone"""
    used: tuple[str, ...] = ()
    """ids of those before it: who brings one of them again, in a file that was applied long ago, asks for nothing"""
    id: str | None = None
    """which repair"""
    accept: bool = False
    in_force: bool = False
    """what it has made is the group's own: there is no way but on"""
    state: Mapping[str, Any] | None = None
    """how far it is"""

    @property
    def phase(self) -> str | None:
        """How far it is, in a word; None: none was begun."""
        return None if self.state is None else str(self.state.get("phase"))

    @property
    def is_open(self) -> bool:
        """Whether it has begun and not come to its end; one in doubt waits."""
        return self.phase is not None and self.phase not in REPAIR_ENDED

    @property
    def is_at_work(self) -> bool:
        """Whether it is open, and waits for nobody."""
        return self.is_open and self.phase != DOUBT

    @property
    def may_be_called_off(self) -> bool:
        """Whether it is open, and nothing but what it made would change."""
        return self.is_open and not self.in_force

    @property
    def ids(self) -> tuple[str, ...]:
        """All repairs that it knows; as many as are worth remembering."""
        known = self.used if self.id is None else (*self.used, self.id)
        return tuple(dict.fromkeys(known))[-REMEMBERED:]

    @property
    def numbers(self) -> set[int]:
        """All epochs that it knows."""
        known = (self.own, self.made, self.kept, *self.spent, *self.past)
        return {each for each in known if each is not None}

    def to_go(self, base: int) -> list[int]:
        """Epochs of which nobody needs the group's volumes any more.

        :param base: the cluster's own
        """
        spared = {base if self.own is None else self.own, self.made, self.kept}
        return sorted({*self.spent} - spared)

    def begun(self, wish: Wish, number: int, state: Mapping[str, Any]) -> Record:
        """Another repair begins.

        :param number: the epoch of what it makes
        """
        return replace(self.forgotten(), made=number, id=wish.id, accept=wish.accept, state=state)

    def told(self, state: Mapping[str, Any], *, accept: bool) -> Record:
        """How far it is by now; at its end nothing is being made any more."""
        now = replace(self, accept=self.accept or accept, state=state)
        return now if now.is_open else now.abandoned()

    def abandoned(self) -> Record:
        """What was being made is to go."""
        return replace(self, made=None, spent=self._with(self.made))

    def renewed(self, number: int, state: Mapping[str, Any]) -> Record:
        """What was being made is lost, and made anew.

        :param number: the epoch of what is made now
        """
        return replace(self.abandoned(), made=number, state=state)

    def placed(self, base: int) -> Record:
        """What was made is in force, and what was before is kept; no-op if that was done before."""
        if self.made is None:
            return self
        before = base if self.own is None else self.own
        return replace(self, own=self.made, made=None, kept=before, in_force=True)

    def forgotten(self) -> Record:
        """Nothing is known of this repair any more; what it had made or kept is to go."""
        left = self.abandoned()
        spent = left._with(left.kept)
        none = replace(left, id=None, accept=False, in_force=False, state=None)
        return replace(none, kept=None, spent=spent, used=self.ids)

    def removed(self, epochs: Collection[int]) -> Record:
        """These are gone."""
        left = tuple(each for each in self.spent if each not in epochs)
        return replace(self, spent=left, past=(*self.past, *(each for each in self.spent if each in epochs)))

    def _with(self, number: int | None) -> tuple[int, ...]:
        return self.spent if number is None else tuple(dict.fromkeys((*self.spent, number)))


Records = Mapping[int, Mapping[int, Record]]
"""by the cluster's epoch, and by group"""


def records_from(raw: Any) -> Records:
    """The inverse of :func:`as_json`.

    :raises ValueError: it is none
    """
    try:
        return {
            int(base): {
                int(group): Record(
                    **{**record, **{key: tuple(record.get(key, ())) for key in ("spent", "past", "used")}}
                )
                for group, record in groups.items()
            }
            for base, groups in ({} if raw is None else raw).items()
        }
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def as_json(records: Records) -> dict[str, Any]:
    """For :func:`records_from`."""
    return {
        str(base): {str(group): asdict(record) for group, record in groups.items()}
        for base, groups in records.items()
        if groups
    }


def with_record(records: Records, base: int, group: int, record: Record) -> Records:
    """The same, with another record."""
    return {**records, base: {**records.get(base, {}), group: record}}


def without(records: Records, bases: Collection[int], base: int) -> Records:
    """The same, without what counted for these epochs of the cluster, but for which repairs there were.

    :param base: the cluster's own
    """
    left: Records = {each: groups for each, groups in records.items() if each not in bases}
    gone = [(group, record) for each in bases for group, record in records.get(each, {}).items()]
    for group, record in gone:
        known = left.get(base, {}).get(group, Record())
        if record.ids:
            left = with_record(left, base, group, replace(known, used=(*record.ids, *known.used)))
    return left


def ids(records: Records, group: int) -> set[str]:
    """All repairs of a group that have begun, in whichever epoch of the cluster."""
    return {each for groups in records.values() if group in groups for each in groups[group].ids}


def own(records: Records, base: int) -> Own:
    """Which volumes are those of a cluster of this epoch."""
    rebuilt = {group: record.own for group, record in records.get(base, {}).items() if record.own is not None}
    return Own(base, rebuilt)


def halted(records: Records, base: int) -> set[int]:
    """Groups of which no member may run now."""
    return {group for group, record in records.get(base, {}).items() if record.phase == PLACING}


def numbers(records: Records) -> set[int]:
    """All epochs that repairs have taken, or found."""
    return {number for groups in records.values() for record in groups.values() for number in record.numbers}


def of_epoch(records: Records, base: int, group: int) -> set[int]:
    """All epochs of which a group may have volumes that belong to this epoch of the cluster."""
    known = records.get(base, {}).get(group)
    return {base, *(known.numbers if known is not None else ())}


def refused(
    name: str, group: int, record: Record, wish: Wish | None, *, obstacle: str, kept: Collection[str]
) -> str:
    """Why a wish is not fulfilled; empty: it is, or nothing is asked for.

    :param obstacle: what of the cluster is in the way
    :param kept: volumes that the group's last repair has kept
    """
    if wish is None or wish.confirmed or wish.id == record.id:
        return ""
    title = group_name(group)
    if wish.problem or obstacle:
        return wish.problem or obstacle
    if record.is_open and record.in_force:
        return f"{title} is being rebuilt already: 'pgherd status {name}' shows how far it is"
    if kept:
        return (
            f"what {title} was before its last repair is still kept in {', '.join(kept)}: 'pgherd repair {name} "
            f"--group {title} --confirm' removes it"
        )
    return ""


def wanted(record: Record, wish: Wish | None, refusal: str = "") -> dict[str, Any] | None:
    """What a repair is asked to do (:func:`pgherd.backup.repair.is_due`); None: nothing, and nothing was.

    :param refusal: why what is asked for is not done
    """
    known = None if record.id is None else {"id": record.id, "accept": record.accept}
    if wish is not None and not wish.confirmed and not refusal:
        if wish.id == record.id:
            # A loss once accepted stays so.
            return {"id": wish.id, "accept": wish.accept or record.accept}
        return {"id": wish.id, "accept": wish.accept}
    is_other = wish is None or wish.id != record.id
    if known is not None and is_other and record.may_be_called_off and not refusal:
        return {**known, CALLED_OFF: True}
    return known


def is_confirmed(record: Record, wish: Wish | None) -> bool:
    """Whether somebody has confirmed what is not confirmed yet."""
    return wish is not None and wish.confirmed and wish.id == record.id and record.phase in REPAIR_ENDED


def is_answered(record: Record, wish: Wish) -> bool:
    """Whether what is asked for was done, or was tried: it must not be there any more when the record is not."""
    return record.phase in REPAIR_ENDED if wish.id == record.id else wish.confirmed and record.id is None
