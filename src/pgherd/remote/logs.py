"""Log lines of a cluster's pods, by time.

The API server gives each line the time at which it was written; by that lines of several pods are merged, and a pod's
stream is taken up again without a gap or a repetition.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Iterator, Sequence

from lightkube.resources.core_v1 import Pod

from pgherd.errors import BadInput, PgherdError
from pgherd.platform.kubernetes import names
from pgherd.remote.api import Api, NotFound

CONTAINER = "postgres"
_MARGIN = 5
_AGAIN_SECONDS = 1.0

_Timed = tuple[str, str]
"""time as RFC 3339 with nanoseconds (so they sort as text), line"""


def lines(api: Api, name: str, member: str | None, *, follow: bool) -> Iterator[str]:
    """Lines so far, then, with ``follow``, new ones as they come, for ever.

    :param member: one; left out, all, each line prefixed with its member's name
    :raises BadInput: no such member
    """
    known = members(api, name)
    if member is not None and member not in known:
        raise BadInput(f"{name} has no member {member}: it has {', '.join(known) or 'none yet'}")
    asked = [(member, "")] if member else [(each, f"{each} ") for each in known]
    return _lines(api, asked, follow=follow)


def members(api: Api, name: str) -> list[str]:
    """Names of all pods of a cluster."""
    with api.asking():
        pods = api.client.list(
            Pod, namespace=api.namespace, labels={names.CLUSTER_LABEL: name, names.GROUP_LABEL: None}
        )
        return sorted(str(pod.metadata.name) for pod in pods if pod.metadata)


def _lines(api: Api, pods: Sequence[tuple[str, str]], *, follow: bool) -> Iterator[str]:
    last = {pod: "" for pod, _ in pods}

    def past(pod: str, prefix: str) -> Iterator[_Timed]:
        for moment, line in _read(api, pod):
            last[pod] = moment
            yield moment, prefix + line

    for _, line in heapq.merge(*(past(pod, prefix) for pod, prefix in pods), key=lambda timed: timed[0]):
        yield line
    if follow:
        yield from _followed(api, pods, last)


def _read(api: Api, pod: str, *, follow: bool = False, since: int | None = None) -> Iterator[_Timed]:
    try:
        with api.asking():
            for line in api.client.log(
                pod,
                namespace=api.namespace,
                container=CONTAINER,
                timestamps=True,
                newlines=False,
                follow=follow,
                since=since,
            ):
                moment, _, text = line.partition(" ")
                yield moment, text
    except NotFound:
        return
    except BadInput:
        return  # its container has not started yet


def _followed(api: Api, pods: Sequence[tuple[str, str]], last: dict[str, str]) -> Iterator[str]:
    arrived: queue.Queue[str] = queue.Queue()

    def follow(pod: str, prefix: str) -> None:
        looked = time.monotonic()
        while True:
            since = int(time.monotonic() - looked) + _MARGIN
            try:
                for moment, line in _read(api, pod, follow=True, since=since):
                    looked = time.monotonic()
                    if moment > last[pod]:
                        last[pod] = moment
                        arrived.put(prefix + line)
            except PgherdError:
                pass  # the pod or the API is away for a moment
            time.sleep(_AGAIN_SECONDS)

    for pod, prefix in pods:
        threading.Thread(target=follow, args=[pod, prefix], daemon=True).start()
    while True:
        yield arrived.get()
