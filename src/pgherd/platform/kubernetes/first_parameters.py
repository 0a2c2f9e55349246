"""The parameters of a cluster of which nobody has ever run: the pods that are to found it ask their own PostgreSQL.

Changes are asked of running members (:mod:`~pgherd.platform.kubernetes.opinions`); here is none yet. So each pod that
begins without data asks, before it makes any, and ends with one line if something is refused: Patroni would leave such
a parameter out, silently, or fail over and over. A pod that ended so is replaced once something else is declared. From
the moment on in which somebody takes part nobody is asked any more here: a standby must never be refused for what its
primary runs with. Pure.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from typing import Any

from pgherd.model.spec import PostgresCluster
from pgherd.platform.kubernetes import names, patroni_files
from pgherd.platform.parameters import QUESTION, absent, path_of, setting

REFUSED = 78
"""how a container ends whose PostgreSQL refuses what is declared (sysexits.h: EX_CONFIG)"""
ANNOTATION = f"{names.DOMAIN}/first-parameters"
"""on pods: of which parameters they were told to ask"""

SCRIPT = """\
#!/bin/sh
# Asks this image's PostgreSQL about what is declared. Who can't be asked refuses nothing: it will say why itself.
refused=
refuse() {
    refused="$refused${refused:+; }$1: $2"
}
ask() {
    code=0
    said=$(LC_ALL=C @POSTGRES@ @QUESTION@ "$2" 2>&1 > /dev/null) || code=$?
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
@QUESTIONS@
if [ -n "$refused" ]; then
    echo "$refused"
    echo "$refused" > /dev/termination-log || true
    exit @REFUSED@
fi
"""


def questions(cluster: PostgresCluster, server_major: int, status: Mapping[str, Any] | None) -> str:
    """What a pod runs before it makes the first data; empty: there is nothing to ask.

    :param status: as it was written last
    """
    parameters = cluster.spec.postgres.parameters
    if not parameters or (status or {}).get("admitted"):
        return ""
    preloaded = patroni_files.preloaded(parameters, server_major)
    asked = [shlex.join(["ask", path_of(name), setting(name, value)]) for name, value in parameters.items()]
    asked += [
        shlex.join(["look", path_of(name), f"{file}.so", absent(library)])
        for name, library, file in preloaded
    ]
    return (
        SCRIPT.replace("@POSTGRES@", f"/usr/lib/postgresql/{server_major}/bin/postgres")
        .replace("@QUESTION@", shlex.join(QUESTION))
        .replace("@REFUSED@", str(REFUSED))
        .replace("@QUESTIONS@", "\n".join(asked))
    )


def files(asked: str) -> dict[str, str]:
    """What is in the group's ConfigMap for it.

    :param asked: the script; may be empty
    """
    return {patroni_files.FIRST_FILE: asked}


def marks(asked: str) -> dict[str, str]:
    """Annotations of a pod that is told to ask this.

    :param asked: the script; may be empty
    """
    return {ANNOTATION: hashlib.sha256(asked.encode()).hexdigest()[:16]}


def is_refused(pod: Mapping[str, Any]) -> bool:
    """Whether a pod's PostgreSQL refused what was declared, so that there is nothing on its volume."""
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
