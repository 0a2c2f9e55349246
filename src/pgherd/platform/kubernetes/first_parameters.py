"""Parameters and access rules of a cluster of which nobody has ever run: its first pods ask their own PostgreSQL.

Running members are asked about changes (:mod:`~pgherd.platform.kubernetes.opinions`) and read access rules themselves;
here is none yet. So each pod that begins without data, or with some that no server of this cluster has run with (from a
backup, of another cluster), asks before it makes or starts any, and ends with one line if something is refused: Patroni
would leave such a parameter out, silently, or fail over and over. A pod that ended so is replaced once something else
is declared. From the moment on in which somebody takes part nobody is asked any more here: a standby must never be
refused for what its primary runs with. Pure.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from typing import Any

from pgherd.model.spec import PostgresCluster
from pgherd.model.spec_hba import HBA_PATH, hba_line_number, hba_lines
from pgherd.platform.kubernetes import names, patroni_files
from pgherd.platform.parameters import QUESTION, absent, path_of, setting

REFUSED = 78
"""how a container ends whose PostgreSQL refuses what is declared (sysexits.h: EX_CONFIG)"""
ANNOTATION = f"{names.DOMAIN}/first-parameters"
"""on pods: of what they were told to ask"""

_SCRATCH = "/tmp/first-rules"
_VALIDATORS = "oauth_validator_libraries"
_MOST_SAID = 2000
"""characters about wrong lines: Kubernetes keeps 4096 of what a container says last"""

SCRIPT = """\
#!/bin/sh
# Asks this image's PostgreSQL about what is declared. Who can't be asked refuses nothing: it will say why itself.
# A pod that was refused is started over and over: what is known need not be asked again.
known=/tmp/first-@MARK@
refused=$(cat "$known" 2> /dev/null)
refuse() {
    refused="$refused${refused:+; }$1: $2"
}
ask() {
    code=0
    said=$(LC_ALL=C @BIN@/postgres @QUESTION@ "$2" 2>&1 > /dev/null) || code=$?
    [ "$code" -eq 1 ] || return 0
    told=$(printf '%s\\n' "$said" | awk 'match($0, /(FATAL|DETAIL|HINT): */) {
        printf "%s%s", sep, substr($0, RSTART + RLENGTH)
        sep = "; "
    }')
    refuse "$1" "${told:-PostgreSQL refuses it}"
}
look() {
    [ -e "$2" ] || refuse "$1" "$3"
}
read_rules() {
    # PostgreSQL reads such lines only beside a database: one of no consequence, in which no server is started.
    path=$1 setting=$2 query=$3
    shift 3
    rm -rf @SCRATCH@
    if LC_ALL=C @BIN@/initdb -D @SCRATCH@ -U postgres -A trust -E UTF8 --locale=C --no-sync --wal-segsize=1; then
        printf '%s\\n' "$@" > @SCRATCH@/pg_hba.conf
        printf '%s\\n' "$query" | LC_ALL=C @BIN@/postgres --single -F -D @SCRATCH@ -c "$setting" postgres
        told=$(cat @SCRATCH@/told)
        [ -z "$told" ] || refuse "$path" "$told"
    fi > /dev/null 2>&1
    rm -rf @SCRATCH@
}
if [ -z "$refused" ]; then
    :
@QUESTIONS@
fi
if [ -n "$refused" ]; then
    printf '%s\\n' "$refused"
    printf '%s\\n' "$refused" > /dev/termination-log || true
    printf '%s\\n' "$refused" > "$known" || true
    exit @REFUSED@
fi
"""


# A server without clients takes each line for a statement. COPY's usual formats would change backslashes and quotes.
_QUERY = (
    "COPY (SELECT left(translate(string_agg(format('line %s (%s) can''t be read: %s', (ARRAY[@NUMBERS@])[line_number],"
    r" left((string_to_array(pg_read_file(current_setting('hba_file')), E'\n'))[line_number], 100),"
    " coalesce(error, 'no reason given')), '; ' ORDER BY line_number), E'\\n\\r', '  '),"
    f" {_MOST_SAID}) FROM pg_hba_file_rules WHERE type IS NULL) TO '{_SCRATCH}/told'"
    r" (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')"
)


def questions(cluster: PostgresCluster, server_major: int, status: Mapping[str, Any] | None) -> str:
    """What a pod runs before it makes or starts the first data; empty: there is nothing to ask.

    :param status: as it was written last
    """
    if (status or {}).get("admitted"):
        return ""
    asked = [*_of_parameters(cluster, server_major), *_of_rules(cluster)]
    if not asked:
        return ""
    text = "\n".join(f"    {shlex.join(question)}" for question in asked)
    return (
        SCRIPT.replace("@BIN@", f"/usr/lib/postgresql/{server_major}/bin")
        .replace("@QUESTION@", shlex.join(QUESTION))
        .replace("@REFUSED@", str(REFUSED))
        .replace("@SCRATCH@", _SCRATCH)
        .replace("@MARK@", _mark(text))
        .replace("@QUESTIONS@", text)
    )


def _of_parameters(cluster: PostgresCluster, server_major: int) -> list[list[str]]:
    parameters = cluster.spec.postgres.parameters
    preloaded = patroni_files.preloaded(parameters, server_major)
    asked = [["ask", path_of(name), setting(name, value)] for name, value in parameters.items()]
    return asked + [
        ["look", path_of(name), f"{file}.so", absent(library)] for name, library, file in preloaded
    ]


def _of_rules(cluster: PostgresCluster) -> list[list[str]]:
    """What of the declaration's pg_hba lines PostgreSQL itself can't read: a regular expression, what it was built
    without."""
    text = cluster.spec.postgres.host_based_authentication
    lines = hba_lines(text)
    if not lines:
        return []
    declared = {name.lower(): value for name, value in cluster.spec.postgres.parameters.items()}
    # Which library may validate, a parameter says; the other settings do not matter to who only reads.
    matters = (_VALIDATORS, declared[_VALIDATORS]) if _VALIDATORS in declared else ("port", 5432)
    numbers = ", ".join(str(hba_line_number(text, line)) for line in lines)
    query = _QUERY.replace("@NUMBERS@", numbers)
    return [["read_rules", HBA_PATH, setting(*matters), query, *lines]]


def files(asked: str) -> dict[str, str]:
    """What is in the group's ConfigMap for it.

    :param asked: the script; may be empty
    """
    return {patroni_files.FIRST_FILE: asked}


def marks(asked: str) -> dict[str, str]:
    """Annotations of a pod that is told to ask this.

    :param asked: the script; may be empty
    """
    return {ANNOTATION: _mark(asked)}


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_refused(pod: Mapping[str, Any]) -> bool:
    """Whether a pod's PostgreSQL refused what was declared, so that no server has run on its volume."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        endings = ((status.get(when) or {}).get("terminated") for when in ("state", "lastState"))
        if status.get("name") == names.CONTAINER:
            if "running" in (status.get("state") or {}):
                return False  # what is declared now was heard of
            return any(ended and ended.get("exitCode") == REFUSED for ended in endings)
    return False


def is_overtaken(pod: Mapping[str, Any], template: Mapping[str, Any]) -> bool:
    """Whether a pod was refused for what is not declared any more.

    :param template: of which it would be made now
    """
    return is_refused(pod) and _asked(pod) != _asked(template)


def _asked(obj: Mapping[str, Any]) -> str | None:
    found: str | None = ((obj.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION)
    return found
