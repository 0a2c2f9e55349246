"""Records in any store: sealed ones are read by nobody without the passphrase, and keys that won't do are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pgherd.backup import keys
from pgherd.backup.catalogue import Catalogue
from pgherd.backup.object_store import bucket_url
from pgherd.backup.sealed import SealedStore
from pgherd.backup.store import DirectoryStore, Entry, Store
from pgherd.errors import BadInput, PgherdError
from pgherd.model.spec import RepositorySpec
from pgherd.platform.local import secret_file
from tests.support.backups import at, backup, point

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
    with pytest.raises(BadInput, match=told):
        secret_file.load(secret(tmp_path, text, mode))


def test_a_secret_is_named_by_its_absolute_path_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="absolute path"):
        secret_file.load("my-secret")
    with pytest.raises(BadInput, match="can't be read: no such file"):
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
