"""A few verbs of the Kubernetes API on loopback, for what a real one can't be made to do at will.

It can go deaf (connections stay, nothing is said any more), lag, and be asked what it was asked. What the API server
checks (schemas, field managers, rights) it does not: tests/kubernetes has a real one.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lightkube import Client
from lightkube.config.kubeconfig import KubeConfig

from pgherd.platform.kubernetes.api import Api

Object = dict[str, Any]


def merged(old: Any, patch: Any) -> Any:
    """A JSON merge patch, applied."""
    if not isinstance(patch, dict):
        return patch
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


def selected(obj: Object, selector: str) -> bool:
    """Whether an object has the labels of a selector (``key=value``, ``key``, ``!key``)."""
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, selector.split(",")):
        key, _, value = term.partition("=")
        if (
            (key[1:] in labels)
            if term.startswith("!")
            else (key not in labels or (value and labels[key] != value))
        ):
            return False
    return True


class Kube:
    """What the server holds, by path; safe to share between threads."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.log: list[tuple[str, str, Object]] = []
        self.asked: list[tuple[str, str]] = []
        self.deaf = threading.Event()
        self.refuse_writes = False
        self.version = 100
        self.changed = threading.Condition()

    def put(self, path: str, obj: Object, event: str = "") -> Object:
        """Store an object as it is now."""
        with self.changed:
            self.version += 1
            old = self.objects.get(path)
            metadata = {"namespace": "prod", "generation": 1, **obj.get("metadata", {})}
            metadata.setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
            metadata["name"] = path.rpartition("/")[2]
            metadata["resourceVersion"] = str(self.version)
            self.objects[path] = {**obj, "metadata": metadata}
            self.log.append((event or ("MODIFIED" if old else "ADDED"), path, self.objects[path]))
            self.changed.notify_all()
            return self.objects[path]

    def remove(self, path: str) -> None:
        """Delete an object."""
        with self.changed:
            gone = self.objects.pop(path)
            self.version += 1
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
            self.log.append(("DELETED", path, gone))
            self.changed.notify_all()

    def writes(self, method: str) -> list[str]:
        """The paths that were changed so."""
        return [path for verb, path in self.asked if verb == method]


class _Handler(BaseHTTPRequestHandler):
    kube: Kube
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _answer(self, code: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _fail(self, code: int) -> None:
        self._answer(code, {"kind": "Status", "status": "Failure", "code": code, "message": f"no: {code}"})

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.kube.asked.append(("WATCH" if "watch" in query else "GET", parts.path))
        if "watch" in query:
            self._stream(parts.path, int(query["resourceVersion"]), float(query["timeoutSeconds"]))
        elif parts.path in self.kube.objects:
            self._answer(200, self.kube.objects[parts.path])
        elif re.search("/(namespaces/prod/[a-z]+|nodes)$", parts.path):
            with self.kube.changed:
                items = [
                    obj
                    for path, obj in self.kube.objects.items()
                    if path.startswith(parts.path + "/") and selected(obj, query.get("labelSelector", ""))
                ]
                version = str(self.kube.version)
            self._answer(200, {"metadata": {"resourceVersion": version}, "items": items})
        else:
            self._fail(404)

    def _stream(self, collection: str, version: int, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.flush()
        until, told = time.monotonic() + seconds, version
        # A deaf one neither speaks nor ends.
        while time.monotonic() < until or self.kube.deaf.is_set():
            with self.kube.changed:
                self.kube.changed.wait(0.05)
                news = list(self.kube.log)
            if self.kube.deaf.is_set():
                continue
            for event, path, obj in news:
                at = int(obj["metadata"]["resourceVersion"])
                if path.startswith(collection + "/") and at > told:
                    self.wfile.write(json.dumps({"type": event, "object": obj}).encode() + b"\n")
                    self.wfile.flush()
                    told = at

    def do_POST(self) -> None:
        obj, path = self._body(), urlsplit(self.path).path
        name = f"{path}/{obj['metadata']['name']}"
        self.kube.asked.append(("POST", name))
        if self.kube.refuse_writes:
            self._fail(503)
        elif name in self.kube.objects:
            self._fail(409)
        else:
            self._answer(201, self.kube.put(name, obj))

    def do_PATCH(self) -> None:
        patch, path = self._body(), urlsplit(self.path).path
        self.kube.asked.append(("PATCH", path))
        if isinstance(patch, list):  # a JSON patch of a subresource
            path = path.rpartition("/")[0]
            patch = {each["path"].strip("/"): each["value"] for each in patch}
        old = self.kube.objects.get(path)
        version = patch.get("metadata", {}).get("resourceVersion")
        if self.kube.refuse_writes:
            self._fail(503)
        elif old is None and "apply" not in self.headers["Content-Type"]:
            self._fail(404)
        elif old is not None and version not in (None, old["metadata"]["resourceVersion"]):
            self._fail(409)
        elif old is not None and merged(old, patch) == old:
            self._answer(200, old)
        else:
            self._answer(200, self.kube.put(path, merged(old, patch)))

    def do_DELETE(self) -> None:
        options, path = self._body(), urlsplit(self.path).path
        self.kube.asked.append(("DELETE", path))
        found = self.kube.objects.get(path)
        wanted = options.get("preconditions", {}).get("uid")
        if found is None:
            self._fail(404)
        elif wanted not in (None, found["metadata"]["uid"]):
            self._fail(409)
        else:
            self.kube.remove(path)
            self._answer(200, {"kind": "Status", "status": "Success"})


@contextmanager
def kube_api() -> Iterator[tuple[Kube, Api]]:
    """A server and a client of it."""
    kube = Kube()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"kube": kube}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    known = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me", "namespace": "prod"}}],
        "clusters": [
            {
                "name": "it",
                "cluster": {
                    "server": f"http://127.0.0.1:{server.server_port}",
                    "insecure-skip-tls-verify": True,
                },
            }
        ],
        "users": [{"name": "me", "user": {"token": "none"}}],
    }
    client = Client(config=KubeConfig.from_dict(known).get())
    try:
        yield kube, Api(client)
    finally:
        kube.deaf.clear()
        server.shutdown()
        server.server_close()
        client.close()
