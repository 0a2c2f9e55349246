"""What a member's pod finds in its group's ConfigMap: ``patroni.yml`` and the script that starts Patroni. Pure.

All members of a group share these files. What differs from one to the next (name, address) and what is secret
(passwords) comes from the pod's environment, which Patroni reads over the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from pgherd.engine import registry
from pgherd.model.spec import ParameterValue, PostgresCluster
from pgherd.model.topology import REPLICATION_USER, SUPERUSER, Credentials, Endpoint, Member
from pgherd.patroni.config import REMEMBERED, REST_USER, member_config
from pgherd.platform.kubernetes import names, zone
from pgherd.platform.parameters import LIBDIR, SEARCHED, libraries

DIRECTORY = "/etc/pgherd"
TLS_DIRECTORY = "/etc/pgherd-tls"
VOLUME_PATH = "/var/lib/postgresql"
DATA_PATH = f"{VOLUME_PATH}/data"
LOCK_PATH = f"{VOLUME_PATH}/lock"
"""locked as long as anything of a container uses the volume"""
SOCKET_PATH = "/run/postgresql"
UNFINISHED = "from-backup"
"""what a restore puts together beside the data, until it is complete"""
UNTRIED = "untried"
"""is beside data that were put in place and that no server of this cluster has run with yet"""
SERVICE = "member"
"""the name of the settings that members' own connections have in common"""
BACKUP_DIRECTORY = "/etc/pgherd-backup"
"""where what archiving needs is mounted"""
RECOVERY_DIRECTORY = "/etc/pgherd-recovery"
"""the same for what a cluster is made from"""
FIRST_FILE = "first.sh"
"""what asks PostgreSQL about the parameters of a new cluster, beside ``patroni.yml``; empty: nobody asks"""

LAST_WORDS = "how its server ended:"
"""begins what a container says that was told to end"""

NOTE_VARIABLE = "PGHERD_NOTED"
"""the variable with what Patroni noted on the pod before this container began"""

_ENVIRONMENT = Credentials("", "", "", "")
"""passwords are in the environment"""

