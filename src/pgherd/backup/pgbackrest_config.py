"""pgBackRest's configuration, stanzas and commands, as texts. Pure.

A stanza is one group's database system: a group that is rebuilt with another system (a new segment of an old number, a
cluster made anew) gets another stanza, so that pgBackRest never has to tell two histories apart.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgherd.model.spec import RepositorySpec
from pgherd.model.topology import group_id, group_name

FOLDER = "pgbackrest"
"""of what pgBackRest keeps, beside what is remembered"""
ANNOTATION = "pgherd-backup"
"""which backup of ours one of pgBackRest's belongs to"""
CIPHER = "aes-256-cbc"

LOCK_SECONDS = 30
"""how long a member waits for another one that archives; PostgreSQL tries again"""

SINCE = {13: (2, 30), 14: (2, 36), 15: (2, 41), 16: (2, 48), 17: (2, 54), 18: (2, 57)}
"""the first pgBackRest that knows a PostgreSQL"""

_SYSTEM = "$(od -An -tu8 -N8 global/pg_control | tr -dc 0-9)"
_BESIDE = '"$(dirname "$PWD")/spool"'


@dataclass(frozen=True)
class Settings:
    """What a configuration is made of.

    :param folder: the cluster's place in the repository: an absolute path, or one in the bucket
    :param cores: how many processes copy side by side
    :param secrets: keys by their names in the secret
    :param key_file: where the service account's key of ``gcs`` is written
    :param authority: a file with the certificate of the store's authority
    :param let_go: with so many bytes waiting a member lets go of what the repository does not take; None: never
    """

    repository: RepositorySpec
    folder: str
    cores: int
    compress: str
    encrypt: bool
    secrets: Mapping[str, str]
    key_file: str | None = None
    authority: str | None = None
    let_go: int | None = None


def archives_alone(repository: RepositorySpec) -> bool:
    """Whether the members of a group archive one after the other, under a lock: what they write are files that all of
    them see. An object store takes each file whole. A machine without ``flock`` has no such lock."""
    if repository.path is not None:
        return shutil.which("flock") is not None
    return repository.volume is not None


def render(settings: Settings) -> str:
    """``pgbackrest.conf``. It holds secrets: only its owner may read it."""
    options = {
        **_repository(settings),
        "repo1-bundle": "y",
        "repo1-block": "y",
        "compress-type": settings.compress,
        "process-max": str(settings.cores),
        "start-fast": "y",
        # Every member archives, so that nothing is missing when one dies; the same content twice is fine.
        "archive-mode-check": "n",
        # What may go is said by pgherd's rule, which knows what the points of all groups need.
        "expire-auto": "n",
        "repo1-retention-full": "9999999",
        # Each file's answer is waited for by PostgreSQL: a process in the background asks ahead.
        "archive-async": "y",
        "log-level-file": "off",
        "log-level-console": "warn",
        "log-timestamp": "n",
    }
    lines = ["[global]", *(f"{name}={value}" for name, value in options.items())]
    # In order, one after the other: what is there of a log is then there without a gap.
    lines += ["", "[global:archive-push]", "process-max=1"]
    if archives_alone(settings.repository):
        # One file at a time, under the lock of archive_command, which must not be a process's in the background.
        lines.append("archive-async=n")
    if settings.let_go is not None:
        lines.append(f"archive-push-queue-max={settings.let_go}")
    return "\n".join(lines) + "\n"


