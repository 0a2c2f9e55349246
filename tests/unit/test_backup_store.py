"""Records in any store: sealed ones are read by nobody without the passphrase, and keys that won't do are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pgherd.backup import keys, maker
from pgherd.backup.catalogue import Away, Catalogue, Unread
from pgherd.backup.object_store import bucket_url
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import DirectoryStore, Entry, Store
from pgherd.errors import BadInput, PgherdError, Refused
from pgherd.model.spec import RepositorySpec
from pgherd.platform.local import secret_file
from tests.support.backups import at, backup, point, rust, unread

S3 = RepositorySpec.model_validate({"s3": {"bucket": "safe"}})


class Bucket(Store):
    """What a bucket can do, and no more: no appends, no folders, a version of each object."""

    grows = False
    near = False

    def __init__(self) -> None:
        self.location = "memory://safe/shop"
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []

    def read(self, name: str) -> bytes | None:
        self.reads.append(name)
        return self.objects.get(name)

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        self.objects[name] = content

    def append(self, name: str, content: bytes) -> None:
        self.write(name, (self.read(name) or b"") + content)

    def names(self, folder: str) -> list[Entry]:
        found = [name for name in self.objects if name.rpartition("/")[0] == folder]
        return [Entry(name, str(hash(self.objects[name]))) for name in sorted(found)]

    def folders(self, folder: str) -> list[str]:
        start = f"{folder}/"
        below = (name.removeprefix(start) for name in self.objects if name.startswith(start))
        return sorted({name.split("/")[0] for name in below if "/" in name})

    def remove(self, name: str) -> None:
        for each in [each for each in self.objects if each == name or each.startswith(f"{name}/")]:
            del self.objects[each]

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield


@pytest.fixture(params=["directory", "bucket", "sealed directory", "sealed bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    inner: Store = Bucket() if "bucket" in request.param else DirectoryStore(tmp_path / "shop")
    return SealedStore(inner, "open sesame") if "sealed" in request.param else inner


@pytest.fixture
def catalogue(store: Store) -> Catalogue:
    made = Catalogue(store, "pgbackrest")
    made.create("shop")
    return made


def test_what_was_remembered_comes_back(catalogue: Catalogue, store: Store) -> None:
    first, second = point(30), replace(point(2), archived=False)
    for each in (first, second, replace(second, archived=True)):
        catalogue.remember_point(each)
    made = replace(backup(1, "incremental", "f0"), started_at=at(1))
    catalogue.remember_backup(made)
    catalogue.remember_drill({"passed": True})
    for reader in (catalogue, Catalogue(store, "pgbackrest")):
        assert reader.points() == [replace(second, archived=True), first]
        assert reader.points(days=1) == [first]
        assert reader.backups() == [made]
        assert reader.drills() == [{"passed": True}]
        assert reader.identity().method == "pgbackrest"


def test_a_drill_is_remembered_once_and_none_is_lost_because_nobody_answers(
    catalogue: Catalogue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for result in ({"id": "a"}, {"id": "b"}, {"id": "a"}, {"passed": True}, {"passed": True}):
        catalogue.remember_drill(result)
    assert catalogue.drills() == [{"id": "a"}, {"id": "b"}, {"passed": True}, {"passed": True}]

    def silent(name: str) -> bytes | None:
        if name == "drills.json":
            raise PgherdError("it does not answer")
        return type(store).read(store, name)

    with monkeypatch.context() as away:
        away.setattr(store, "read", silent)
        assert catalogue.drills() == []
        with pytest.raises(PgherdError, match="does not answer"):
            catalogue.remember_drill({"id": "c"})
    assert len(catalogue.drills()) == 4


def test_what_tables_held_at_a_point_comes_back(catalogue: Catalogue) -> None:
    catalogue.remember_point(point(1))
    catalogue.remember_prints("p1", [{"table": "account"}])
    assert catalogue.prints("p1") == [{"table": "account"}]
    with pytest.raises(PgherdError, match=r"prints/p2\.json is not there any more, or damaged"):
        catalogue.prints("p2")


def test_points_are_forgotten_and_backups_go_with_all_they_have(catalogue: Catalogue) -> None:
    for hours in (1, 2, 30):
        catalogue.remember_point(point(hours))
    catalogue.forget_points({"p1", "p30"})
    assert [each.name for each in catalogue.points()] == ["p2"]
    catalogue.remember_backup(backup(1))
    catalogue.remove_backup(backup(1).id)
    assert catalogue.backups() == []


def test_what_goes_on_is_seen_and_what_has_ended_is_not_asked_for_again() -> None:
    bucket = Bucket()
    catalogue = Catalogue(bucket, "pgbackrest")
    catalogue.create("shop")
    running = backup(1, phase="running")
    catalogue.remember_backup(running)
    assert catalogue.backups() == [running]
    done = replace(running, phase="done")
    catalogue.remember_backup(done)
    catalogue.remember_point(point(1))
    assert catalogue.backups() == [done]
    catalogue.points()
    bucket.reads.clear()
    assert catalogue.backups() == [done]
    assert len(catalogue.points()) == 1
    assert bucket.reads == []


def test_points_of_a_bucket_lie_in_small_objects() -> None:
    bucket = Bucket()
    catalogue = Catalogue(bucket, "pgbackrest")
    catalogue.create("shop")
    for hours in (1, 1.5, 2):
        catalogue.remember_point(point(hours))
    assert [entry.name for entry in bucket.names("points")] == [
        "points/2026-11-01T01.jsonl",
        "points/2026-11-01T02.jsonl",
    ]


def test_another_method_s_repository_is_refused(tmp_path: Path) -> None:
    Catalogue(DirectoryStore(tmp_path / "shop")).create("shop")
    with pytest.raises(BadInput, match="holds backups made with native"):
        Catalogue(DirectoryStore(tmp_path / "shop"), "pgbackrest").claim({0: "7"}, {})


def test_sealed_records_are_read_by_nobody_without_the_passphrase(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path / "shop")
    SealedStore(inner, "open sesame").write("a.json", b'{"secret": "of ours"}')
    assert b"secret" not in (inner.read("a.json") or b"")
    with pytest.raises(BadInput, match="encrypted with another passphrase"):
        SealedStore(inner, "close sesame").read("a.json")
    inner.write("b.json", inner.read("a.json") or b"")
    with pytest.raises(BadInput, match="encrypted with another passphrase"):
        SealedStore(inner, "open sesame").read("b.json")


def test_one_that_is_not_sealed_says_so(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path / "shop")
    inner.write("a.json", b"{}")
    with pytest.raises(BadInput, match="is not encrypted"):
        SealedStore(inner, "open sesame").read("a.json")


def test_one_that_is_sealed_says_so_to_who_has_no_passphrase(tmp_path: Path) -> None:
    Catalogue(SealedStore(DirectoryStore(tmp_path / "shop"), "open sesame"), "pgbackrest").create("shop")
    with pytest.raises(BadInput, match=r"is encrypted: spec\.backup\.encrypt"):
        Catalogue(DirectoryStore(tmp_path / "shop"), "pgbackrest").identity()


# damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda content: content[:-4] + bytes(each ^ 0xFF for each in content[-4:]),
    "flipped salt": lambda content: (
        content[:18] + bytes(each ^ 0xFF for each in content[18:22]) + content[22:]
    ),
    "truncated": lambda content: content[: len(content) // 2],
    "cut to its head": lambda content: content[:20],
    "emptied": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
}


class Sealed:
    """A sealed repository with two backups and three points, of which files get damaged."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        catalogue = self.opened()
        catalogue.create("shop")
        for hours in (1, 5):
            catalogue.remember_backup(backup(hours))
        for hours in (2, 3, 6):
            catalogue.remember_point(point(hours))

    def opened(self, passphrase: str = "open sesame") -> Catalogue:
        """As somebody sees it who begins to look."""
        return Catalogue(SealedStore(self.inner, passphrase), "pgbackrest")

    def damage(self, name: str, how: str) -> bytes:
        """Returns what it held before."""
        before = self.inner.read(name) or b""
        self.inner.write(name, DAMAGES[how](before))
        return before


