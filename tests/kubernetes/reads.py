"""Objects of a Kubernetes, read without starting a kubectl for every look.

Tests look several times a second at what an operator does. A kubectl that starts costs more than the look itself, and
workers of tests share the machine with the cluster that they look at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from lightkube.config import client_adapter

from pgherd.remote.api import find_config

SECONDS = 30.0
"""that a look may take"""


class KubectlError(Exception):
    """kubectl, or the API server that was asked in its place, said no; the text is what it said."""


@dataclass(frozen=True)
class Kind:
    """Where the API server has the objects of one kind."""

    prefix: str
    plural: str
    is_namespaced: bool

    def path(self, namespace: str, name: str = "") -> str:
        """Of one object, or of all."""
        inside = f"/namespaces/{namespace}" if self.is_namespaced else ""
        return f"{self.prefix}{inside}/{self.plural}" + (f"/{name}" if name else "")


class Reader:
    """A connection to the API server that kubectl would ask; threads may share it."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self._kinds: dict[str, Kind] = {}

    def get(self, namespace: str, kind: str, name: str) -> dict[str, Any] | None:
        """One object; None: there is none.

        :param kind: as kubectl takes it: singular, plural or short
        :raises KubectlError: no such kind, or no answer
        """
        answer = self._answer(self._kind(kind).path(namespace, name))
        if answer.status_code == httpx2.codes.NOT_FOUND and _is_status(answer):
            return None
        return _content(answer)

    def list(self, namespace: str, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects that have these labels.

        :raises KubectlError: no such kind, or no answer
        """
        answer = self._answer(self._kind(kind).path(namespace), {"labelSelector": selector})
        found = _content(answer)
        # Each on its own says what it is, as kubectl prints it.
        what = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        return [{**what, **each} for each in found.get("items") or ()]

    def _answer(self, path: str, parameters: Mapping[str, str] | None = None) -> httpx2.Response:
        wanted = {key: value for key, value in (parameters or {}).items() if value}
        try:
            try:
                return self._client.get(path, params=wanted)
            except httpx2.TransportError:  # it may have been the end of a connection that was kept
                return self._client.get(path, params=wanted)
        except httpx2.HTTPError as error:
            raise KubectlError(f"{path}: {type(error).__name__}: {error}") from error

    def _kind(self, word: str) -> Kind:
        if word not in self._kinds:
            self._kinds = {}
            for known, kind in self._discovered():
                self._kinds.setdefault(known, kind)
        try:
            return self._kinds[word]
        except KeyError:
            raise KubectlError(f"the server doesn't have a resource type {word!r}") from None

    def _discovered(self) -> Iterator[tuple[str, Kind]]:
        """Every word for every kind; of the same word the first one counts."""
        groups = _content(self._answer("/apis"))["groups"]
        for prefix in ("/api/v1", *(f"/apis/{each['preferredVersion']['groupVersion']}" for each in groups)):
            answer = self._answer(prefix)
            # Of an extension's server that is away nobody wants anything.
            for each in answer.json()["resources"] if answer.is_success else ():
                if "/" not in each["name"]:
                    kind = Kind(prefix, each["name"], each["namespaced"])
                    for word in (each["name"], each["kind"].lower(), *(each.get("shortNames") or ())):
                        yield word, kind


def _is_status(answer: httpx2.Response) -> bool:
    """Whether the API server speaks of an object; of a path that it does not have it says so in plain text."""
    return answer.headers.get("content-type", "").startswith("application/json")


def _content(answer: httpx2.Response) -> dict[str, Any]:
    if not answer.is_success:
        said = answer.json().get("message") if _is_status(answer) else answer.text.strip()
        raise KubectlError(f"Error from server ({answer.status_code}): {said}")
    found: dict[str, Any] = answer.json()
    return found


@functools.cache
def reader() -> Reader:
    """The one of this process, of ``KUBECONFIG`` as it is when somebody asks first."""
    parameters = client_adapter.ConnectionParams(timeout=httpx2.Timeout(SECONDS))
    return Reader(client_adapter.Client(find_config(None), parameters))
