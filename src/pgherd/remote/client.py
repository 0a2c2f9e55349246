"""What the commands call on Kubernetes: the same questions and wishes as on one machine, with the same answers.

A wish changes the custom resource and is durable when the API server has taken it; the operator fulfils it. What has to
be asked of databases or of Patroni goes through tunnels (:mod:`pgherd.remote.world`).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from lightkube.resources.core_v1 import ConfigMap, PersistentVolumeClaim, Secret
from lightkube.types import PatchType
from psycopg import conninfo

from pgherd.engine.base import Finding
from pgherd.engine.registry import check_available
from pgherd.errors import BadInput, NoSuchCluster, PgherdError, Unavailable
from pgherd.model import spec as declaration
from pgherd.model.spec import PostgresCluster
from pgherd.model.topology import COORDINATOR, Member, group_id, group_name
from pgherd.model.tuning import check_fit
from pgherd.operations.copy import Summary, Tell
from pgherd.platform.kubernetes import names, zone
from pgherd.platform.kubernetes.tunnel import HOST, Tunnel
from pgherd.platform.local import binaries
from pgherd.reconcile import steering
from pgherd.reconcile.fulfilment import is_fulfilled, obstacle, time_is_up
from pgherd.reconcile.observe import World
from pgherd.remote import logs, objects, world
from pgherd.remote.api import FIELD_MANAGER, Api, NotFound, PostgresClusterResource
from pgherd.remote.backups import Backups
from pgherd.remote.drills import Drills
from pgherd.remote.layers import PostgresTls, fatal
from pgherd.remote.schedules import Schedules

Progress = Callable[[dict[str, Any]], None]
POLL_SECONDS = 0.5


class Heard:
    """Whether the operator has said anything of a cluster while we waited. Clocks need not agree for that."""

    def __init__(self) -> None:
        self._said: object = None
        self._since = time.monotonic()
        self._is_new = False

    def take(self, now: dict[str, Any]) -> None:
        """A status that was just read."""
        if now.get("observedAt") != self._said:
            self._is_new = self._said is not None
            self._said, self._since = now.get("observedAt"), time.monotonic()

    def believes(self, now: dict[str, Any]) -> bool:
        """Whether a status is of now: not old by this machine's clock, or told while we waited."""
        return self._is_new or not objects.is_stale(now, datetime.now(UTC))

    def is_alive(self) -> bool:
        """It has reported, and not too long ago."""
        return self._said is not None and time.monotonic() - self._since < objects.STALE_SECONDS