START_SCRIPT = f"""\
#!/bin/sh
# Remove what an initdb or a clone that was killed has left: Patroni would take it for a damaged database.
# A clone gets pg_control last; users' data begin at number 16384.
# As process 1 nothing ends by a signal that it does not handle, and Patroni takes a moment until it does: so it is a
# child, from its first moment on.
# Two containers may meet on one volume: a pod that is forgotten is followed by its namesake while its container still
# ends, and neither sees the other's processes. So a lock on the volume comes before anything else. It is Patroni's
# standard input, which PostgreSQL and all its children inherit: it is held until the last of them is gone.
set -eu
for file in @REQUIRED@; do
    if [ ! -e "$file" ]; then
        message="spec.engine: @ENGINE@ is not in this image (no $file): name one that has it with spec.postgres.image"
        echo "$message"
        echo "$message" > /dev/termination-log || true
        exit 2
    fi
done
if ! command -v flock > /dev/null; then
    echo "this image has no flock (package util-linux), without which nothing keeps two servers off one volume"
    exit 2
fi
if [ -e {VOLUME_PATH}/{UNFINISHED} ]; then
    message="this volume holds a restore that was not finished, and nobody knows of it any more: delete the cluster\
 with its volumes, and restore anew"
    echo "$message"
    echo "$message" > /dev/termination-log || true
    exit 2
fi
ending= patroni= code=0 told=
trap 'ending=1; [ -z "$patroni" ] || kill -TERM "$patroni"' TERM INT
trap '[ -z "$patroni" ] || kill -HUP "$patroni"' HUP
data={DATA_PATH}
founded={VOLUME_PATH}/founded
exec 9<> {LOCK_PATH}
until flock -n 9; do
    if [ -z "$told" ]; then
        told="waiting for another container that still uses this volume"
        echo "$told"
        echo "$told" > /dev/termination-log || true
    fi
    [ -z "$ending" ] || exit 143
    sleep 0.2
done
[ -z "$told" ] || : > /dev/termination-log || true
# Its node was away and gave it another address. Under the old one another member may answer by now: Patroni would ask
# there whether it runs already, and believe it; others would take that one's state for ours.
case ${{{NOTE_VARIABLE}:-}} in
    "" | *"//$POD_IP:"*) ;;
    *)
        echo "this pod has another address than before: removing the old one from its annotations"
        python3 {DIRECTORY}/forget.py < /dev/null || echo "that failed; it is tried again at the next start"
        ;;
esac
mkdir -p "$data"
chmod 0700 "$data"
if [ ! -f "$data/global/pg_control" ]; then
    if [ -n "$(ls -A "$data")" ]; then
        echo "removing an incomplete copy in $data"
        find "$data" -mindepth 1 -delete
    fi
    rm -f "$founded"
elif [ ! -e "$founded" ] && [ ! -e "$data/backup_label" ] && [ ! -e "$data/standby.signal" ] &&
     [ -z "$(find "$data/base" -mindepth 1 -regex '.*/[0-9]+' -printf '%f\\n' | awk '$1 >= 16384' | head -n 1)" ]
then
    echo "removing an incomplete founding in $data"
    find "$data" -mindepth 1 -delete
fi
# Nobody of this cluster has ever run, so nobody was asked about what is declared: before anything is made or started
# they are.
if [ ! -f "$data/global/pg_control" ] || [ -e {VOLUME_PATH}/{UNTRIED} ]; then
    [ ! -e {DIRECTORY}/{FIRST_FILE} ] || /bin/sh {DIRECTORY}/{FIRST_FILE} < /dev/null
fi
# What was copied has what Patroni was told of the group that it is a copy of; nobody has started it as this one's.
[ -e "$founded" ] || rm -f "$data/{REMEMBERED}"
ln -sf {TLS_DIRECTORY}/ca.crt "$PGHERD_AUTHORITY"
# Certificates are renewed under our feet: Patroni and PostgreSQL read them again when they are told to.
(
    known=$(cksum < {TLS_DIRECTORY}/tls.crt)
    while sleep 20; do
        now=$(cksum < {TLS_DIRECTORY}/tls.crt)
        if [ "$now" != "$known" ]; then
            echo "the certificate was renewed"
            known=$now
            kill -HUP 1
        fi
    done
) &
# Without it everything goes on. It does not count as a user of the volume.
python3 {DIRECTORY}/orphans.py < /dev/null 9<&- &
# What every connection made in here falls back on (libpq: connection service file).
export PGSERVICEFILE={DIRECTORY}/pg_service.conf PGSERVICE={SERVICE}
[ -z "$ending" ] || exit 143
patroni {DIRECTORY}/patroni.yml <&9 &
patroni=$!
[ -z "$ending" ] || kill -TERM "$patroni"
while kill -0 "$patroni" 2> /dev/null; do
    code=0
    wait "$patroni" || code=$?
done
# The last checkpoint is the proof of where the log ended, should the volume be lost.
if [ -n "$ending" ] && [ -f "$data/global/pg_control" ]; then
    {{
        echo "@LAST_WORDS@"
        LC_ALL=C "@BIN@/pg_controldata" "$data" |
            grep -E "^(Database cluster state|Latest checkpoint('s TimeLineID| location)):"
    }} > /dev/termination-log 2> /dev/null || true
fi
exit "$code"
"""

FORGET_SCRIPT = """\
# Removes what Patroni noted on this pod, by the pod's own rights; not on its namesake. In Python, for an image need not
# have curl.
import os, ssl, sys, urllib.request

mounted = "/var/run/secrets/kubernetes.io/serviceaccount"
uid, name = os.environ["PGHERD_POD_UID"], os.environ["PATRONI_NAME"]
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
host = f"[{host}]" if ":" in host else host
try:
    with open(f"{mounted}/namespace") as file:
        pod = f"api/v1/namespaces/{file.read().strip()}/pods/{name}"
    with open(f"{mounted}/token") as file:
        token = file.read().strip()
    context = ssl.create_default_context(cafile=f"{mounted}/ca.crt")
    # Python 3.13 refuses authorities without a key identifier, as many clusters have one; Kubernetes does not.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    request = urllib.request.Request(
        f"https://{host}:{port}/{pod}",
        ('{"metadata": {"uid": "' + uid + '", "annotations": {"status": null}}}').encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
        method="PATCH",
    )
    # Never by a proxy that somebody set for other things.
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    direct.open(request, timeout=10)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

ORPHANS_SCRIPT = f"""\
# Ends what a server that was killed has left. A session that computes notices nothing, and as long as it has the old
# shared memory no server starts on these data: Patroni would give up the lead. Whose server is gone is process 1's
# child; sessions of a server that lives are that server's.
import os, select, signal, sys, time

DATA, INIT = "{DATA_PATH}", 1


def await_end():
    # Whether no server runs. Its own note beside the data tells its number; a descriptor stays with that one process.
    try:
        with open(f"{{DATA}}/postmaster.pid") as note:
            server = os.pidfd_open(int(note.readline()))
    except (OSError, ValueError):
        return True
    try:
        return bool(select.select([server], [], [], 1.0)[0])
    finally:
        os.close(server)


