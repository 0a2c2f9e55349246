"""The local platform: what :class:`~pgherd.platform.base.Platform` promises, by files and processes of one home."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pgherd.engine import registry
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, Unavailable
from pgherd.model.backup_kinds import PostgresBackupSchedule
from pgherd.model.spec import PostgresCluster, with_segment_count
from pgherd.model.topology import Credentials, Endpoint, Member, group_id, group_name
from pgherd.patroni.config import member_config
from pgherd.platform.base import Declaration, MemberView, Owner, Platform, Programs
from pgherd.platform.local import (
    binaries,
    endings,
    files,
    hindrances,
    logs,
    parameters,
    processes,
    recovery,
    runas,
    secret_file,
)
from pgherd.platform.local.bench import LocalBench
from pgherd.platform.local.declarations import Declarations
from pgherd.platform.local.founding import Erase, Foundings
from pgherd.platform.local.last_words import last_words, serves
from pgherd.platform.local.layout import Layout, parse_member
from pgherd.platform.local.machine import LocalMachine
from pgherd.platform.local.ports import HOST, PortBook, Ports, configured_ports
from pgherd.platform.local.raft import RaftStore
from pgherd.platform.local.schedules import Schedules
from pgherd.platform.local.workshop import LocalWorkshop

logger = logging.getLogger(__name__)

PATRONI_STOP_SECONDS = 60.0
"""how long a member may take for its last checkpoint before it is made to end"""
_CONDITION = {"type", "status", "lastTransitionTime"}


class LocalPlatform(Platform):
    """The clusters of one home. Safe to share between threads; several processes may work on one home.

    :param home: made when the first cluster is declared
    :param bin_dir: where PostgreSQL's programs are; default ``PGHERD_BIN_DIR``, else the wheel's
    """

    name = "local"

    def __init__(self, home: Path, bin_dir: Path | None = None) -> None:
        self.home = home.absolute()
        self._bin_dir = bin_dir
        self._layout = Layout(self.home)
        self._lock = files.Lock(self._layout.lock)
        self._ports = PortBook(self._layout.ports)
        self._daemons = processes.Daemons()
        self._raft = RaftStore(self._layout, self._ports, self._daemons)
        self._declarations = Declarations(self._layout)
        self._foundings = Foundings(self._layout, self._is_running, self._wipe)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other thread and process from changing this home meanwhile; may be nested."""
        with self._lock.held():
            yield

    # the machine

    def check_supported(self, cluster: PostgresCluster) -> None:
        """Refuse early what this machine can't run.

        :raises BadInput: the name is the home's own, another PostgreSQL version is asked for, or an engine, a
            parameter or an authentication method that it does not have
        :raises PgherdError: programs are missing, or members can't run as an ordinary user
        """
        if self._layout.cluster(cluster.metadata.name) == self._layout.raft:
            raise BadInput(
                f"metadata.name: {cluster.metadata.name} is taken on this platform, its folder holds Patroni's store: "
                "choose another name"
            )
        here = binaries.find(self._bin_dir)
        wanted = cluster.spec.postgres.version
        if wanted is not None and int(wanted) != here.major:
            raise BadInput(
                f"spec.postgres.version: {wanted} is not here, {here.directory} has {here.version}: leave the "
                f"version out, or name the directory of a PostgreSQL {wanted} with --bin-dir"
            )
        problems = [
            *parameters.engine_problems(here, cluster),
            *parameters.memory_problems(cluster),
            *parameters.problems(here, cluster.spec.postgres.parameters),
            *parameters.access_problems(here, cluster.spec.postgres),
        ]
        if problems:
            raise BadInput(*problems)
        runas.prefix()

    def program(self, name: str) -> Path:
        """The path of one of PostgreSQL's programs.

        :raises PgherdError: it is not there
        """
        return binaries.find(self._bin_dir).program(name)

    @property
    def parameters(self) -> Mapping[str, str]:
        return recovery.parameters(self.home, self._bin_dir)

    @property
    def keeps_backups(self) -> bool:
        return True

    def programs(self) -> Programs:
        """PostgreSQL's programs here."""
        here = binaries.find(self._bin_dir)
        return Programs(here.program, runas.prefix(), here.major)

    def machine(self) -> LocalMachine:
        """This one."""
        return LocalMachine(self.programs())

    def secret(self, reference: str) -> Mapping[str, str]:
        """What a file says."""
        return secret_file.load(reference)

    def secret_stamp(self, reference: str | None) -> str:
        """Differs whenever the file was changed."""
        return secret_file.stamp(reference)

    def owner(self, name: str) -> Owner:
        """Drawn once, and kept with the cluster's data: what is deleted without purging and declared again is the same
        cluster. One that is not declared is nobody yet."""
        path = self._layout.owner(name)
        known = files.read_json(path)
        if known is None:
            with self.locked() if self._layout.declaration(name).exists() else contextlib.nullcontext():
                known = self._drawn(name, path)
        return Owner(
            str((known or {}).get("id", "")), hint="name another path, or call the cluster something else"
        )

    def _drawn(self, name: str, path: Path) -> Any:
        known = files.read_json(path)
        if known is None and self._layout.declaration(name).exists():
            known = {"id": f"{socket.gethostname()}/{name}/{secrets.token_hex(8)}"}
            files.write_json(path, known)
        return known

    def backup_folder(self, name: str) -> Path:
        """Within the cluster's own, which goes with it."""
        return self._layout.cluster(name) / "backup"

    def schedules(self, name: str) -> Sequence[tuple[PostgresBackupSchedule, Mapping[str, Any] | None]]:
        """A cluster's schedules of backups, and how each stands as it was written down last."""
        known = Schedules(self._layout)
        return [(each, known.standing(each)) for each in known.of_cluster(name)]

    def workshop(self, name: str) -> LocalWorkshop:
        """Where a new cluster is put together from a backup."""
        return LocalWorkshop(
            self._layout,
            name,
            self.locked,
            lambda member: Endpoint(HOST, self._reserve(member)["postgres"]),
            self.machine,
        )

    def bench(self, name: str, group: int) -> LocalBench:
        """Where a group is rebuilt from the backups."""

        def members() -> list[Member]:
            return [view.member for view in self.members(name).values() if view.member.group == group]

        first = Member(name, group, 0)
        return LocalBench(
            self._layout,
            name,
            group,
            locked=self.locked,
            members=members,
            is_running=self._is_running,
            machine=self.machine,
            store_lsn=lambda: self._store_lsn(first),
            leave_store=lambda: self._foundings.forget(first, self._eraser_of_survivors(first)),
        )

    def benches(self, name: str) -> Mapping[int, LocalBench]:
        """Those at which a group is being rebuilt, or was last."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self._layout.repairs(name).iterdir():
                with contextlib.suppress(ValueError):
                    found[group_id(path.name)] = self.bench(name, group_id(path.name))
        return found

    def _store_lsn(self, first: Member) -> int | None:
        try:
            namespace = self._foundings.place_of(first)
            if namespace is None:
                return None
            with self.locked():
                self._raft.ensure_running(runas.prefix())
            section = registry.patroni_section(self._declarations.get(first.cluster).cluster, first.group)
            return self._raft.last_lsn(first.cluster if section else first.scope, namespace, section)
        except PgherdError as error:
            # Not to be asked is not to know of anything: who judges must not take the one for the other.
            raise Unavailable(str(error)) from error

    def align(self, cluster: PostgresCluster, configs: Mapping[int, Mapping[str, Any] | None]) -> bool:
        """Write down which groups hold users' data: they are never founded anew. Remove what repairs left behind."""
        for bench in self.benches(cluster.metadata.name).values():
            bench.tidy()
        groups: dict[int, list[Member]] = {}
        for view in self.members(cluster.metadata.name).values():
            groups.setdefault(view.member.group, []).append(view.member)
        with self.locked():
            self._foundings.note_users_data(list(groups.values()))
        return False

    def ensure_store(self) -> None:
        """Start Patroni's store unless it runs.

        :raises PgherdError: it does not start
        """
        with self.locked():
            self._raft.ensure_running(runas.prefix())

    def stop_store(self) -> None:
        """End Patroni's store; no-op if it is not running."""
        if self.home.is_dir():
            with self.locked():
                self._raft.stop()

    def close_if_empty(self) -> bool:
        """If no cluster is declared: end the store; if no data is left either: remove the home. True if it is gone."""
        if not self.home.is_dir():
            return True
        with self.locked():
            if self._layout.clusters():
                return False
            self._raft.stop()
            if self._layout.keeps_data():
                return False
            self._raft.remove()
            files.sweep(self.home)
            for rest in (self._layout.ports, *self.home.glob(".*.tmp")):
                files.remove(rest)
            self._layout.lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's file in it, or a new cluster just now
                self.home.rmdir()
        return not self.home.exists()

    def abandon_if_removed(self) -> bool:
        """End what still runs in a home that was removed from under it: none of it can be of use any more.

        :return: whether the home was removed
        """
        if self._layout.keeps_data():
            return False
        processes.end_home(self.home)
        self.close_if_empty()
        return True

    # declarations

    def clusters(self) -> Sequence[str]:
        """Names of all clusters, sorted."""
        return self._layout.clusters()

    def keeps_data(self) -> bool:
        """Whether anything of any cluster is here, declared or not."""
        return self._layout.keeps_data()

    def keeps(self, name: str) -> bool:
        """Whether data of a cluster that was deleted without purging is here."""
        folders = (self._layout.members(name), self._layout.aside(name), self._layout.repairs(name))
        kept = any(folder.is_dir() for folder in folders)
        return kept and not self._layout.declaration(name).exists()

    def declaration(self, name: str) -> Declaration:
        """What was asked for.

        :raises NoSuchCluster: there is none of this name
        """
        return self._declarations.get(name)

    def declare(self, cluster: PostgresCluster) -> None:
        """Create a cluster or change its declaration; no-op if it is the same.

        :raises PgherdError: it could not be written
        """
        with self.locked():
            self._declarations.put(cluster)

    def declare_segments(self, name: str, count: int) -> None:
        """Declare another number of segments."""
        with self.locked():
            self.declare(with_segment_count(self.declaration(name).cluster, count))

    def set_stopped(self, name: str, stopped: bool) -> None:
        """Ask for the members to be gone (data kept), or back."""
        self._change(name, lambda: self._declarations.set_stopped(name, stopped))

    def set_deleting(self, name: str, *, purge: bool) -> None:
        """Ask for the cluster to be removed; with ``purge`` its data too."""
        self._change(name, lambda: self._declarations.set_deleting(name, purge=purge))

    def _change(self, name: str, change: Any) -> None:
        self._declarations.get(name)  # before the lock, which would make a home that is not there
        with self.locked():
            change()

    def forget(self, name: str, *, purge: bool) -> None:
        """Last act of a deletion: remove the declaration, with ``purge`` (or if there is no data) everything.

        Without ``purge`` data, passwords, ports and the store's record stay: a new declaration of this name adopts
        them. Killed in between, the declaration is still there and the next call goes on.
        """
        with self.locked():
            views = self.members(name)
            # What a restore in place or a repair has set aside is data, too.
            has_data = (
                self._layout.aside(name).exists()
                or any(each.kept is not None for each in self.benches(name).values())
                or any(view.has_data for view in views.values())
            )
            if purge or not has_data:
                for view in views.values():
                    self._retire(view.member)
                self._ports.release(name)
                files.hide(self._layout.cluster(name))
            else:
                files.remove(self._layout.status(name))
                files.remove(self._layout.declaration(name))
        # All of its data: no other cluster of the home waits until they are gone.
        files.sweep(self.home, name)

    def credentials(self, name: str) -> Credentials:
        """The cluster's passwords, made at the first call.

        :raises NoSuchCluster: there is none of this name
        :raises PgherdError: the file is damaged, or was lost: no new ones can be made for databases that are there
        """
        path = self._layout.credentials(name)
        known = files.read_json(path)
        if known is None:
            self._declarations.get(name)
            with self.locked():
                known = files.read_json(path)
                if known is None:
                    self._require_new(name, path)
                    known = {field: secrets.token_urlsafe(24) for field in Credentials.__dataclass_fields__}
                    files.write_json(path, known)
        try:
            return Credentials(**known)
        except TypeError:
            raise PgherdError(f"{path} is damaged (not the passwords): restore it from a copy") from None

    def _require_new(self, name: str, path: Path) -> None:
        if any(view.has_data for view in self.members(name).values()):
            raise PgherdError(f"{path} is lost, and with it the passwords of {name}: restore it from a copy")

    def read_status(self, name: str) -> dict[str, Any] | None:
        """The status written last, or None if there is none that makes sense."""
        try:
            status = files.read_json(self._layout.status(name))
        except PgherdError:  # it was not flushed before a power failure; the next round writes it anew
            return None
        return status if _is_status(status) else None

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        """Publish the status; no-op once the cluster is gone. As the loop's regular call it also keeps logs small."""
        if self._layout.declaration(name).exists():
            files.write_json(self._layout.status(name), status, durable=False)
            for path in self._layout.logs(name).glob("*.log"):
                logs.rotate(path)

    # members

    def members(self, name: str) -> Mapping[str, MemberView]:
        """Every member that exists in any form (a process, a data directory, a reserved port), by member name."""
        ports = self._ports.of_cluster(name)
        directory = self._layout.members(name)
        names = {*ports, *(path.name for path in directory.iterdir())} if directory.is_dir() else set(ports)
        known = [member for each in sorted(names) if (member := parse_member(name, each))]
        running = self._daemons.find_all([self._layout.member(member).config for member in known])
        return {
            member.name: self._view(
                member, ports.get(member.name), self._layout.member(member).config in running
            )
            for member in known
        }

    def _view(self, member: Member, ports: Ports | None, running: bool) -> MemberView:
        ports = ports or self._reserve(member)
        layout = self._layout.member(member)
        postgres, rest = Endpoint(HOST, ports["postgres"]), Endpoint(HOST, ports["rest"])
        serving = serves(layout.data) and processes.postmaster_of(layout.data) is not None
        said = "" if serving else last_words(layout.log)
        note = f"its log says: {said}" if said else ""
        return MemberView(member, running, layout.has_data, postgres, rest, note=note)

    def _reserve(self, member: Member) -> Ports:
        with self.locked():
            known = self._ports.of_cluster(member.cluster).get(member.name)
            if known is None and (had := configured_ports(self._layout.member(member).config)):
                return self._ports.adopt(member.cluster, member.name, had)
            return self._ports.reserve(member.cluster, member.name, "postgres", "rest")

    def start_member(self, cluster: PostgresCluster, member: Member, dcs_config: Mapping[str, Any]) -> None:
        """Bring a member to life; no-op if it runs. Returns without waiting for it to be ready.

        :raises PgherdError: programs are missing, a port is taken, the disk is full
        """
        prefix = runas.prefix()
        with self.locked():
            if self._is_running(member):
                return
            self._raft.ensure_running(prefix)
            ports = self._reserve(member)
            layout = self._layout.member(member)
            hindrances.end_strays(layout)
            group = [
                view.member
                for view in self.members(member.cluster).values()
                if view.member.group == member.group
            ]
            try:
                hindrances.require_none(self._bin_dir, cluster, member, layout, ports)
            except PgherdError:
                if len(group) > 1:
                    hindrances.end_unguarded(member, layout)
                raise
            self._require_data(member, group)
            endings.forget(self._layout, member)
            as_copy = bool(dcs_config.get("standby_cluster")) and member.ordinal == 0
            namespace = self._foundings.admit(member, group, self._eraser(cluster, member), as_copy=as_copy)
            self._write_config(cluster, member, ports, namespace, dcs_config)
            logs.rotate(layout.log)
            self._daemons.start_patroni(layout.config, layout.log, prefix)

    def _require_data(self, member: Member, group: Sequence[Member]) -> None:
        if self.bench(member.cluster, member.group).is_placing:
            raise PgherdError(f"{member.name} waits: its group is being rebuilt")
        if self._foundings.is_lost(group):
            name = group_name(member.group)
            raise PgherdError(
                f"all data of {name} are lost: put its members' data back in their places, or bring it back from the "
                f"backups with 'pgherd repair {member.cluster} --group {name}'"
            )

    def _eraser(self, cluster: PostgresCluster, member: Member) -> Erase | None:
        """How to empty a group's part of the store, if its cluster's groups share one place there."""
        section = registry.patroni_section(cluster, member.group)
        if not section:
            return None

        def erase(namespace: str) -> None:
            self._raft.ensure_running(runas.prefix())
            self._raft.erase(member.cluster, namespace, section)

        return erase

    def _eraser_of_survivors(self, member: Member) -> Erase | None:
        """The same, unless the whole cluster goes: then nobody comes to its place any more."""
        try:
            declared = self._declarations.get(member.cluster)
        except NoSuchCluster:
            return None
        return None if declared.deleting else self._eraser(declared.cluster, member)

    def _write_config(
        self,
        cluster: PostgresCluster,
        member: Member,
        ports: Ports,
        namespace: str,
        dcs_config: Mapping[str, Any],
    ) -> None:
        layout = self._layout.member(member)
        postgres = binaries.find(self._bin_dir)
        config = member_config(
            cluster,
            member,
            postgres=Endpoint(HOST, ports["postgres"]),
            rest=Endpoint(HOST, ports["rest"]),
            data_dir=str(layout.data),
            bin_dir=str(postgres.directory),
            pgpass=str(layout.pgpass),
            credentials=self.credentials(member.cluster),
            store=self._raft.member_section(),
            namespace=namespace,
            dcs_config=dcs_config,
            server_major=postgres.major,
            # So the preferred primary leads from the beginning.
            may_found=member.ordinal == 0,
            mpp=registry.patroni_section(cluster, member.group),
            # Sockets' paths are limited to 107 characters, homes are not.
            parameters={"unix_socket_directories": ""},
        )
        files.write(layout.config, yaml.safe_dump(config, sort_keys=False))

    def _is_running(self, member: Member) -> bool:
        return self._daemons.find(self._layout.member(member).config) is not None

    def stop_member(self, member: Member) -> None:
        """End a member's processes (PostgreSQL by a fast shutdown), bounded in time; no-op if it is not running."""
        layout = self._layout.member(member)
        while (patroni := self._daemons.find(layout.config)) is not None:
            if not processes.end([patroni], signal.SIGTERM, PATRONI_STOP_SECONDS):
                logger.warning("%s: Patroni does not end: killing it", member.name)
                processes.end([patroni], signal.SIGKILL, 5.0)
        processes.end_postgres(layout.directory, layout.data)
        with self.locked(), contextlib.suppress(PgherdError):
            endings.note(self._layout, member, self.programs())

    def _wipe(self, member: Member) -> None:
        """A member that holds nothing of value: no need for a last checkpoint."""
        self._kill(member)
        self._remove_data(member)

    def _kill(self, member: Member) -> None:
        while (patroni := self._daemons.find(self._layout.member(member).config)) is not None:
            processes.end([patroni], signal.SIGKILL, 5.0)

    def _remove_data(self, member: Member) -> None:
        layout = self._layout.member(member)
        processes.end_postgres(layout.directory, layout.data)
        files.remove(layout.data)

    def remove_member(self, member: Member) -> None:
        """Stop a member and remove its data and whatever was reserved for it."""
        self._retire(member)
        directory = self._layout.member(member).directory
        files.sweep(directory.parent, directory.name)

    def _retire(self, member: Member) -> None:
        """All of that but what takes long: its files wait for a sweep."""
        if self._eraser_of_survivors(member):
            # Its Patroni would announce a switchover to the other groups, to a successor that never comes.
            self._kill(member)
        self.stop_member(member)
        layout = self._layout.member(member)
        with self.locked():
            processes.end_postgres(layout.directory, layout.data)
            files.hide(layout.directory)
            logs.remove(layout.log)
            others = (view.member for view in self.members(member.cluster).values() if view.member != member)
            if not any(other.group == member.group for other in others):
                self._foundings.forget(member, self._eraser_of_survivors(member))
            endings.forget(self._layout, member)
            self._ports.release(member.cluster, member.name)

    def free_bytes(self, member: Member) -> int | None:
        """Free space where this member's data is (or will be)."""
        return hindrances.free_bytes(self._layout.member(member))

    # logs

    def logs(self, name: str, member: str | None, *, follow: bool) -> Iterator[str]:
        """Log lines of one member or of all, each prefixed with the member's name in the latter case.

        :raises BadInput: no such member
        """
        known = {each: self._layout.logs(name) / f"{each}.log" for each in self.members(name)}
        if member is None:
            return logs.lines([(f"{each} ", path) for each, path in known.items()], follow=follow)
        if member not in known:
            raise BadInput(f"{name} has no member {member}: it has {', '.join(known) or 'none yet'}")
        return logs.lines([("", known[member])], follow=follow)


def _is_status(value: Any) -> bool:
    """Whether it has at least what readers take for granted: nobody must stumble over what a file once said."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("phase"), str)
        and isinstance(value.get("generation", 0), int)
        and isinstance(conditions := value.get("conditions", []), list)
        and all(isinstance(each, dict) and each.keys() >= _CONDITION for each in conditions)
    )