class KubernetesClient(Backups, Drills, Schedules):
    """The clusters of one namespace.

    :param context: the kubeconfig's context; left out, its current one
    :param namespace: left out, the context's
    :param bin_dir: where ``psql`` is, instead of the embedded one
    :raises BadInput: there is no such kubeconfig or context
    """

    carries_sessions = True
    """psql runs through this process, which has to stay"""

    def __init__(
        self, context: str | None = None, namespace: str | None = None, bin_dir: Path | None = None
    ) -> None:
        self._api = Api(context, namespace)
        self._explicit_namespace = namespace
        self._bin_dir = bin_dir

    # wishes

    def up(self, cluster: PostgresCluster) -> None:
        """Create or change a cluster: the wish is durable when this returns.

        :raises BadInput: the API server refuses it, or something changed that may not
        """
        cluster = declaration.with_platform_defaults(cluster, "kubernetes")
        check_available(cluster)
        check_fit(cluster)
        self._choose_namespace(cluster)
        name = cluster.metadata.name
        before = self._find(name)
        if before is not None:
            self._refuse_if_leaving(name, before)
            declaration.validate_change(objects.cluster_of(before), cluster)
        self._apply(cluster)
        if before is not None and objects.is_stopped(before):
            self._annotate(name, names.STOPPED_ANNOTATION, None)

    def _require_free(self, name: str) -> None:
        if self._find(name) is not None or self._kept(name):
            raise BadInput(f"{name} is here already: choose another name, or delete it first (with --purge)")

    def _choose_namespace(self, cluster: PostgresCluster) -> None:
        """A file may name a namespace, as with kubectl."""
        named = cluster.metadata.namespace
        if named and self._explicit_namespace and named != self._explicit_namespace:
            raise BadInput(
                f"metadata.namespace: is {named}, but --namespace says {self._explicit_namespace}: leave one out"
            )
        self._api.namespace = named or self._api.namespace

    def _apply(self, cluster: PostgresCluster) -> None:
        value = declaration.to_mapping(cluster)
        value["metadata"] = {
            key: content for key, content in value["metadata"].items() if content and key != "namespace"
        }
        try:
            with self._api.asking():
                self._api.client.patch(
                    PostgresClusterResource,
                    cluster.metadata.name,
                    value,
                    namespace=self._api.namespace,
                    patch_type=PatchType.APPLY,
                    field_manager=FIELD_MANAGER,
                    force=True,
                )
        except NotFound as error:
            raise BadInput(
                f"{error}: 'kubectl create namespace {self._api.namespace}' makes the namespace"
            ) from error

    def scale(self, name: str, segments: int) -> None:
        """Declare another number of segments.

        :raises BadInput: out of bounds, or it is being restored in place
        """
        self.refuse_if_restored(name, self._get(name))
        declaration.with_segment_count(self.declared(name), segments)
        self._patch(name, {"spec": {"segments": {"count": segments}}})

    def pause(self, name: str) -> None:
        """Start no further move."""
        self._patch(name, {"spec": {"expansion": {"paused": True}}})

    def resume(self, name: str) -> None:
        """Undo :meth:`pause`."""
        self._patch(name, {"spec": {"expansion": {"paused": False}}})

    def cancel(self, name: str) -> None:
        """Call the running operation off: what it was to change is declared as it was before.

        A restore in place that is not done is taken back.

        :raises BadInput: no operation is running
        """
        if self.call_off_restore(name):
            return
        with self._world(name) as there:
            before = steering.request_cancel(there)
        if before is not None:
            self.scale(name, before)

    def rebalance(self, name: str) -> int:
        """Request a rebalance; returns the operation's id, to :meth:`wait` for.

        :raises BadInput: another operation is running
        """
        resource = self._get(name)
        self._refuse_if_leaving(name, resource)
        self.refuse_if_restored(name, resource)
        with self._world(name) as there:
            return steering.request_rebalance(there)

    def stop(self, name: str) -> None:
        """Ask for all processes to end; data stays."""
        self._annotate(name, names.STOPPED_ANNOTATION, "true")

    def start(self, name: str) -> None:
        """Undo :meth:`stop`."""
        self._annotate(name, names.STOPPED_ANNOTATION, None)

    def delete(self, name: str, *, purge: bool) -> None:
        """Ask for the cluster to go; with ``purge`` its data too, also that of a cluster deleted before."""
        if self._find(name) is None and purge and self._kept(name):
            self._forget(name)
            return
        if purge:
            self._patch(name, {"spec": {"deletionPolicy": "Delete"}}, leaving=True)
        self._get(name)
        with self._api.asking():
            self._api.client.delete(PostgresClusterResource, name, namespace=self._api.namespace)

    def require_known(self, name: str) -> None:
        """Refuse what can't be deleted.

        :raises NoSuchCluster: nothing of this name is here, not even volumes that a deletion kept
        """
        if not self._kept(name):
            self._get(name)

    def _kept(self, name: str) -> list[str]:
        """Volumes of a cluster, by their claims' names; and what is remembered of its making from a backup."""
        found = self._labelled(PersistentVolumeClaim, name)
        claims = sorted(str(claim.metadata.name) for claim in found if claim.metadata)
        notes = {str(each.metadata.name) for each in self._labelled(ConfigMap, name) if each.metadata}
        return claims + sorted(notes & {names.recovery_state(name)})

    def _forget(self, name: str) -> None:
        """Remove what a deletion kept."""
        for kind in (PersistentVolumeClaim, Secret, ConfigMap):
            for found in self._labelled(kind, name):
                with self._api.asking():
                    self._api.client.delete(kind, found.metadata.name, namespace=self._api.namespace)

    def _labelled(self, kind: type[Any], name: str) -> list[Any]:
        with self._api.asking():
            return list(
                self._api.client.list(kind, namespace=self._api.namespace, labels={names.CLUSTER_LABEL: name})
            )

    def _annotate(self, name: str, key: str, value: str | None) -> None:
        self._patch(name, {"metadata": {"annotations": {key: value}}})

    def _patch(self, name: str, change: dict[str, Any], *, leaving: bool = False) -> None:
        """Change some fields of a cluster that is not about to go."""
        resource = self._get(name)
        if not leaving:
            self._refuse_if_leaving(name, resource)
        with self._api.asking():
            self._api.client.patch(
                PostgresClusterResource,
                name,
                change,
                namespace=self._api.namespace,
                patch_type=PatchType.MERGE,
                field_manager=FIELD_MANAGER,
            )

    def _refuse_if_leaving(self, name: str, resource: dict[str, Any]) -> None:
        if resource["metadata"].get("deletionTimestamp"):
            raise BadInput(f"{name} is being deleted: wait until 'pgherd list' shows it no more")

    # looks

    def names(self) -> list[str]:
        """All clusters of the namespace, sorted."""
        with self._api.asking():
            found = list(self._api.client.list(PostgresClusterResource, namespace=self._api.namespace))
        return sorted(resource["metadata"]["name"] for resource in found)

    def declared(self, name: str) -> PostgresCluster:
        """The declaration in force."""
        return objects.cluster_of(self._get(name))

    def generation(self, name: str) -> int:
        """The declaration's generation."""
        return objects.generation(self._get(name))

    def status(self, name: str) -> dict[str, Any]:
        """What the operator saw last (DESIGN section 3)."""
        return objects.aged(objects.status_of(self._get(name)), datetime.now(UTC))

    def wait(
        self,
        name: str,
        *,
        generation: int | None = None,
        operation: int = 0,
        timeout: float = 600.0,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Until the cluster is as declared (or, where that was asked for, stopped).

        :param generation: wait for this generation at least; default the present one
        :param operation: wait for this operation, or a later one, to have ended
        :raises PgherdError: it failed, or time ran out; the message says what stands in the way
        """
        deadline = time.monotonic() + timeout
        wanted = self.generation(name) if generation is None else generation
        heard = Heard()
        while True:
            resource = self._get_patiently(name, deadline)
            now = objects.status_of(resource)
            heard.take(now)
            if progress is not None and resource.get("status"):
                progress(now)
            # A stop and a start are no new generation: the phase tells whether the operator has seen them. Nor is a
            # restore in place, of which the status tells it.
            turned = (now["phase"] == "Stopped") == objects.is_stopped(resource)
            turned = turned and objects.is_restore_seen(resource)
            done = is_fulfilled(name, now, wanted, operation=operation, silence=objects.SILENCE)
            if done and turned and heard.believes(now):
                return now
            if time.monotonic() > deadline:
                known = now if heard.is_alive() else None
                raise PgherdError(time_is_up(name, known, wanted, timeout, objects.SILENCE))
            time.sleep(POLL_SECONDS)

    def wait_gone(self, name: str, timeout: float = 120.0) -> None:
        """Until a deletion is complete.

        :raises PgherdError: time ran out
        """
        deadline = time.monotonic() + timeout
        heard = Heard()
        while (resource := self._find_patiently(name, deadline)) is not None:
            now = objects.status_of(resource)
            heard.take(now)
            if time.monotonic() > deadline:
                reason = obstacle(now if heard.is_alive() else None, objects.SILENCE)
                raise PgherdError(f"{name}: not gone after {timeout:.0f} s: {reason}")
            time.sleep(POLL_SECONDS)

    def _find_patiently(self, name: str, deadline: float) -> dict[str, Any] | None:
        try:
            return self._get_patiently(name, deadline)
        except NoSuchCluster:
            return None

    def _get_patiently(self, name: str, deadline: float) -> dict[str, Any]:
        """The resource; an API that is away for a while is no reason to stop waiting."""
        while True:
            try:
                return self._get(name)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def dsn(self, name: str, *, role: str = "rw", group: str = "coordinator") -> str:
        """One libpq URI for programs inside Kubernetes, with the owner's password.

        The coordinator is named by its Service, a segment by its members.

        :raises BadInput: no such group
        """
        cluster = self.declared(name)
        number = _group(cluster, group)
        owner = self._secret(name, names.owner_secret(name))
        hosts = self._hosts(cluster, number, read_only=role == "ro")
        # How connections are secured is the deployment's choice, which its own URI tells.
        options = parse_qs(urlsplit(owner.get("uri", "")).query)
        options["target_session_attrs"] = ["prefer-standby" if role == "ro" else "read-write"]
        options.setdefault("connect_timeout", ["3"])
        query = "&".join(f"{key}={quote(values[0], safe='/')}" for key, values in options.items())
        user, password = (quote(owner[key], safe="") for key in ("username", "password"))
        return f"postgresql://{user}:{password}@{hosts}/{quote(cluster.spec.database, safe='')}?{query}"

    def _hosts(self, cluster: PostgresCluster, number: int, *, read_only: bool) -> str:
        name, namespace, port = cluster.metadata.name, self._api.namespace, names.POSTGRES_PORT
        if number == COORDINATOR:
            # The Service for reading has no members where there are no standbys.
            services = [f"{name}-ro", name] if read_only else [name]
            return ",".join(f"{service}.{namespace}.svc:{port}" for service in services)
        members = [Member(name, number, ordinal) for ordinal in range(cluster.spec.segments.standbys + 1)]
        return ",".join(f"{names.host(member, zone.of(namespace))}:{port}" for member in members)

    def psql_command(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Program and environment of an interactive session as the owner, through a tunnel of this process.

        :raises PgherdError: the cluster is stopped, or has no primary
        """
        resource = self._get(name)
        if objects.is_stopped(resource):
            raise PgherdError(f"{name} is stopped: 'pgherd start {name}' brings it back")
        program = binaries.find(self._bin_dir).program("psql")
        owner = self._secret(name, names.owner_secret(name))

        def primary() -> str:
            return world.primary_pod(self._api, name, COORDINATOR)

        primary()
        tunnel = Tunnel(
            self._api,
            primary,
            names.POSTGRES_PORT,
            layer=lambda: PostgresTls(owner["ca.crt"], "localhost"),
            farewell=fatal,
        )
        parameters = {
            "host": HOST,
            "port": str(tunnel.port),
            "user": owner["username"],
            "dbname": objects.cluster_of(resource).spec.database,
            "sslmode": "disable",  # the tunnel encrypts
            "connect_timeout": "15",
        }
        text = conninfo.make_conninfo("", **parameters)
        return [str(program), text], {"PGPASSWORD": owner["password"]}

    def logs(self, name: str, member: str | None, follow: bool) -> Iterator[str]:
        """Log lines of one member, or of all."""
        self._get(name)
        return logs.lines(self._api, name, member, follow=follow)

    # what databases and Patroni are asked directly

    def check(self, name: str) -> list[Finding]:
        """Everything that the catalogue and the world disagree on."""
        with self._world(name) as there:
            return steering.findings(there)

    def copy_to(self, source: str, destination: str, tell: Tell, parallel: int) -> Summary:
        """Copy a cluster's database to another cluster of this namespace, or go on with it.

        :raises BadInput: this can't be copied there
        :raises PgherdError: a cluster is stopped, or what came over is not what was sent
        """
        pg_dump = binaries.find(self._bin_dir).program("pg_dump")
        with self._world(source) as here, self._world(destination) as there:
            return steering.copy_to(here, there, pg_dump, tell, parallel)

    def plan_rebalance(self, name: str) -> list[dict[str, Any]]:
        """The moves that a rebalance would make, in order."""
        with self._world(name) as there:
            return steering.planned_moves(there)

    def switchover(self, name: str, group: str, to: str | None) -> str:
        """Let another member of a group lead. Returns the new primary's name.

        :raises BadInput: no such group or member
        :raises PgherdError: nobody may take over right now
        """
        self._refuse_if_leaving(name, self._get(name))
        with self._world(name) as there:
            return steering.switchover(there, group, to)

    def restart(
        self, name: str, group: str | None, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        """Restart PostgreSQL of every member, one at a time, standbys first.

        :raises PgherdError: a member did not come back
        """
        self._refuse_if_leaving(name, self._get(name))
        with self._world(name) as there:
            steering.restart(there, group, progress)

    # helpers

    def _world(self, name: str) -> AbstractContextManager[World]:
        resource = self._get(name)
        if objects.is_stopped(resource):
            raise PgherdError(f"{name} is stopped: 'pgherd start {name}' brings it back")
        self._secret(name, names.credentials_secret(name))
        owner = self._secret(name, names.owner_secret(name))
        return world.reached(self._api, name, owner["ca.crt"])

    def _get(self, name: str) -> dict[str, Any]:
        """The custom resource.

        :raises NoSuchCluster: there is none of this name
        """
        found = self._find(name)
        if found is None:
            known = ", ".join(self.names())
            there = f"there are: {known}" if known else "there is none"
            raise NoSuchCluster(f"no cluster {name!r} in namespace {self._api.namespace}: {there}")
        return found

    def _find(self, name: str) -> dict[str, Any] | None:
        if not objects.could_be_name(name):
            return None
        try:
            with self._api.asking():
                return self._api.client.get(PostgresClusterResource, name, namespace=self._api.namespace)
        except NotFound:
            return None

    def _secret(self, name: str, secret: str) -> dict[str, str]:
        try:
            with self._api.asking():
                data = self._api.client.get(Secret, secret, namespace=self._api.namespace).data or {}
        except NotFound:
            raise PgherdError(
                f"{name}: its Secret {secret} is not there yet: see 'pgherd status {name}'"
            ) from None
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _group(cluster: PostgresCluster, group: str) -> int:
    try:
        number = group_id(group)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if number > cluster.spec.segments.count:
        there = ", ".join(group_name(one) for one in range(cluster.spec.segments.count + 1))
        raise BadInput(f"{cluster.metadata.name} has no {group}: it has {there}")
    return number