def is_orphan(pid):
    with open(f"/proc/{{pid}}/cmdline", "rb") as file:
        title = file.read().rstrip(b" \\0")
    # The logger has no shared memory, and still has lines to write.
    if not title.startswith(b"postgres: ") or title.endswith(b": logger"):
        return False
    with open(f"/proc/{{pid}}/stat") as file:
        parent = int(file.read().rpartition(")")[2].split()[1])
    return parent == INIT and os.readlink(f"/proc/{{pid}}/cwd") == os.path.realpath(DATA)


def end(pid):
    # Found first and looked at then: the number can't become another's in between.
    process = os.pidfd_open(pid)
    try:
        if is_orphan(pid):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            print(f"ended process {{pid}}, whose server was killed", flush=True)
    finally:
        os.close(process)


try:
    os.close(os.pidfd_open(os.getpid()))
except (AttributeError, OSError) as error:
    sys.exit(f"nobody ends the sessions of a server that is killed: this system has no pidfd_open ({{error}})")
while True:
    if await_end():
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                end(int(name))
            except (OSError, ValueError, IndexError):  # it is gone, or nobody's that we may look at
                pass
        time.sleep(0.2)
"""

SERVICE_FILE = f"""\
# An address whose pod is gone never answers and never refuses: who copies or rewinds from it would wait for ever.
[{SERVICE}]
connect_timeout=10
keepalives_idle=5
keepalives_interval=2
keepalives_count=3
tcp_user_timeout=8000
"""

MARK_SCRIPT = f"""\
#!/bin/sh
# Patroni runs this when PostgreSQL is up: from now on what is here is a database. What Patroni remembers beside it is
# perhaps of the group that it was copied from, until this one's is in the store.
[ -e {VOLUME_PATH}/founded ] || rm -f {DATA_PATH}/{REMEMBERED}
touch {VOLUME_PATH}/founded
rm -f {VOLUME_PATH}/{UNTRIED}
"""


def files(
    cluster: PostgresCluster,
    group: int,
    dcs_config: Mapping[str, Any],
    namespace: str,
    server_major: int,
    epoch: int,
) -> dict[str, str]:
    """The ConfigMap's contents.

    :param dcs_config: of :func:`pgherd.patroni.config.dynamic_config`; used when the group is founded
    """
    config = _patroni_yml(cluster, group, dcs_config, namespace, server_major)
    config["scope"] = names.scope(cluster, group, epoch)
    return {
        "patroni.yml": yaml.safe_dump(config, sort_keys=False),
        "start.sh": start_script(cluster, server_major),
        "mark.sh": MARK_SCRIPT,
        "forget.py": FORGET_SCRIPT,
        "orphans.py": ORPHANS_SCRIPT,
        "pg_service.conf": SERVICE_FILE,
    }


def lasting(
    cluster: PostgresCluster, group: int, namespace: str, server_major: int, epoch: int
) -> dict[str, str]:
    """Of the files what a pod takes up only when it starts: all but the dynamic configuration, which Patroni has from
    its store."""
    return files(cluster, group, {}, namespace, server_major, epoch)


def start_script(cluster: PostgresCluster, server_major: int) -> str:
    """What a pod runs. An image that lacks the engine ends it at once, with one line that Kubernetes keeps."""
    script = START_SCRIPT.replace("@REQUIRED@", " ".join(required_files(cluster, server_major)))
    script = script.replace("@BIN@", f"/usr/lib/postgresql/{server_major}/bin")
    script = script.replace("@LAST_WORDS@", LAST_WORDS)
    return script.replace("@ENGINE@", str(cluster.spec.engine))


def required_files(cluster: PostgresCluster, server_major: int) -> list[str]:
    """What the engine needs of the members' image."""
    folders = {
        "pkglibdir": library_folder(server_major),
        "sharedir": f"/usr/share/postgresql/{server_major}",
    }
    return [f"{folders[folder]}/{file}" for folder, file in registry.required_files(cluster)]


def library_folder(server_major: int) -> str:
    """Where PostgreSQL's libraries are in the members' image."""
    return f"/usr/lib/postgresql/{server_major}/lib"


def preloaded(parameters: Mapping[str, ParameterValue], server_major: int) -> list[tuple[str, str, str]]:
    """Libraries that every server, or every session, of these parameters loads: the parameter, the library, and its
    file in the members' image without its ending. None where they may be elsewhere."""
    if SEARCHED in map(str.lower, parameters):
        return []
    folder = library_folder(server_major)
    return [
        (name, library, path.replace(LIBDIR, folder))
        for name, value in parameters.items()
        for library, path in libraries(name, value).items()
    ]


