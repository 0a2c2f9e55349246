"""What has to be known of a cluster's volumes for as long as there are any: the ConfigMap ``NAME.recovery``.

It says how far the cluster's making from a backup is, and which epoch of volumes is in force (``state.json``,
:mod:`~pgherd.platform.kubernetes.epochs`), and the same of groups that were rebuilt (``repairs.json``,
:mod:`~pgherd.platform.kubernetes.rebuilt`), and which wish to restore in place was refused last (``refusal.json``).
Several write to it: nobody undoes what another one wrote since he read.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pgherd.errors import PgherdError, Unavailable
from pgherd.platform.kubernetes import names, rebuilt
from pgherd.platform.kubernetes.api import CLUSTER, CONFIG_MAP, Object, is_conflict

if TYPE_CHECKING:
    from pgherd.platform.kubernetes.keeping import KeepsBackups

STATE_KEY, REPAIRS_KEY, REFUSAL_KEY = "state.json", "repairs.json", "refusal.json"
TRIES = 5
"""of a write that others were faster with"""


class Notes:
    """Those of one cluster."""

    def __init__(self, platform: KeepsBackups, cluster: str) -> None:
        self._platform, self._cluster = platform, cluster
        self._name = names.recovery_state(cluster)

    def state(self, *, asked: bool = False) -> dict[str, Any] | None:
        """How far the making of the cluster from a backup is.

        :param asked: ask for it; else what is at hand will do
        :raises PgherdError: nobody can tell any more
        """
        return self.state_in(self._found(asked=asked))

    def repairs(self, *, asked: bool = False) -> rebuilt.Records:
        """What is known of groups that were rebuilt.

        :raises PgherdError: nobody can tell any more
        """
        return self.repairs_in(self._found(asked=asked))

    def write_state(self, state: Mapping[str, Any], check: Callable[[Object | None], None]) -> None:
        """Write down how far the making from a backup is.

        :param check: refuses that over what there is now
        :raises Unavailable: somebody else was faster
        """
        there = self._found(asked=True)
        check(there)
        self._put(there, STATE_KEY, json.dumps(dict(state)))

    def change_repairs(self, change: Callable[[rebuilt.Records, Object | None], rebuilt.Records]) -> None:
        """Write down what is known of groups that were rebuilt; nothing where that says nothing new.

        :param change: from what is written down, in the ConfigMap that there is now; done again if others were faster
        :raises Unavailable: others were faster again and again
        """
        for left in reversed(range(TRIES)):
            there = self._found(asked=True)
            before = self.repairs_in(there)
            after = change(before, there)
            if rebuilt.as_json(after) == rebuilt.as_json(before):
                return
            try:
                self._put(there, REPAIRS_KEY, json.dumps(rebuilt.as_json(after)))
            except Unavailable:
                if not left:
                    raise
                time.sleep(0.1)
            else:
                return

    def refusal(self, *, asked: bool = False) -> Mapping[str, Any] | None:
        """Which wish to restore in place was refused last, and why. One that is damaged only has to be found again."""
        with contextlib.suppress(ValueError):
            found = json.loads(((self._found(asked=asked) or {}).get("data") or {}).get(REFUSAL_KEY, "null"))
            return found if isinstance(found, dict) else None
        return None

    def write_refusal(self, refusal: Mapping[str, Any]) -> None:
        """Write that down.

        :raises Unavailable: somebody else was faster
        """
        self._put(self._found(asked=True), REFUSAL_KEY, json.dumps(dict(refusal)))

    def state_in(self, found: Object | None) -> dict[str, Any] | None:
        """What such a ConfigMap says of the cluster."""
        state = self._parsed(found, STATE_KEY)
        if isinstance(state, dict) and not isinstance(state.get("epoch") or 0, int):
            self._require_going()
            return None
        return state if isinstance(state, dict) else None

    def repairs_in(self, found: Object | None) -> rebuilt.Records:
        """What such a ConfigMap says of groups that were rebuilt."""
        try:
            return rebuilt.records_from(self._parsed(found, REPAIRS_KEY))
        except ValueError:
            self._require_going()
            return {}

    def _found(self, *, asked: bool) -> Object | None:
        if asked:
            return self._platform.api.get(CONFIG_MAP, self._platform.namespace, self._name)
        return self._platform.look_up(CONFIG_MAP, self._name)

    def _parsed(self, found: Object | None, key: str) -> Any:
        try:
            return json.loads(((found or {}).get("data") or {}).get(key, "null"))
        except ValueError:
            self._require_going()
            return None

    def _require_going(self) -> None:
        """Whose cluster goes need not know which volumes are its own: nothing is started any more.

        :raises PgherdError: it stays
        """
        resource = self._platform.look_up(CLUSTER, self._cluster)
        if resource is not None and "deletionTimestamp" in resource["metadata"]:
            return
        raise PgherdError(
            f"ConfigMap {self._name} is damaged: nobody can tell any more how far the making of {self._cluster} from a "
            "backup is, or which volumes are its own; bring it back from a copy, or delete the cluster"
        )

    def _put(self, there: Object | None, key: str, text: str) -> None:
        metadata: dict[str, Any] = {"name": self._name, "labels": names.labels(self._cluster)}
        if there is not None:
            # A write that hung for long must not undo what others wrote since: it decides which volumes are in force.
            metadata["resourceVersion"] = there["metadata"]["resourceVersion"]
        ours = {name: each for name, each in ((there or {}).get("data") or {}).items() if name in _KEYS}
        wanted = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {**ours, key: text},
        }
        try:
            if there is not None:
                self._platform.put(wanted)
            elif not self._platform.put_new(wanted):
                raise Unavailable(f"ConfigMap {self._name} was made by somebody else just now")
        except PgherdError as error:
            if is_conflict(error):
                raise Unavailable(f"ConfigMap {self._name} was changed by somebody else meanwhile") from error
            raise


_KEYS = (STATE_KEY, REPAIRS_KEY, REFUSAL_KEY)
