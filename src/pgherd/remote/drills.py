"""Drills where clusters run in Kubernetes: asked for by an annotation of the cluster, made by the operator."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightkube.resources.core_v1 import ConfigMap

from pgherd.backup.records import moment
from pgherd.errors import BadInput, PgherdError, Unavailable
from pgherd.model.spec import BackupSpec
from pgherd.platform.kubernetes import drills, names
from pgherd.platform.kubernetes.drills import Ask, State
from pgherd.reconcile.drills import scratch_name
from pgherd.remote import objects
from pgherd.remote.api import Api, NotFound

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0
"""what the removal may take, when the time for all the rest is up"""
Progress = Callable[[dict[str, Any]], None]


class Drills:
    """The commands' calls; the rest of the client is :class:`pgherd.remote.client.KubernetesClient`."""

    _api: Api

    def _get(self, name: str) -> dict[str, Any]:
        raise NotImplementedError

    def _find(self, name: str) -> dict[str, Any] | None:
        raise NotImplementedError

    def _listed(self, name: str, what: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _require_backups(
        self, name: str, repository: str | None = None, *, stopped: bool = False
    ) -> BackupSpec:
        raise NotImplementedError

    def _refuse_if_leaving(self, name: str, resource: dict[str, Any]) -> None:
        raise NotImplementedError

    def refuse_if_restored(self, name: str, resource: Mapping[str, Any]) -> None:
        """Refuse what has to wait for the end of a restore in place."""
        raise NotImplementedError

    def _annotate(self, name: str, key: str, value: str | None) -> None:
        raise NotImplementedError

    def drill(
        self,
        name: str,
        *,
        keep: bool = False,
        tables: Sequence[str] = (),
        timeout: float = 3600.0,
        told: Callable[[str], None] = lambda text: None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Have the newest point restored into a scratch cluster, examined and removed; what was found.

        :param tables: whose rows are compared with what they were at the point
        :raises BadInput: there is nothing to restore, no such table, or another drill is going on
        :raises PgherdError: it could not be made
        """
        self._require_backups(name, stopped=not tables)
        scratch, resource = scratch_name(name), self._get(name)
        self._refuse_if_leaving(name, resource)
        self.refuse_if_restored(name, resource)
        state = self._drill_state(name)
        if (state is not None and state.is_open) or drills.is_asked(resource):
            raise BadInput(f"a drill of {name} is going on: wait until it is done")
        limit = timeout if math.isfinite(timeout) else None
        ask = Ask(secrets.token_hex(6), keep, tuple(tables), limit)
        self._annotate(name, drills.ASK_ANNOTATION, json.dumps(ask.as_json()))
        return _Waiting(self, name, scratch, ask, told, progress).run()

    def drills(self, name: str) -> list[dict[str, Any]]:
        """The last drills of a cluster, oldest first, as its operator remembers them.

        :raises BadInput: it has no backups
        """
        self._require_backups(name, stopped=True)
        found = self._listed(name, "drills")
        state = self._drill_state(name)
        # What has just ended is in the list some seconds later.
        if state is not None and state.result is not None and _is_later(state.result, found):
            found.append(dict(state.result))
        return found

    def _drill_state(self, name: str) -> State | None:
        try:
            with self._api.asking():
                found = self._api.client.get(
                    ConfigMap, names.drill_state(name), namespace=self._api.namespace
                )
        except NotFound:
            return None
        return drills.state_from({"data": found.data or {}})


def _is_later(result: Any, known: Sequence[dict[str, Any]]) -> bool:
    last = known[-1]["finishedAt"] if known else ""
    return not last or moment(result["finishedAt"]) > moment(last)


class _Waiting:
    """For the end of one drill."""

    def __init__(
        self,
        client: Drills,
        name: str,
        scratch: str,
        ask: Ask,
        told: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self._client, self._name, self._scratch, self._ask = client, name, scratch, ask
        self._tell, self._progress = told, progress
        self._told = 0
        self._seen = False
        self._begun = time.monotonic()

    def run(self) -> dict[str, Any]:
        """What was found.

        :raises BadInput: it was refused
        :raises PgherdError: it could not be made, or time ran out
        """
        while True:
            try:
                if (found := self._look()) is not None:
                    return found
            except Unavailable:  # the API is away for a while
                self._require_time()
            time.sleep(POLL_SECONDS)

    def _look(self) -> dict[str, Any] | None:
        state = self._client._drill_state(self._name)
        if state is None or state.ask.id != self._ask.id:
            return self._look_without(state)
        self._seen = True
        for text in state.told[self._told :]:
            self._tell(text)
        self._told = len(state.told)
        if not state.is_open:
            return _answer(state)
        self._show(state)
        self._require_time()
        return None

    def _look_without(self, state: State | None) -> dict[str, Any] | None:
        """While nothing is said of this drill: it has not begun, or the next one has since."""
        for each in self._client._listed(self._name, "drills"):
            if each.get("id") == self._ask.id:
                return each
        wanted = drills.asked(self._client._get(self._name))
        if self._seen or wanted is None or wanted.id != self._ask.id:
            state = self._client._drill_state(self._name)
            if state is not None and state.ask.id == self._ask.id:
                return None  # it began, and may have ended, just now
            raise BadInput(
                f"this drill of {self._name} made room for something else: 'pgherd drills {self._name}' shows what "
                "was found since"
            )
        if state is not None and state.is_open:
            self._begun = time.monotonic()  # it waits for another one
        if time.monotonic() - self._begun > objects.STALE_SECONDS:
            self._client._annotate(self._name, drills.ASK_ANNOTATION, None)
            raise PgherdError(f"{self._name}: no drill was made: {objects.SILENCE}")
        return None

    def _show(self, state: State) -> None:
        if self._progress is None:
            return
        if state.status is not None:
            self._progress(dict(state.status))
            return
        found = self._client._find(self._scratch)
        if found is not None and found.get("status"):
            self._progress(objects.status_of(found))

    def _require_time(self) -> None:
        limit = None if self._ask.timeout is None else self._ask.timeout + GRACE_SECONDS
        if limit is not None and time.monotonic() - self._begun > limit:
            raise PgherdError(
                f"{self._name}: the drill is not done after {limit:.0f} s; the operator goes on with it, 'pgherd "
                f"drills {self._name}' will show what it found"
            )


def _answer(state: State) -> dict[str, Any]:
    if state.result is not None:
        return dict(state.result)
    if state.refused:
        raise BadInput(state.error)
    raise PgherdError(f"the drill could not be made: {state.error}")