def _patroni_yml(
    cluster: PostgresCluster, group: int, dcs_config: Mapping[str, Any], namespace: str, server_major: int
) -> dict[str, Any]:
    name = cluster.metadata.name
    config = member_config(
        cluster,
        Member(name, group, 0),
        postgres=Endpoint("*", names.POSTGRES_PORT),
        rest=Endpoint("0.0.0.0", names.REST_PORT),
        data_dir=DATA_PATH,
        bin_dir=f"/usr/lib/postgresql/{server_major}/bin",
        pgpass="/tmp/pgpass",
        credentials=_ENVIRONMENT,
        store={"kubernetes": _store(cluster, group, namespace)},
        mpp=registry.patroni_section(cluster, group),
        namespace="",
        dcs_config=dcs_config,
        server_major=server_major,
        parameters={
            "unix_socket_directories": SOCKET_PATH,
            "ssl": "on",
            "ssl_cert_file": f"{TLS_DIRECTORY}/tls.crt",
            "ssl_key_file": f"{TLS_DIRECTORY}/tls.key",
            "ssl_ca_file": f"{TLS_DIRECTORY}/ca.crt",
        },
    )
    for differs in (config["restapi"], config["postgresql"]):
        del differs["connect_address"]
    del config["name"], config["namespace"], config["restapi"]["authentication"]
    del config["postgresql"]["authentication"]
    config["restapi"]["certfile"] = f"{TLS_DIRECTORY}/tls.crt"
    config["restapi"]["keyfile"] = f"{TLS_DIRECTORY}/tls.key"
    # Members ask one another by address, which no certificate names: encrypted, but not verified. Calls that change
    # something need the password all the same.
    config["ctl"] = {"insecure": True}
    mark = f"/bin/sh {DIRECTORY}/mark.sh"
    config["postgresql"]["callbacks"] = {"on_start": mark, "on_role_change": mark}
    config["postgresql"]["use_unix_socket"] = True
    config["postgresql"]["use_unix_socket_repl"] = True
    config["bootstrap"]["post_bootstrap"] = mark
    return config


def _store(cluster: PostgresCluster, group: int, namespace: str) -> dict[str, Any]:
    # In a shared scope Patroni looks for the pods of all groups by these labels, and adds the group's by itself.
    shared = registry.patroni_section(cluster, group)
    return {
        "namespace": namespace,
        # Config maps, not Endpoints: those need a Service each, or the control plane removes them.
        "use_endpoints": False,
        "labels": names.labels(cluster.metadata.name, None if shared else group),
        "scope_label": names.SCOPE_LABEL,
        "role_label": names.ROLE_LABEL,
        "leader_label_value": "primary",
        "follower_label_value": "replica",
        "standby_leader_label_value": "primary",
    }


def environment(cluster: PostgresCluster, group: int, namespace: str) -> list[dict[str, Any]]:
    """The pod's environment: who this member is, and the passwords."""
    name = cluster.metadata.name
    secret = names.credentials_secret(name)
    # Where members' addresses become the engine's node names they must be the stable ones.
    stable = f"$(PATRONI_NAME).{names.group_object(name, group)}.{zone.of(namespace)}"
    host = stable if registry.patroni_section(cluster, group) else "$(POD_IP)"
    return [
        _field("PATRONI_NAME", "metadata.name"),
        _field("POD_IP", "status.podIP"),
        _field("PGHERD_POD_UID", "metadata.uid"),
        _field(NOTE_VARIABLE, "metadata.annotations['status']"),
        {"name": "PATRONI_RESTAPI_CONNECT_ADDRESS", "value": f"$(POD_IP):{names.REST_PORT}"},
        {"name": "PATRONI_POSTGRESQL_CONNECT_ADDRESS", "value": f"{host}:{names.POSTGRES_PORT}"},
        {"name": "PATRONI_SUPERUSER_USERNAME", "value": SUPERUSER},
        _secret("PATRONI_SUPERUSER_PASSWORD", secret, "superuser"),
        {"name": "PATRONI_REPLICATION_USERNAME", "value": REPLICATION_USER},
        _secret("PATRONI_REPLICATION_PASSWORD", secret, "replication"),
        {"name": "PATRONI_RESTAPI_USERNAME", "value": REST_USER},
        _secret("PATRONI_RESTAPI_PASSWORD", secret, "rest"),
        {"name": "PGHERD_AUTHORITY", "value": names.authority_file(name, namespace)},
        *(
            {"name": f"PATRONI_{role}_{option}", "value": value}
            for role in ("SUPERUSER", "REPLICATION")
            for option, value in (("SSLMODE", "verify-ca"), ("SSLROOTCERT", f"{TLS_DIRECTORY}/ca.crt"))
        ),
    ]


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _secret(name: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
