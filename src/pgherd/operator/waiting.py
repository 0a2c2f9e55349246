"""What an operator that waits for its lease answers to its kubelet: that it is well, as long as it goes on looking.

kopf, which answers later, does not run yet; without an answer Kubernetes would end who waits, and call the
installation unavailable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SILENT_SECONDS = 60.0


class Sign:
    """The last sign of life."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def give(self) -> None:
        """Now."""
        self._last = time.monotonic()

    def is_fresh(self) -> bool:
        """Not too long ago."""
        return time.monotonic() - self._last < SILENT_SECONDS


@contextmanager
def answering(url: str) -> Iterator[Callable[[], None]]:
    """Answer GET at ``url`` as long as the block lasts; what it is given is to be called as a sign of life.

    :raises OSError: somebody else listens there
    """
    where, sign = urlsplit(url), Sign()

    class Answer(BaseHTTPRequestHandler):
        """200 or 503, whatever was asked for."""

        def do_GET(self) -> None:
            self.send_response(HTTPStatus.OK if sign.is_fresh() else HTTPStatus.SERVICE_UNAVAILABLE)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """A probe every two seconds is no news."""

    with ThreadingHTTPServer((where.hostname or "", where.port or 80), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.1,), name="waiting", daemon=True).start()
        try:
            yield sign.give
        finally:
            server.shutdown()
