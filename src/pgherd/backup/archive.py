"""One file of a group's log on its way into the repository, or back: PostgreSQL's archive and restore commands.

    archive.py push [--owner ID] [--let-go BYTES] FOLDER PATH NAME     FOLDER/SYSTEM/NAME gets the content of PATH
    archive.py fetch FOLDER NAME PATH                                  the other way round
    archive.py left PATH NAME                                          whether nobody archives PATH (see below)
    archive.py hurry BYTES LOCKS                                       ends who gets no answer (see below)

Runs by itself, by its path (``python -I -S``), with nothing but the standard library: it is started for every file and
must neither be slow nor depend on how pgherd is installed. PostgreSQL starts it in the member's data directory;
Patroni, which archives what a member that died had not, somewhere else, with an absolute PATH.

A file appears in the repository whole, flushed to disk, under its final name, or not at all. Every member of a group
archives, so that nothing is missing when one dies: the same content a second time is fine, other content under the same
name is refused. What belongs to another database system (a cluster of the same name, made anew) has a folder of its
own. A repository that is not there (not mounted) is never made, and nothing is put into one that is another cluster's
than ID, or nobody's yet: a cluster that was restored has the database system of the one that it was restored from.

A file in which its timeline was left is not archived: a standby that follows a promotion has received it up to there
only, the rest is whatever the file held before, and differs from member to member. PostgreSQL wants it archived all the
same. The file of the timeline that begins there holds the same up to there.

With ``--let-go`` a file that the repository does not take is let go once more than so many bytes wait, the oldest
first: PostgreSQL is told that it is archived, and a note says so until the repository takes files again. What is
missing is seen in the repository itself.

pgBackRest, which lets go by itself, looks at how much waits when its process in the background begins, and never again:
one that a store keeps without an answer tries one file after the other, for hours. ``hurry`` ends it, and the next one
looks.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator

MARK = "repository.json"
"""in the folder above the logs': only with it is a repository there"""
NOTE = "pg_wal/pgherd-let-go.json"
"""in the data directory: what was let go since the repository took a file last. No copy or clone takes it along"""
READY = "pg_wal/archive_status"
SEGMENT_BYTES = 16 << 20
SEGMENT_LETTERS = 24
"""in the name of a file of the log: 8 each for its timeline and the two halves of its number"""
CHUNK = 1 << 16
_ZEROS = bytes(CHUNK)
NOWHERE = "there is no repository at"
"""how it is told, to people and to whoever reads a server's words"""
AWAY = 255
"""above 125, by which PostgreSQL knows that a file's absence is not meant"""


class Refused(Exception):
    """Why a file was not taken, in one line."""


class Conflict(Refused):
    """The repository has something else under this name: letting go would leave the wrong content for the right one."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 done; 1 not done (PostgreSQL tries again, or takes the log to end here); 255 nobody can tell whether
    there is such a file, for the repository is away: a server that recovers ends, and does not take that for the end of
    the log."""
    try:
        command, folder, *rest = arguments
        if command == "push":
            given, (folder, path, name) = _options(arguments[1:])
            _enter(path)
            limit = given.get("--let-go")
            push_or_let_go(None if limit is None else int(limit), folder, path, name, given.get("--owner"))
        elif command == "left":
            return 0 if is_left_inside(folder, rest[0]) else 1
        elif command == "hurry":
            hurry(int(folder), rest[0])
        else:
            return 0 if fetch(folder, rest[0], rest[1]) else 1
    except (OSError, Refused) as error:
        print(f"pgherd: {error}", file=sys.stderr)
        return AWAY if arguments[:1] == ["fetch"] else 1
    return 0


def _options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    given: dict[str, str] = {}
    while arguments and arguments[0].startswith("--"):
        given[arguments[0]] = arguments[1]
        arguments = arguments[2:]
    return given, arguments


