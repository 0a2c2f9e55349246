"""Where everything of a home is.

::

    HOME/platform.lock                   held while anything below is changed
    HOME/ports.json                      ports by cluster and member
    HOME/raft/                           Patroni's store: raft.yml, data/, controller.log
    HOME/NAME/cluster.yaml               the declaration (and what was asked for besides: stopped, deleting)
    HOME/NAME/credentials.json           passwords
    HOME/NAME/owner.json                 who the cluster is to a repository of backups
    HOME/NAME/status.json                the status written last
    HOME/NAME/restore.json               how far the cluster's making from a backup is, if it is made from one
    HOME/NAME/backup/                    what the cluster's backups need here: pgbackrest.conf, locks
    HOME/NAME/source/                    the same for the backup that it is made from, meanwhile
    HOME/NAME/before-restore/            members/ and groups.json as they were before a restore in place
    HOME/NAME/schedules/                 when backups are made by themselves, and how that stands
    HOME/NAME/drill.json                 the drill that is going on, if one is
    HOME/NAME/repairs/GROUP/             a group's rebuilding from the backups (``bench``)
    HOME/NAME/endings.json               how members' servers ended that are not running
    HOME/NAME/groups.json                each group's place in Patroni's store
    HOME/NAME/log/MEMBER.log             Patroni and PostgreSQL
    HOME/NAME/members/MEMBER/patroni.yml
    HOME/NAME/members/MEMBER/data/       PostgreSQL's data directory
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgherd.model.topology import Member, group_id

DECLARATION = "cluster.yaml"


def parse_member(cluster: str, name: str) -> Member | None:
    """The inverse of ``Member.name``, or None where the name is not one of this cluster's members."""
    rest, _, ordinal = name.removeprefix(f"{cluster}-").rpartition("-")
    if not name.startswith(f"{cluster}-") or not ordinal.isdecimal():
        return None
    try:
        member = Member(cluster, group_id(rest), int(ordinal))
    except ValueError:
        return None
    return member if member.name == name else None


@dataclass(frozen=True)
class MemberLayout:
    """The files of one member."""

    directory: Path
    log: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory"""
        return self.directory / "data"

    @property
    def config(self) -> Path:
        """``patroni.yml``"""
        return self.directory / "patroni.yml"

    @property
    def pgpass(self) -> Path:
        """Patroni's password file"""
        return self.directory / "pgpass"

    @property
    def has_data(self) -> bool:
        """There is a complete data directory: ``pg_control`` is among the first files that initdb makes complete
        and the last that a clone gets."""
        return (self.data / "global" / "pg_control").is_file()

    @property
    def has_anything(self) -> bool:
        """There is something in the data directory, complete or not."""
        try:
            return any(self.data.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return False

    @property
    def has_users_data(self) -> bool:
        """Someone made a database, a table or a tablespace since initdb."""
        # Numbers below 16384 are initdb's own, for databases (directories) as for what is in them (files).
        databases = list(_entries(self.data / "base"))
        files = (name for database in databases for name in _entries(self.data / "base" / database))
        numbers = (name.split(".")[0].split("_")[0] for name in (*databases, *files))
        return any(number.isdecimal() and int(number) >= 16384 for number in numbers) or any(
            True for _ in _entries(self.data / "pg_tblspc")
        )


def _entries(directory: Path) -> Iterator[str]:
    if directory.is_dir():
        yield from (entry.name for entry in directory.iterdir())


@dataclass(frozen=True)
class Layout:
    """The files of one home."""

    home: Path

    @property
    def lock(self) -> Path:
        """``platform.lock``"""
        return self.home / "platform.lock"

    @property
    def ports(self) -> Path:
        """``ports.json``"""
        return self.home / "ports.json"

    @property
    def raft(self) -> Path:
        """The directory of Patroni's store"""
        return self.home / "raft"

    def cluster(self, name: str) -> Path:
        """A cluster's directory"""
        return self.home / name

    def declaration(self, name: str) -> Path:
        """A cluster's ``cluster.yaml``"""
        return self.cluster(name) / DECLARATION

    def credentials(self, name: str) -> Path:
        """A cluster's ``credentials.json``"""
        return self.cluster(name) / "credentials.json"

    def owner(self, name: str) -> Path:
        """A cluster's ``owner.json``"""
        return self.cluster(name) / "owner.json"

    def status(self, name: str) -> Path:
        """A cluster's ``status.json``"""
        return self.cluster(name) / "status.json"

    def restore(self, name: str) -> Path:
        """A cluster's ``restore.json``"""
        return self.cluster(name) / "restore.json"

    def schedules(self, name: str) -> Path:
        """The directory of a cluster's schedules of backups"""
        return self.cluster(name) / "schedules"

    def drill(self, name: str) -> Path:
        """A cluster's ``drill.json``"""
        return self.cluster(name) / "drill.json"

    def groups(self, name: str) -> Path:
        """A cluster's ``groups.json``"""
        return self.cluster(name) / "groups.json"

    def logs(self, name: str) -> Path:
        """A cluster's log directory"""
        return self.cluster(name) / "log"

    def aside(self, name: str) -> Path:
        """What a restore in place took out of the members' places"""
        return self.cluster(name) / "before-restore"

    def repairs(self, name: str) -> Path:
        """A folder for each group that is being rebuilt, or was"""
        return self.cluster(name) / "repairs"

    def endings(self, name: str) -> Path:
        """A cluster's ``endings.json``"""
        return self.cluster(name) / "endings.json"

    def members(self, name: str) -> Path:
        """The directory of all members' directories"""
        return self.cluster(name) / "members"

    def member(self, member: Member) -> MemberLayout:
        """One member's files"""
        directory = self.members(member.cluster) / member.name
        return MemberLayout(directory, self.logs(member.cluster) / f"{member.name}.log")

    def clusters(self) -> list[str]:
        """Names of all clusters with a declaration, sorted."""
        return sorted(path.name for path in self._directories() if (path / DECLARATION).is_file())

    def keeps_data(self) -> bool:
        """Whether any cluster's directory is left, declared or not."""
        return any(True for _ in self._directories())

    def _directories(self) -> Iterator[Path]:
        if self.home.is_dir():
            for path in self.home.iterdir():
                if path.is_dir() and path != self.raft and not path.name.startswith("."):
                    yield path