@pytest.fixture(params=["directory", "bucket"])
def sealed(request: pytest.FixtureRequest, tmp_path: Path) -> Sealed:
    return Sealed(Bucket() if request.param == "bucket" else DirectoryStore(tmp_path / "shop"))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_sealed_record_that_is_damaged_hides_no_other_and_is_named(sealed: Sealed, how: str) -> None:
    before = sealed.damage("backups/f1/backup.json", how)
    seen = sealed.opened()
    assert [each.id for each in seen.backups()] == ["f5"]
    assert (unread(seen, Unread.DAMAGED), seen.nameless(), unread(seen, Unread.FOREIGN)) == (
        ["f1"],
        ["f1"],
        [],
    )
    assert [each.name for each in seen.points()] == ["p2", "p3", "p6"]
    seen.require()
    with pytest.raises(BadInput, match=r"the record of backup f1 is damaged: put backup\.json in") as told:
        seen.backup("f1")
    assert not isinstance(told.value, Refused), "nobody waits for it"
    sealed.inner.write("backups/f1/backup.json", before)
    assert [each.id for each in seen.backups()] == ["f1", "f5"]
    assert unread(seen, Unread.DAMAGED) == []


@pytest.mark.parametrize("how", DAMAGES)
def test_sealed_points_that_are_damaged_hide_no_others_and_are_not_written_over(
    sealed: Sealed, how: str
) -> None:
    name = "points/2026-11-01T02.jsonl"
    before = sealed.damage(name, how)
    damaged = sealed.inner.read(name)
    seen = sealed.opened()
    assert [each.name for each in seen.points()] == ["p3", "p6"]
    assert seen.points_and_damage()[1] == [name]
    assert [each.id for each in seen.backups()] == ["f1", "f5"]
    for each in (replace(point(2.5), archived=False), point(2.5), point(2.6)):
        seen.remember_point(each)
    assert [each.name for each in seen.points()] == ["p2.5", "p2.6", "p3", "p6"]
    seen.forget_points({"p2.6"})
    assert sealed.inner.read(name) == damaged
    sealed.inner.write(name, before)
    assert [each.name for each in seen.points()] == ["p2", "p2.5", "p3", "p6"]
    assert all(each.archived for each in seen.points())
    assert seen.points_and_damage()[1] == []