def _enter(path: str) -> None:
    """Work in the data directory that a file is of; a relative path stays true."""
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(path))))


def push_or_let_go(limit: int | None, folder: str, path: str, name: str, owner: str | None = None) -> None:
    """:func:`push`, or let the file go if it can't be done and more than ``limit`` bytes wait.

    :param owner: the cluster; None: it has no id
    :raises Conflict: the repository has other content under this name
    """
    try:
        if owner is not None:
            require_own(folder, owner)
        push(folder, path, name)
        _forget_note()
    except Conflict:
        raise
    except (OSError, Refused) as error:
        if limit is None or _waiting() <= limit:
            raise
        _note(name, str(error))
        print(f"pgherd: {name} is let go, more than {limit} bytes wait: {error}", file=sys.stderr)


def _forget_note() -> None:
    if os.path.exists(NOTE):
        os.unlink(NOTE)


def _waiting() -> int:
    return SEGMENT_BYTES * sum(name.endswith(".ready") for name in os.listdir(READY))


def hurry(limit: int, locks: str) -> None:
    """Once more than ``limit`` bytes wait in the data directory that this process works in: end pgBackRest's process in
    the background that has these locks. A file comes to the repository whole or not at all, whenever it ends."""
    if _waiting() <= limit:
        return
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
            if f"--lock-path={locks}" in words and any(word.startswith("archive-push:") for word in words):
                os.kill(int(process), signal.SIGTERM)
        except OSError:
            continue  # it has ended, or is somebody else's


