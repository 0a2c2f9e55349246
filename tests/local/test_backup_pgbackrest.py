"""Backups by pgBackRest, into a directory and into a real S3 server: the same promises, and clear lines when it fails.

Skipped, counted, where no pgBackRest is installed that knows the server's version (``PGHERD_PGBACKREST`` names one).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pgherd.backup import pgbackrest_program
from pgherd.backup.object_store import ObjectStore
from pgherd.backup.records import now
from pgherd.errors import BadInput, PgherdError
from pgherd.model.spec import RepositorySpec
from tests.support.home import Home, declaration, programs, temporary_home, wait_for
from tests.support.money import await_transfers, make_tables, movers, pause
from tests.support.objects import BUCKET, KEY, SECRET, Objects, objects
from tests.support.points import audit_point, choose, inside, kind, newest
from tests.support.repositories import (
    assert_sound,
    await_first_backup,
    await_point_after,
    backups,
    condition,
    points,
    restorable,
    restores,
    write_seconds,
)

ROWS = 20_000
PASSPHRASE = "correct horse battery staple"


def _unusable() -> str | None:
    try:
        pgbackrest_program.check(programs().major)
    except PgherdError as error:
        return str(error)
    return None


REASON = _unusable()
pytestmark = [pytest.mark.local, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def with_pgbackrest(repository: dict[str, Any], secret: Path | None = None, **more: Any) -> str:
    """A declaration with backups by pgBackRest, points every second."""
    shape = {key: more.pop(key) for key in ("name", "standbys", "segments", "shards") if key in more}
    backup = {"method": "pgbackrest", "repository": repository, "restorePointEvery": "1s", **more}
    if secret is not None:
        backup["secretRef"] = str(secret)
    return declaration(extra=f"  backup: {json.dumps(backup)}\n", **shape)


def write_secret(path: Path, **keys: str) -> Path:
    path.write_text(yaml.safe_dump({name.replace("_", "-"): value for name, value in keys.items()}))
    path.chmod(0o600)
    return path


def make_items(home: Home, name: str = "shop") -> None:
    with home.connect(name) as connection:
        connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, note text, filler text)")
        connection.execute("SELECT create_distributed_table('item', 'id')")
        connection.execute(
            f"INSERT INTO item SELECT g, 'n' || g, repeat('x', 400) FROM generate_series(1, {ROWS}) g"
        )


def contents(home: Home, name: str = "shop") -> tuple[object, ...]:
    return home.query("SELECT count(*), sum(id)::bigint, count(DISTINCT note) FROM item", name)[0]


def in_file(path: Path, repository: dict[str, Any], secret: Path, *, encrypt: bool) -> str:
    """A file that says where backups are, for ``--repository``."""
    said = {"method": "pgbackrest", "repository": repository, "secretRef": str(secret), "encrypt": encrypt}
    path.write_text(json.dumps(said))
    return str(path)


# a directory, encrypted


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with temporary_home() as home:
        folder = home.path.parent
        secret = write_secret(folder / "keys.yaml", passphrase=PASSPHRASE)
        home.up(with_pgbackrest({"path": str(folder / "repository")}, secret, encrypt=True), timeout=300)
        make_items(home)
        with home.connect() as connection:
            make_tables(connection)
        await_first_backup(home)
        await_point_after(home, now()[:10])
        yield home


def lean(folder: Path) -> str:
    """A declaration of the same shape without standbys and backups."""
    path = folder / "lean.yaml"
    path.write_text(declaration(name="any", standbys=0))
    return str(path)


def test_points_under_moving_money_have_the_right_sum_and_no_later_row(home: Home, tmp_path: Path) -> None:
    with movers(home.dsn()) as ledger:
        time.sleep(write_seconds(4))
        pause(ledger)
        await_point_after(home, newest(ledger))
        before = home.member("segment-1", "primary")["name"]
        psutil.Process(home.postmaster(before)).kill()
        home.await_another_primary("segment-1", before)
        ledger.paused.clear()
        await_transfers(ledger, 10)
        time.sleep(write_seconds(3))
    await_point_after(home, newest(ledger))
    assert not ledger.errors, ledger.errors[:3]
    offered = restorable(home)
    chosen = choose(offered, inside(offered, ledger), restores(2))
    assert {timeline for timeline, _ in (kind(offered[n]) for n in chosen)} == {1, 2}, (
        "there are points from before and from after the failover"
    )
    for n in sorted(chosen):
        point = offered[n]
        home.run("restore", "shop", "then", "--point", point["name"], "-f", lean(tmp_path), timeout=400)
        with home.connect("then") as connection:
            audit_point(connection, ledger, offered, n)
        assert_sound(home, "then")
        assert not (home.path / "then" / "source").exists(), "its passphrase is not left here"
        home.run("delete", "then", "--purge", "--yes")


def test_later_backups_hold_what_changed_and_a_chain_is_restored(home: Home, tmp_path: Path) -> None:
    home.run("backup", "shop", "--type", "full", timeout=300)
    home.query(f"UPDATE item SET note = note || '!' WHERE id <= {ROWS // 100} RETURNING 1")
    done = home.run("backup", "shop", "--type", "incremental", timeout=300)
    assert "is done (3 groups" in done.stdout
    home.query(f"UPDATE item SET note = note || '?' WHERE id <= {ROWS // 100} RETURNING 1")
    home.run("backup", "shop", "--type", "differential", timeout=300)
    home.run("backup", "shop", "--type", "incremental", timeout=300)
    full, first, differential, last = backups(home)[-4:]
    assert [each["phase"] for each in (full, first, differential, last)] == ["done"] * 4
    assert {group["parent"] for group in first["groups"].values()} == {full["id"]}
    assert {group["parent"] for group in differential["groups"].values()} == {full["id"]}
    assert {group["parent"] for group in last["groups"].values()} == {differential["id"]}
    assert last["bytes"] < full["bytes"]
    before = contents(home)
    home.query("UPDATE item SET note = 'lost' WHERE id <= 50 RETURNING 1")
    home.run("restore", "shop", "chained", "--backup", last["id"], "-f", lean(tmp_path), timeout=400)
    assert contents(home, "chained") == before
    home.run("delete", "chained", "--purge", "--yes")


def is_lock(path: Path) -> bool:
    return path.name == "lock" or (path.name.startswith(".archive-") and not path.stat().st_size)


def test_everything_in_the_repository_is_encrypted_and_no_secret_is_on_a_command_line(home: Home) -> None:
    root = home.path.parent / "repository"
    files = [path for path in root.rglob("*") if path.is_file() and not is_lock(path)]
    assert len(files) > 20
    # What pgBackRest bundles has no mark of its own.
    kept = {path: path.read_bytes() for path in files if path.parent.name != "bundle"}
    assert {content[:8] for content in kept.values()} == {b"Salted__", b"pgherd-s"}
    assert not [path for path in files if b"segment" in path.read_bytes()]
    assert not [process for process in home.processes() if PASSPHRASE in " ".join(process.cmdline())]
    config = home.path / "shop" / "backup" / "pgbackrest.conf"
    assert PASSPHRASE in config.read_text()
    assert config.stat().st_mode & 0o077 == 0


def test_a_cluster_is_taken_back_in_place_and_goes_on_with_its_backups(home: Home) -> None:
    before, target = contents(home), restorable(home)[-1]
    home.query("DELETE FROM item RETURNING 1")
    home.run("restore", "shop", "--in-place", "--point", target["name"], "--yes", timeout=400)
    assert contents(home) == before
    home.run("restore", "shop", "--confirm")
    written = now()
    home.query("INSERT INTO item VALUES (-3, 'on the new timeline') RETURNING 1")
    later = await_point_after(home, written)
    assert later["lsns"]["1"]["timeline"] > target["lsns"]["1"]["timeline"]
    home.run("backup", "shop", "--type", "incremental", timeout=300)
    assert_sound(home, "shop")


def test_another_passphrase_is_one_clear_line(home: Home, tmp_path: Path) -> None:
    repository = {"path": str(home.path.parent / "repository")}
    wrong = write_secret(tmp_path / "wrong.yaml", passphrase="something else")
    where = in_file(tmp_path / "wrong-repository.yaml", repository, wrong, encrypt=True)
    refusals = {
        ("restore-points", "shop", "--repository", where): "is encrypted with another passphrase",
        ("restore", "shop", "x", "--repository", where): "is encrypted with another passphrase",
    }
    for arguments, told in refusals.items():
        done = home.run(*arguments, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
        assert told in done.stderr
    with temporary_home() as another:
        for secret, told in (
            (wrong, "another passphrase"),
            (home.path.parent / "keys.yaml", "another cluster"),
        ):
            done = another.up(with_pgbackrest(repository, secret, encrypt=True, standbys=0), check=False)
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done
            assert told in done.stderr
        assert another.run("list").stdout == ""


def test_a_repository_of_another_method_is_refused(home: Home) -> None:
    with temporary_home() as another:
        native = f"  backup: {{repository: {{path: {home.path.parent / 'plain'}}}}}\n"
        another.up(declaration(extra=native, standbys=0, segments=1, shards=2), timeout=300)
        done = another.up(
            with_pgbackrest({"path": str(home.path.parent / "plain")}, standbys=0, segments=1, shards=2),
            check=False,
        )
        assert done.returncode == 2
        assert "holds backups made with native" in done.stderr


def test_what_retention_lets_go_is_gone_from_pgbackrest_too(home: Home) -> None:
    from pgherd.backup.registry import make_method
    from pgherd.model.spec import RetentionSpec
    from pgherd.platform.local.platform import LocalPlatform

    platform = LocalPlatform(home.path)
    method = make_method(platform, platform.declaration("shop").cluster)
    before = backups(home)
    assert sum(each["type"] == "full" and each["phase"] == "done" for each in before) > 1
    declared = platform.declaration("shop").cluster
    spec = declared.spec.backup
    assert spec is not None
    changed = spec.model_copy(update={"retention": RetentionSpec(full=1, days=0)})
    platform.declare(
        declared.model_copy(update={"spec": declared.spec.model_copy(update={"backup": changed})})
    )
    home.run("backup", "shop", "--type", "full", timeout=300)
    wait_for(lambda: len(backups(home)) == 1, "retention runs after the backup", 120, every=1)
    (left,) = backups(home)
    labels: set[str] = set()
    for group, system in method.systems():
        found = method._info(f"{'coordinator' if group == 0 else f'segment-{group}'}-{system}")  # type: ignore[attr-defined]
        labels.update(each["label"] for each in found)
    assert len(labels) == len({made.label for made in method.repository.backup(left["id"]).groups.values()})
    # What is left is enough.
    written = now()
    home.query("INSERT INTO item VALUES (-9, 'after retention') RETURNING 1")
    point = await_point_after(home, written)
    home.run("restore", "shop", "thin", "--point", point["name"], timeout=400)
    assert contents(home, "thin") == contents(home)
    home.run("delete", "thin", "--purge", "--yes")


STEPS = (
    *("backup:running", "backup:group:copied", "backup:group:recorded", "backup:point", "point:made"),
    *("restore:planned", "restore:copied:1", "restore:reached:1", "restore:opened", "restore:settled"),
)


def test_killed_at_every_step_a_backup_comes_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "crashes"
    with temporary_home({"PGHERD_CRASH_AT": ",".join(STEPS), "PGHERD_CRASH_LOG": str(log)}) as home:
        repository = {"path": str(home.path.parent / "repository")}
        home.up(with_pgbackrest(repository, standbys=0), timeout=400)
        make_items(home)
        written = now()
        wait_for(lambda: home.run("start", "shop") and backups(home)[0]["phase"] == "done", "a backup", 240)
        assert len(backups(home)) == 1
        copies = list((home.path.parent / "repository" / "shop" / "pgbackrest" / "backup").glob("*/*F"))
        assert len(copies) == 3, "what was made before a kill is found again, not made twice"
        target = await_point_after(home, written)
        home.run("restore", "shop", "again", "--point", target["name"], timeout=600)
        assert contents(home, "again") == contents(home)
        assert set(STEPS) <= set(log.read_text().split())


def test_a_damaged_copy_is_found_and_named(home: Home) -> None:
    target = restorable(home)[-1]
    root = home.path.parent / "repository" / "shop" / "pgbackrest" / "backup"
    bundles = [path for path in root.glob("segment-1-*/*/bundle/*") if path.is_file()]
    before = {path: path.read_bytes() for path in bundles}
    try:
        for path, content in before.items():
            path.write_bytes(content[: len(content) // 2] + bytes(64) + content[len(content) // 2 + 64 :])
        done = home.run("restore", "shop", "broken", "--point", target["name"], check=False, timeout=300)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert done.returncode == 1
    assert "can't be restored" in done.stderr
    assert "restore to a point that another backup serves" in done.stderr
    home.run("delete", "broken", "--purge", "--yes")


def test_a_group_that_lost_all_its_data_comes_back_complete(home: Home) -> None:
    before = contents(home)
    home.run("stop", "shop", timeout=120)
    wait_for(lambda: home.status()["phase"] == "Stopped", "it is stopped", 60, every=0.5)
    for member in (home.path / "shop" / "members").glob("shop-segment-1-*"):
        shutil.rmtree(member / "data")
    home.run("start", "shop", "--no-wait")
    wait_for(
        lambda: "the data of segment-1 are gone" in condition(home, "DataLost").get("message", ""),
        "the status tells",
        90,
        every=0.5,
    )
    home.run("repair", "shop", "--group", "segment-1", timeout=400)
    assert contents(home) == before
    home.run("repair", "shop", "--group", "segment-1", "--confirm")
    home.wait_phase("Running", timeout=180)  # its standby is copied meanwhile
    assert_sound(home, "shop")


def test_a_program_that_is_not_there_is_refused_in_one_line() -> None:
    with temporary_home({"PGHERD_PGBACKREST": "/nowhere/pgbackrest"}) as home:
        done = home.up(with_pgbackrest({"path": "/tmp/never-made"}, standbys=0), check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "pgbackrest is not installed here" in done.stderr
        assert not Path("/tmp/never-made").exists()


# a real S3 server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Objects]:
    with objects(tmp_path_factory.mktemp("objects") / "s3") as server:
        yield server


def s3_secret(folder: Path, key: str = SECRET, **more: str) -> Path:
    return write_secret(folder / "s3.yaml", access_key_id=KEY, secret_access_key=key, **more)


@pytest.fixture(scope="module")
def far(store: Objects) -> Iterator[Home]:
    with temporary_home() as home:
        secret = s3_secret(home.path.parent, passphrase=PASSPHRASE)
        repository = store.declared(prefix="herd/clusters")
        home.up(with_pgbackrest(repository, secret, encrypt=True, standbys=0), timeout=300)
        make_items(home)
        await_first_backup(home)
        await_point_after(home, now()[:10])
        yield home


def test_backups_go_to_s3_and_come_back(far: Home) -> None:
    far.query(f"UPDATE item SET note = note || '!' WHERE id <= {ROWS // 100} RETURNING 1")
    far.run("backup", "shop", "--type", "incremental", timeout=300)
    written = now()
    far.query("INSERT INTO item VALUES (-1, 'the last one') RETURNING 1")
    target = await_point_after(far, written)
    before = contents(far)
    far.query("DELETE FROM item WHERE id % 2 = 0 RETURNING 1")
    far.run("restore", "shop", "back", "--point", target["name"], timeout=400)
    assert contents(far, "back") == before
    assert_sound(far, "back")
    assert far.status()["backups"]["repository"] == f"s3://{BUCKET}/herd/clusters/shop"
    assert condition(far, "BackupsHealthy")["status"] == "True"
    # It goes on with backups of its own, beside those of its source.
    await_first_backup(far, "back")
    far.run("delete", "back", "--purge", "--yes")


def test_a_cluster_that_is_gone_is_restored_from_its_bucket(
    store: Objects, far: Home, tmp_path: Path
) -> None:
    secret = far.path.parent / "s3.yaml"
    where = in_file(
        tmp_path / "repository.yaml", store.declared(prefix="herd/clusters"), secret, encrypt=True
    )
    with temporary_home() as elsewhere:
        assert backups(elsewhere, "--repository", where)
        target = restorable(elsewhere, "--repository", where)[-1]
        shape = tmp_path / "shape.yaml"
        shape.write_text(declaration(name="any", standbys=0))
        elsewhere.run(
            *("restore", "shop", "risen", "--repository", where, "--point", target["name"], "-f", str(shape)),
            timeout=400,
        )
        assert elsewhere.query("SELECT count(*) FROM item", "risen")[0][0] > 0


def test_a_store_that_is_away_is_told_and_missed_by_nobody_who_writes(far: Home, store: Objects) -> None:
    process = psutil.Process(store.process.pid)
    process.suspend()
    try:
        far.query("INSERT INTO item VALUES (-2, 'while it is away') RETURNING 1")
        told = wait_for(
            lambda: (found := condition(far, "BackupsHealthy"))["status"] == "False" and found,
            "the condition tells",
            120,
            every=1,
        )
        assert f"s3://{BUCKET}" in told["message"]
        assert far.status()["phase"] == "Running"
    finally:
        process.resume()
    wait_for(
        lambda: condition(far, "BackupsHealthy")["status"] == "True",
        "it is well again by itself",
        180,
        every=1,
    )
    written = now()
    far.query("DELETE FROM item WHERE id = -2 RETURNING 1")
    await_point_after(far, written)


def test_a_drill_restores_from_the_bucket(far: Home) -> None:
    done = far.run("drill", "shop", timeout=600)
    assert "was restored and is sound" in done.stdout
    last = wait_for(lambda: far.status()["backups"].get("lastDrill"), "the status tells", 60, every=1)
    assert last["passed"]
    assert last["restorePoint"] in {point["name"] for point in points(far)}


def test_what_is_wrong_with_a_bucket_is_one_clear_line_and_nothing_is_made(
    store: Objects, tmp_path: Path
) -> None:
    good, wrong = s3_secret(tmp_path), tmp_path / "wrong"
    wrong.mkdir()
    bad = s3_secret(wrong, "not the secret")
    cases = {
        "refuses these keys": (store.declared(), bad),
        "there is no such bucket": (store.declared("nowhere-at-all"), good),
        "its certificate is from nobody known here": (_without(store.declared(), "caFile"), good),
        "does not answer": (store.declared(endpoint="127.0.0.1:1"), good),
        "others may read": (store.declared(), _readable(tmp_path, good)),
    }
    with temporary_home() as home:
        for told, (repository, secret) in cases.items():
            done = home.up(with_pgbackrest(repository, secret, standbys=0), check=False, timeout=120)
            assert (done.returncode in (1, 2), len(done.stderr.splitlines())) == (True, 1), done
            assert told in done.stderr, done.stderr
        assert home.run("list").stdout == ""


def _without(repository: dict[str, Any], key: str) -> dict[str, Any]:
    return {"s3": {name: value for name, value in repository["s3"].items() if name != key}}


def _readable(folder: Path, secret: Path) -> Path:
    path = folder / "readable.yaml"
    shutil.copy(secret, path)
    path.chmod(0o644)
    return path


def test_the_store_of_records_behaves_as_a_directory_does(store: Objects) -> None:
    keys = {"access-key-id": KEY, "secret-access-key": SECRET}
    bucket = ObjectStore(RepositorySpec.model_validate(store.declared()), "a/folder", keys)
    assert bucket.read("none.json") is None
    assert bucket.names("points") == []
    bucket.write("points/one.jsonl", b"1\n")
    before = bucket.names("points")
    bucket.append("points/one.jsonl", b"2\n")
    assert bucket.read("points/one.jsonl") == b"1\n2\n"
    assert [entry.name for entry in bucket.names("points")] == ["points/one.jsonl"]
    assert bucket.names("points") != before
    for name in ("backups/x/backup.json", "backups/y/backup.json", "backups/xy.json"):
        bucket.write(name, b"{}")
    assert bucket.folders("backups") == ["x", "y"]
    bucket.remove("backups/x")
    bucket.remove("backups/never")
    assert bucket.folders("backups") == ["y"]
    assert [entry.name for entry in bucket.names("backups")] == ["backups/xy.json"]
    with pytest.raises(BadInput, match="refuses these keys"):
        ObjectStore(
            RepositorySpec.model_validate(store.declared()), "a", {**keys, "access-key-id": "x"}
        ).names("")