def _repository(settings: Settings) -> dict[str, str]:
    declared, secrets = settings.repository, settings.secrets
    options = {"repo1-path": f"/{settings.folder.strip('/')}/{FOLDER}"}
    if declared.s3 is not None:
        options |= _s3(settings)
    elif declared.gcs is not None:
        options |= {"repo1-type": "gcs", "repo1-gcs-bucket": declared.gcs.bucket}
        if settings.key_file and "service-account" in secrets:
            options |= {"repo1-gcs-key-type": "service", "repo1-gcs-key": settings.key_file}
        else:
            options["repo1-gcs-key-type"] = "auto"
    elif declared.azure is not None:
        options |= {
            "repo1-type": "azure",
            "repo1-azure-account": declared.azure.account,
            "repo1-azure-container": declared.azure.container,
            **_azure_key(secrets),
        }
    remote = declared.s3 or declared.gcs or declared.azure
    if remote is not None and not remote.verify_tls:
        options["repo1-storage-verify-tls"] = "n"
    if settings.authority is not None:
        options["repo1-storage-ca-file"] = settings.authority
    if settings.encrypt:
        options |= {"repo1-cipher-type": CIPHER, "repo1-cipher-pass": secrets.get("passphrase", "")}
    return options


def _s3(settings: Settings) -> dict[str, str]:
    declared, secrets = settings.repository.s3, settings.secrets
    assert declared is not None
    options = {
        "repo1-type": "s3",
        "repo1-s3-bucket": declared.bucket,
        "repo1-s3-region": declared.region,
        "repo1-s3-endpoint": declared.endpoint or f"s3.{declared.region}.amazonaws.com",
        "repo1-s3-uri-style": declared.uri_style,
    }
    if "access-key-id" not in secrets:
        return {**options, "repo1-s3-key-type": "auto"}
    options |= {
        "repo1-s3-key": secrets["access-key-id"],
        "repo1-s3-key-secret": secrets.get("secret-access-key", ""),
    }
    return options | ({"repo1-s3-token": secrets["session-token"]} if "session-token" in secrets else {})


def _azure_key(secrets: Mapping[str, str]) -> dict[str, str]:
    if "sas-token" in secrets:
        return {"repo1-azure-key-type": "sas", "repo1-azure-key": secrets["sas-token"]}
    if "account-key" in secrets:
        return {"repo1-azure-key-type": "shared", "repo1-azure-key": secrets["account-key"]}
    return {"repo1-azure-key-type": "auto"}


def stanza(group: int, system: str) -> str:
    """The stanza of a group's database system."""
    return f"{group_name(group)}-{system}"


def parse_stanza(name: str) -> tuple[int, str] | None:
    """The inverse of :func:`stanza`; None: it is none of ours."""
    group, _, system = name.rpartition("-")
    try:
        return (group_id(group), system) if system.isdecimal() else None
    except ValueError:
        return None


def archive_command(
    command: Sequence[str],
    script: Sequence[str],
    group: int,
    shared: str | None = None,
    let_go: int | None = None,
) -> str:
    """What every member of a group runs for each file of its log.

    :param command: pgBackRest with its configuration
    :param shared: a folder that the group's members archive into as files (:func:`archives_alone`). pgBackRest writes a
        file aside under one and the same name, whoever writes it: of two at once the second empties what the first one
        is about to put in its place, and if it dies then, a file is left that is not whole. So it is one after the
        other there
    :param script: ``archive.py``: it tells of a file whether its timeline was left in it, and ends who gets no answer
    :param let_go: see :class:`Settings`

    The database system is read where the file is, as the stanza's name holds it: a member that belongs to another
    one by mistake can't archive into this one's. A file in which its timeline was left is passed over (``archive``).
    """
    name = f"{group_name(group)}-{_SYSTEM}"
    own = _OWN_LOCK if shared else _OWN
    alone = f"flock -w {LOCK_SECONDS} {_shell([f'{shared}/.archive-{group_name(group)}'])} " if shared else ""
    push = f'{alone}{_shell(command)} --stanza="{name}" {own} archive-push "%p"'
    if let_go is not None and not shared:
        hurry = f"{_shell([*script, 'hurry', str(let_go)])} {_BESIDE}/lock"
        push = f"{{ {push} || {{ code=$?; {hurry}; exit $code; }}; }}"
    # Patroni, which archives what a member that died had not, runs it somewhere else, with an absolute path.
    return f'cd "$(dirname "%p")/.." && {{ {_shell([*script, "left"])} "%p" %f || {push}; }}'