def test_what_became_of_a_point_counts_when_the_file_comes_back_that_it_was_in(sealed: Sealed) -> None:
    made = replace(point(4), archived=False)
    sealed.opened().remember_point(made)
    before = sealed.damage("points/2026-11-01T04.jsonl", "zeroed")
    sealed.opened().remember_point(replace(made, archived=True))
    sealed.inner.write("points/2026-11-01T04.jsonl", before)
    assert next(each for each in sealed.opened().points() if each.name == "p4").archived


def test_damaged_points_that_are_put_back_in_place_are_seen(tmp_path: Path) -> None:
    """Neither the file's number nor its length tells of that."""
    sealed = Sealed(DirectoryStore(tmp_path / "shop"))
    path = tmp_path / "shop/points/2026-11-01T02.jsonl"
    before = path.read_bytes()
    path.write_bytes(DAMAGES["flipped"](before))
    seen = sealed.opened()
    assert "p2" not in {each.name for each in seen.points()}
    path.write_bytes(before)
    assert "p2" in {each.name for each in seen.points()}


@pytest.fixture
def bad_sectors(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files that the disk can't read any more."""
    return rust(monkeypatch)


class Rusty:
    """A repository in a directory with two backups and points of two days, of which a disk loses files."""

    def __init__(self, root: Path, sealed: bool, bad: set[Path]) -> None:
        self.root, self.bad, self.sealed = root, bad, sealed
        self.catalogue = self.opened()
        self.catalogue.create("shop")
        for hours in (1, 30):
            self.catalogue.remember_backup(backup(hours))
            self.catalogue.remember_point(point(hours))
            self.catalogue.remember_prints(f"p{hours}", [{"table": "account"}])
        self.catalogue = self.opened()

    def opened(self) -> Catalogue:
        plain = DirectoryStore(self.root)
        return Catalogue(SealedStore(plain, "open sesame") if self.sealed else plain)

    def lose(self, name: str) -> None:
        self.bad.add(self.root / name)

    def points(self) -> list[str]:
        return [each.name for each in self.catalogue.points()]


@pytest.fixture(params=["plain", "sealed"])
def rusty(request: pytest.FixtureRequest, tmp_path: Path, bad_sectors: set[Path]) -> Rusty:
    return Rusty(tmp_path / "shop", request.param == "sealed", bad_sectors)


def test_a_record_that_the_disk_can_not_read_hides_no_other_and_is_named(rusty: Rusty) -> None:
    rusty.lose("backups/f1/backup.json")
    assert [each.id for each in rusty.catalogue.backups()] == ["f30"]
    assert list(rusty.catalogue.held().complaints()) == ["f1"]
    assert rusty.points() == ["p1", "p30"]
    rusty.bad.clear()
    assert [each.id for each in rusty.catalogue.backups()] == ["f1", "f30"]


def test_points_that_the_disk_can_not_read_hide_no_others_and_are_named(rusty: Rusty) -> None:
    (first, *_) = rusty.catalogue.store.names("points")
    rusty.lose(first.name)
    assert rusty.points() == ["p30"]
    assert rusty.catalogue.points_and_damage()[1] == [first.name]
    rusty.catalogue.remember_point(point(1.1))
    assert rusty.points() == ["p1.1", "p30"]
    rusty.catalogue.remember_prints("p30", [])
    rusty.bad.clear()
    assert rusty.points() == ["p1", "p1.1", "p30"]
    assert rusty.catalogue.points_and_damage()[1] == []
    assert rusty.catalogue.prints("p1") == [{"table": "account"}]


def test_an_empty_file_of_points_that_grow_is_not_damaged(tmp_path: Path) -> None:
    catalogue = Catalogue(DirectoryStore(tmp_path / "shop"))
    catalogue.create("shop")
    catalogue.store.write("points/2026-11-01.jsonl", b"")
    assert catalogue.points_and_damage()[1] == []


@pytest.mark.parametrize("lost", ["repository.json", "backups/f1/backup.json"])
def test_a_disk_that_does_not_read_the_mark_is_not_taken_for_one_that_lost_a_record(
    rusty: Rusty, lost: str
) -> None:
    rusty.lose(lost)
    (rusty.root / "repository.json").unlink()
    with pytest.raises(PgherdError, match=f"could not read .*/{lost}: input/output error"):
        rusty.catalogue.store.read(lost)
    with pytest.raises(PgherdError):
        rusty.catalogue.backups()


@pytest.mark.parametrize("falls", ["before", "meanwhile"])
def test_a_directory_that_is_away_is_not_taken_for_an_empty_one(
    rusty: Rusty, monkeypatch: pytest.MonkeyPatch, falls: str
) -> None:
    away = rusty.root.with_name("away")
    looks = (rusty.catalogue.backups, rusty.catalogue.points, rusty.catalogue.points_and_damage)
    for look in looks:
        with monkeypatch.context() as dropping:

            def dropped(store: DirectoryStore, folder: str) -> list[str]:
                if rusty.root.exists():
                    rusty.root.rename(away)
                return []

            if falls == "before":
                rusty.root.rename(away)
            for method in ("names", "folders"):
                dropping.setattr(DirectoryStore, method, dropped)
            with pytest.raises(Away):
                look()
        away.rename(rusty.root)
    assert rusty.points() == ["p1", "p30"]


LEFT: dict[str, Unread | None] = {
    "backup.json.bad": Unread.LOST,
    "coordinator/PG_VERSION": Unread.LOST,
    "coordinator.partial/PG_VERSION": Unread.MISSING,
}


@pytest.mark.parametrize("left", LEFT)
def test_a_backup_without_a_record_had_one_if_anything_is_complete(
    catalogue: Catalogue, store: Store, left: str
) -> None:
    """It is there before anything is made."""
    for name in ("f1", "@server"):
        store.write(f"backups/{name}/{left}", b"16")
    held = catalogue.held()
    assert held.unread == {"f1": LEFT[left], "@server": Unread.MISSING}
    assert catalogue.nameless() == ["@server", "f1"]
    told = (
        f"backup f1 has no record any more: put backup.json in {store.location}/backups/f1 back from a copy or remove "
        "that folder"
    )
    assert held.complaints() == ({"f1": told} if LEFT[left] is Unread.LOST else {})
    if LEFT[left] is Unread.LOST:
        with pytest.raises(BadInput, match="no record any more"):
            maker.request(catalogue, "full", name="f1")
    catalogue.remember_backup(backup(1))
    assert catalogue.backups() == [backup(1)]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_record_that_was_read_once_is_missed(tmp_path: Path, sealed: bool) -> None:
    """Beside it there may be nothing: copies of pgBackRest's lie elsewhere."""
    plain = DirectoryStore(tmp_path / "shop")
    catalogue = Catalogue(SealedStore(plain, "open sesame") if sealed else plain, "pgbackrest")
    catalogue.create("shop")
    for hours in (1, 2):
        catalogue.remember_backup(backup(hours))
    (tmp_path / "shop/backups/f3").mkdir()
    plain.write("backups/f1/backup.json", b"{")
    catalogue.held()
    plain.remove("backups/f1/backup.json")
    catalogue.remove_backup("f2")
    assert catalogue.held().unread == {"f1": Unread.LOST, "f3": Unread.MISSING}
    plain.remove("backups/f1")
    assert catalogue.held().complaints() == {}


def test_another_passphrase_is_told_as_such_whatever_is_damaged(sealed: Sealed) -> None:
    sealed.damage("backups/f1/backup.json", "flipped")
    stranger = sealed.opened("close sesame")
    for ask in (stranger.backups, stranger.points, stranger.require):
        with pytest.raises(Refused, match="encrypted with another passphrase"):
            ask()
    with pytest.raises(Refused, match="encrypted with another passphrase"):
        stranger.remember_point(point(2))
    assert [each.name for each in sealed.opened().points()] == ["p2", "p3", "p6"]


@pytest.mark.parametrize("how", ["flipped", "zeroed"])
def test_a_sealed_mark_that_is_damaged_is_no_other_passphrase(sealed: Sealed, how: str) -> None:
    seen = sealed.opened()
    seen.identity()
    sealed.damage("repository.json", how)
    for each in (seen, sealed.opened()):
        with pytest.raises(PgherdError, match=r"repository\.json is damaged: restore it from a copy"):
            each.identity()
    with pytest.raises(BadInput):
        sealed.opened("close sesame").identity()
    damaged = sealed.inner.read("repository.json")
    seen.create("shop")
    assert sealed.inner.read("repository.json") == damaged


# keys


def secret(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_keys_are_read_from_a_file_of_their_owner(tmp_path: Path) -> None:
    found = secret_file.load(secret(tmp_path, "access-key-id: AKIA\nsecret-access-key: abc\n"))
    keys.check(found, S3, encrypt=False)
    assert found["access-key-id"] == "AKIA"


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("passphrase: x\n", 0o644, "others may read"),
        ("passphrase: 5\n", 0o600, "each key a text"),
        ("- passphrase\n", 0o600, "each key a text"),
        ("{", 0o600, "each key a text"),
    ],
)
def test_a_file_that_is_no_secret_is_refused(tmp_path: Path, text: str, mode: int, told: str) -> None:
    with pytest.raises(Refused, match=told):
        secret_file.load(secret(tmp_path, text, mode))


