"""A group's beginning, and starting over when it was cut short.

Patroni notes in its store that a member has begun to found the group, and from then on all others wait for it: if all
is killed right there, they would wait for ever. So each group gets a place in the store under a random name, written
down in ``groups.json`` before anything starts, and as long as nobody has made anything in the group, a founding that
lost its founder is given up: what it left is removed and the group gets a new place.

Where the engine has Patroni know all groups of a cluster (one scope, one namespace), a group can't get a new place: its
part of the common one is erased instead, when none of its members runs.

Data is removed here only if *both* hold: the record says that the group was never seen with anything but what initdb
makes, and no data directory of the group has more now.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from pgherd.errors import PgherdError
from pgherd.model.topology import Member, group_name
from pgherd.patroni.config import REMEMBERED
from pgherd.platform.local import files
from pgherd.platform.local.layout import Layout

logger = logging.getLogger(__name__)


Erase = Callable[[str], None]
"""empties a group's part of a namespace that the cluster's groups share"""


@dataclass(frozen=True)
class GroupRecord:
    """What is written down of one group."""

    namespace: str
    """its folder in Patroni's store"""
    founded: bool = False
    """users' data was seen: from now on nothing is ever started over"""
    started: tuple[str, ...] = ()
    """members started since this place was given"""


class Foundings:
    """The groups of one home. Callers hold the home's lock.

    :param is_running: whether a member's Patroni runs
    :param wipe: end all processes of a member and remove its data
    """

    def __init__(
        self, layout: Layout, is_running: Callable[[Member], bool], wipe: Callable[[Member], None]
    ) -> None:
        self._layout = layout
        self._is_running = is_running
        self._wipe = wipe

    def admit(
        self,
        member: Member,
        group: Sequence[Member],
        erase: Erase | None = None,
        *,
        as_copy: bool = False,
    ) -> str:
        """Get everything right for this member to start; returns its group's namespace in Patroni's store.

        :param group: all members of the group that exist in any form, this one too
        :param erase: given where all groups of the cluster share a namespace
        :param as_copy: it is the one that copies another group, which its own follows
        """
        record = (
            self._read(member)
            or self._recover(group)
            or GroupRecord(self._namespace(member, shared=erase is not None))
        )
        if not record.founded:
            if any(self._layout.member(each).has_users_data for each in group):
                record = replace(record, founded=True)
            elif self._is_dead(record, member, group):
                record = self._start_over(record, group, erase)
        if member.name not in record.started:
            record = replace(record, started=(*record.started, member.name))
        self._write(member, record)
        self._remove_incomplete_clone(member)
        if as_copy:
            # What was copied along is what Patroni was told of the source: by it, it would lead, and follow nobody.
            (self._layout.member(member).data / REMEMBERED).unlink(missing_ok=True)
        return record.namespace

    def note_users_data(self, groups: Sequence[Sequence[Member]]) -> None:
        """Write down which groups hold users' data by now: from then on none of them is ever founded anew.

        :param groups: the members of each group
        """
        for group in groups:
            record = self._read(group[0])
            if record is None or record.founded:
                continue
            if any(self._layout.member(each).has_users_data for each in group):
                self._write(group[0], replace(record, founded=True))

    def is_lost(self, group: Sequence[Member]) -> bool:
        """Whether the group held users' data, and none of its members has anything left of it."""
        record = self._read(group[0])
        return (
            record is not None
            and record.founded
            and not any(self._layout.member(each).has_anything for each in group)
        )

    def place_of(self, member: Member) -> str | None:
        """The group's namespace in Patroni's store; None: it has none yet."""
        record = self._read(member)
        return None if record is None else record.namespace

    def forget(self, member: Member, erase: Erase | None = None) -> None:
        """The last member of the group is gone: its place in the store is never used again.

        :param erase: given where other groups go on in the same namespace
        """
        records = self._read_all(member.cluster)
        record = self._read(member)
        if record is not None:
            if erase is not None:
                erase(record.namespace)
            del records[group_name(member.group)]
            files.write_json(self._layout.groups(member.cluster), records)

    def _recover(self, group: Sequence[Member]) -> GroupRecord | None:
        """What the members' configurations still tell when the record was lost.

        A member started in a new place would find nobody leading there, and lead beside the group's primary.
        """
        known = {
            each: place for each in group if (place := configured_namespace(self._layout.member(each).config))
        }
        for each in sorted(known, key=lambda each: not self._is_running(each)):
            logger.warning("the record of %s was lost: its members say %s", each.scope, known[each])
            return GroupRecord(known[each], started=tuple(member.name for member in known))
        return None

    def _is_dead(self, record: GroupRecord, member: Member, group: Sequence[Member]) -> bool:
        """Whether nobody is left who could complete the founding."""
        running = [each for each in group if each != member and self._is_running(each)]
        if not running:
            return True
        # This member took part and died; the others that run only wait, as none of them has any data.
        return member.name in record.started and not any(
            self._layout.member(each).has_anything for each in running
        )

    def _start_over(self, record: GroupRecord, group: Sequence[Member], erase: Erase | None) -> GroupRecord:
        for each in group:
            if record.started and (self._is_running(each) or self._layout.member(each).has_anything):
                logger.info("the founding of %s was cut short: starting over", each.scope)
                self._wipe(each)
        if erase is None:
            return GroupRecord(_new_namespace())
        if record.started:
            erase(record.namespace)
        return GroupRecord(record.namespace)

    def _namespace(self, member: Member, *, shared: bool) -> str:
        known = [str(each["namespace"]) for each in self._read_all(member.cluster).values()] if shared else []
        return known[0] if known else _new_namespace()

    def _remove_incomplete_clone(self, member: Member) -> None:
        # A clone gets backup_label first and pg_control last; Patroni would take what is in between for damaged.
        layout = self._layout.member(member)
        incomplete = (layout.data / "backup_label").exists() or not (layout.data / "PG_VERSION").exists()
        if layout.has_anything and not layout.has_data and incomplete:
            logger.info("removing an incomplete copy in %s", layout.data)
            self._wipe(member)

    def _read_all(self, cluster: str) -> dict[str, dict[str, object]]:
        path = self._layout.groups(cluster)
        records = files.read_json(path) or {}
        if not all(
            isinstance(each, dict) and isinstance(each.get("namespace"), str) for each in records.values()
        ):
            raise PgherdError(
                f"{path} is damaged (not the groups' places): restore it from a copy, or remove it, and it is made "
                "again of the members' configurations"
            )
        return records

    def _read(self, member: Member) -> GroupRecord | None:
        raw = self._read_all(member.cluster).get(group_name(member.group))
        if raw is None:
            return None
        started = raw.get("started")
        names = tuple(map(str, started)) if isinstance(started, list) else ()
        return GroupRecord(str(raw["namespace"]), bool(raw.get("founded")), names)

    def _write(self, member: Member, record: GroupRecord) -> None:
        if self._read(member) == record:
            return
        records = self._read_all(member.cluster)
        records[group_name(member.group)] = asdict(record)
        files.write_json(self._layout.groups(member.cluster), records)


def configured_namespace(config: Path) -> str | None:
    """The place in the store that a member's ``patroni.yml`` names, or None if it does not (yet)."""
    try:
        namespace = yaml.safe_load(config.read_text(encoding="utf-8"))["namespace"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return None
    return namespace if isinstance(namespace, str) else None


def _new_namespace() -> str:
    return f"/pgherd/{secrets.token_hex(8)}"