def restore_command(command: Sequence[str], group: int, system: str) -> str:
    """What a recovering server runs to get a file of the log.

    Only "there is no such file" (1) may count as that. To PostgreSQL every exit code up to 125 does: it would take a
    moment's trouble for the end of the log, or a timeline's number for a free one. With a higher one it gives up.
    """
    get = f'{_shell(command)} --stanza={stanza(group, system)} {_OWN} archive-get %f "%p"'
    return f"{get}; code=$?; [ $code -le 1 ] || exit 255; exit $code"


_OWN = f'--pg1-path="$PWD" --spool-path={_BESIDE} --lock-path={_BESIDE}/lock'
"""each member's own: members of one group may share a machine"""
_OWN_LOCK = f'--pg1-path="$PWD" --lock-path={_BESIDE}/lock'
"""the same of who has no process in the background: pgBackRest lets him name no spool"""


def _shell(command: Sequence[str]) -> str:
    """For the shell that PostgreSQL runs it with, and for PostgreSQL, to which % means something."""
    return shlex.join(command).replace("%", "%%")


_COMPLAINT = re.compile(r"(?:P\d+\s+)?\b(?:ERROR|WARN|FATAL):\s*(?:\[\d+\]:\s*)?")


def complaint(text: str) -> str:
    """What pgBackRest says, as one line without its numbers."""
    lines = [_COMPLAINT.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:400]


_OWN_LINE = re.compile(r"P\d+\s+(?:WARN|ERROR):|\[\w+Error\]")
_AWAY = re.compile(
    r"\[(?:HostConnect|Service|Protocol)Error\]|unable to connect|unable to get address|TLS error"
    r"|HTTP request failed with (?:401|403|5\d\d)"
    r"|unable to open missing file '[^']*/pgbackrest\.conf'"
)
_NO_LOG = re.compile(r"\[FileMissingError\] unable to load info file '[^']*/archive\.info'")


def is_away(complaint: str) -> bool:
    """Whether pgBackRest complains that it does not reach a repository, or is refused there. What its configuration
    says may be a minute old in a pod, so that keys may be right by now, or there."""
    return _AWAY.search(complaint) is not None


def hindrance(said: str, *, near: bool) -> str | None:
    """The same of the pgBackRest that a recovering server runs: what it said of that; None: nothing.

    :param said: by both; what was before the last file that was read counts no more
    :param near: the repository is a directory: where not even what a log begins with is there, it is away. A bucket
        that answers without it has lost it
    """
    lines = said.rpartition("restored log file")[2].splitlines()
    found = [
        line
        for line in lines
        if _OWN_LINE.search(line) and (is_away(line) or (near and _NO_LOG.search(line)))
    ]
    return complaint(found[-1]) if found else None


_SHARE = re.compile(r"(\d+(?:\.\d+)?)%\)")


def share_done(text: str) -> float | None:
    """How much of a backup or a restore is done, from what it said last: 0 to 1."""
    found = _SHARE.findall(text)
    return float(found[-1]) / 100 if found else None


def version_problem(said: str, major: int) -> str | None:
    """Why a pgBackRest can't be used with a PostgreSQL; None: it can.

    :param said: what ``pgbackrest version`` printed
    """
    match = re.search(r"(\d+)\.(\d+)(\.\d+)?", said)
    if match is None:
        return f"what it says of its version is not understood: {said[:60]!r}"
    here = (int(match[1]), int(match[2]))
    needed = SINCE.get(major, max(SINCE.values()) if major > max(SINCE) else min(SINCE.values()))
    if here < needed:
        return (
            f"pgBackRest {match[0]} is here, which does not know PostgreSQL {major}: install "
            f"{needed[0]}.{needed[1]} or later, or name another PostgreSQL with --bin-dir"
        )
    return None