def test_a_secret_is_named_by_its_absolute_path_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="absolute path"):
        secret_file.load("my-secret")
    with pytest.raises(Refused, match="can't be read: no such file"):
        secret_file.load(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"access-key-id": "AKIA"}, "access-key-id and secret-access-key must be in it"),
        ({"access-key-id": "A", "secret-access-key": "b", "pasphrase": "c"}, "unknown key pasphrase"),
        ({"access-key-id": "A", "secret-access-key": "b"}, "passphrase must be in it"),
        ({"access-key-id": "A\nx", "secret-access-key": "b", "passphrase": "c"}, "one line"),
    ],
)
def test_keys_that_will_not_do_are_refused(found: dict[str, str], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        keys.check(found, S3, encrypt=True)


def test_a_changed_secret_is_noticed(tmp_path: Path) -> None:
    path = secret(tmp_path, "passphrase: x\n")
    before = secret_file.stamp(path)
    Path(path).write_text("passphrase: longer\n")
    assert secret_file.stamp(path) != before
    assert secret_file.stamp(str(tmp_path / "none")) == "unreadable"


def test_buckets_have_names_that_people_know() -> None:
    assert bucket_url(S3) == "s3://safe"
    azure = RepositorySpec.model_validate({"azure": {"account": "herd", "container": "safe"}})
    assert bucket_url(azure) == "azure://herd/safe"


def test_a_damaged_mark_is_one_line(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "shop")
    store.write("repository.json", b"{")
    with pytest.raises(PgherdError, match=r"repository\.json is damaged"):
        Catalogue(store).identity()