def _note(name: str, reason: str) -> None:
    try:
        with open(NOTE, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        known = {"first": name, "since": time.time(), "count": 0}
    temporary = f"{NOTE}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({**known, "last": name, "count": known["count"] + 1, "reason": reason}, file)
    os.replace(temporary, NOTE)


def require_own(folder: str, owner: str) -> None:
    """Refuse a repository that is not this cluster's. One from before owners were written down is that of the cluster
    whose systems it names.

    :raises Refused: in one line
    """
    root = os.path.dirname(os.path.dirname(folder))
    try:
        with open(os.path.join(root, MARK), encoding="utf-8") as file:
            known = json.load(file)
        holder = known.get("owner", "")
        system = known.get("systems", {}).get(os.path.basename(folder))
    except FileNotFoundError:
        return  # there is no repository, which is told below
    except (ValueError, AttributeError):
        raise Refused(f"{root}/{MARK} is damaged: nobody can tell whose repository it is") from None
    if holder not in ("", owner):
        raise Refused(f"{root} holds the backups of another cluster, {holder}")
    if not holder and system != system_of("."):
        raise Refused(f"whose backups {root} holds is known once all groups answer")


def push(folder: str, path: str, name: str) -> None:
    """Archive one file of the data directory that this process works in.

    :param folder: the group's folder of the repository
    :raises Refused: the repository is not there, or has other content under this name
    """
    if not os.path.exists(os.path.join(os.path.dirname(os.path.dirname(folder)), MARK)):
        raise Refused(f"{NOWHERE} {os.path.dirname(os.path.dirname(folder))}")
    place = os.path.join(folder, system_of("."))
    if is_left_inside(path, name, place):
        return
    _make(place)
    _see_to_history(folder, place, path, name)
    final = os.path.join(place, name)
    if not os.path.exists(final):
        temporary = os.path.join(place, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            _copy(path, temporary)
            try:
                os.link(temporary, final)
            except FileExistsError:
                pass  # another member was faster: compared below
            else:
                _sync(place)
                return
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    if not _same(path, final):
        raise Conflict(f"{final} is there with other content: it is left as it is")
    _sync(place)


def _see_to_history(folder: str, place: str, path: str, name: str) -> None:
    """Without its history nothing of a timeline can be read. It may have been let go, and what waits is forgotten when
    Patroni ends a server that had crashed: it only archives files of the log before."""
    history = f"{name[:8]}.history"
    own = os.path.join(os.path.dirname(path), history)
    is_there = os.path.exists(os.path.join(place, history))
    if len(name) == SEGMENT_LETTERS and not is_there and os.path.exists(own):
        push(folder, own, history)


def is_left_inside(path: str, name: str, place: str | None = None) -> bool:
    """Whether a file of the log is one in which its timeline was left, as the histories beside it say, and those that
    are archived: a primary that died has not heard of its successor.

    :param place: where the log is archived
    """
    if len(name) != SEGMENT_LETTERS:
        return False
    timeline, high, low = (int(name[begin : begin + 8], 16) for begin in (0, 8, 16))
    begin = (high << 32) + low * SEGMENT_BYTES
    histories = [*_beside(path), *(_later(place, timeline) if place else ())]
    return any(begin <= end < begin + SEGMENT_BYTES for each in histories for end in _left_at(each, timeline))


def _beside(path: str) -> Iterator[str]:
    log = os.path.dirname(path)
    return (os.path.join(log, name) for name in os.listdir(log) if name.endswith(".history"))


def _later(place: str, timeline: int) -> Iterator[str]:
    """The archived histories of the timelines after one. Not listed: there may be very many files."""
    while os.path.exists(path := os.path.join(place, f"{timeline + 1:08X}.history")):
        yield path
        timeline += 1


def _left_at(history: str, timeline: int) -> Iterator[int]:
    """Where a history says that a timeline was left."""
    with open(history, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            number, place, *_ = [*line.split(None, 2), "", ""]
            high, slash, low = place.partition("/")
            if slash and number == str(timeline):
                yield (int(high, 16) << 32) + int(low, 16)


def fetch(folder: str, name: str, path: str) -> bool:
    """Bring one file back.

    :param folder: of one database system
    :return: whether there is such a file
    :raises Refused: nobody can tell: the repository is away
    :raises OSError: it can't be read; or there is no room for the file
    """
    source = os.path.join(folder, name)
    root = os.path.abspath(os.path.join(folder, *3 * [os.pardir]))
    try:
        if not _is_there(source):
            _require_there(root)
            # The repository may have come back between these looks.
            if not _is_there(source):
                return False
        _copy(source, path, durable=False)
    except OSError:
        _require_there(root)
        raise
    return True


def _is_there(path: str) -> bool:
    """:raises OSError: nobody can tell"""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _require_there(root: str) -> None:
    """Its folder alone says nothing: it may be where a disk is mounted that is away."""
    try:
        os.stat(os.path.join(root, MARK))
    except OSError as error:
        raise Refused(f"{NOWHERE} {root} ({error.strerror})") from error


def system_of(data: str) -> str:
    """The system identifier of a data directory: the first eight bytes of its control file."""
    with open(os.path.join(data, "global", "pg_control"), "rb") as control:
        return str(int.from_bytes(control.read(8), sys.byteorder))


def _make(place: str) -> None:
    if not os.path.isdir(place):
        os.makedirs(place, mode=0o700, exist_ok=True)
        for each in (place, os.path.dirname(place)):
            _sync(os.path.dirname(each))


def _copy(source: str, target: str, *, durable: bool = True) -> None:
    """Without what is zero: a log file that was closed early takes no more room than it has content."""
    with open(source, "rb") as reader, open(target, "wb", opener=_private) as writer:
        for chunk in _chunks(reader.fileno()):
            if chunk == _ZEROS[: len(chunk)]:
                writer.seek(len(chunk), os.SEEK_CUR)
            else:
                writer.write(chunk)
        writer.truncate()
        writer.flush()
        if durable:
            os.fsync(writer.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, CHUNK):
        yield chunk


def _same(one: str, other: str) -> bool:
    if os.path.getsize(one) != os.path.getsize(other):
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        return all(first.read(CHUNK) == chunk for chunk in _chunks(second.fileno()))


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
