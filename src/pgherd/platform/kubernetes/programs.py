"""Programs in a member's pod, run through the Kubernetes API (``exec`` over a WebSocket).

What is started so would outlive the connection, and whoever held it. So the program is the child of a guard, a few
lines of shell that hear from us every few seconds; a guard that hears nothing ends its program. An operator that is
killed, or cut off, leaves nothing running in a pod for longer than :data:`SILENT_SECONDS`.

In the WebSocket, a message's first byte is its channel: 0 goes to the program's input, 1 and 2 are what it says, 3 is
how it ended.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from pgherd.errors import PgherdError, Unavailable
from pgherd.platform.kubernetes import names
from pgherd.platform.kubernetes.tunnel import Reach, opened
from pgherd.platform.machine import Process

logger = logging.getLogger(__name__)

BEAT_SECONDS = 4.0
SILENT_SECONDS = 20
"""from which on the guard takes us for dead"""
KEPT = 4 << 20
"""bytes of what a program says that are remembered, from its end"""
WHOLE = 64 << 20
"""the same of what it prints to be read as a whole"""
_CHUNK = 64 * 1024
_INPUT, _OUTPUT, _ERRORS, _STATUS = range(4)

GUARD = f"""\
export LC_ALL=C PGPASSWORD="${{PATRONI_SUPERUSER_PASSWORD:-}}"
exec 3<&0
"$@" < /dev/null 3<&- &
child=$!
(
    while read -r -t {SILENT_SECONDS} word; do
        case $word in
            end) kill -INT "$child" ;;
            quit) kill -QUIT "$child" ;;
        esac
    done
    kill -TERM "$child"
    sleep 3
    kill -KILL "$child"
) <&3 > /dev/null 2>&1 &
guard=$!
wait "$child"
code=$?
kill "$guard"
exit "$code"
"""


class PodProgram(Process):
    """One program in a pod.

    :param command: the program and its arguments
    :param whole: what it prints is to be read as a whole
    """

    def __init__(self, api: Reach, pod: str, command: Sequence[str], *, whole: bool = False) -> None:
        self._api, self._pod = api, pod
        self._command = ["/bin/bash", "-c", GUARD, "guard", *command]
        self._guard = threading.Lock()
        self._words: list[bytes] = []
        self._said: dict[int, bytearray] = {_OUTPUT: bytearray(), _ERRORS: bytearray()}
        self._all = bytearray()
        self._printed, self._limit = 0, WHOLE if whole else KEPT
        self._status: dict[str, Any] | None = None
        self._trouble: Exception | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._serve, name=f"exec-{pod}", daemon=True).start()

    # what it does

    def is_running(self) -> bool:
        if not self._ended.is_set():
            return True
        self._require_status()
        return False

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        return self._ended.wait(seconds)

    @property
    def code(self) -> int:
        """How it ended.

        :raises Unavailable: nobody can tell
        """
        status = self._require_status()
        if status.get("status") == "Success":
            return 0
        for cause in (status.get("details") or {}).get("causes") or []:
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        raise Unavailable(f"{self._pod}: {status.get('message') or 'the program was not started'}")

    def output(self) -> bytes:
        """What it printed, all of it.

        :raises PgherdError: that is more than is remembered
        """
        with self._guard:
            if self._printed > len(self._said[_OUTPUT]):
                raise PgherdError(f"a program in {self._pod} printed more than {self._limit >> 20} MiB")
            return bytes(self._said[_OUTPUT])

    def errors(self) -> bytes:
        """What it complained of."""
        with self._guard:
            return bytes(self._said[_ERRORS])

    def said(self) -> str:
        with self._guard:
            return self._all.decode(errors="replace")

    def stop(self, seconds: float) -> None:
        """End it; one of which nobody hears any more is ended by its guard."""
        for word, patience in ((b"end\n", seconds), (b"quit\n", 10.0)):
            if self._ended.is_set():
                return
            with self._guard:
                self._words.append(word)
            self._ended.wait(patience)

    def abandon(self) -> None:
        """Let its guard end it."""
        with self._guard:
            self._words.append(b"")
        self._ended.wait(SILENT_SECONDS)

    def _require_status(self) -> dict[str, Any]:
        if self._status is None:
            raise Unavailable(
                f"the connection to {self._pod} broke: {self._trouble or 'it ended without a word'}"
            )
        return self._status

    # how that comes about

    def _serve(self) -> None:
        asked = [*(("command", part) for part in self._command), ("container", names.CONTAINER)]
        asked += [(stream, "true") for stream in ("stdin", "stdout", "stderr")]
        try:
            with opened(self._api, self._pod, "exec", asked) as (far, first):
                far.settimeout(1.0)
                self._talk(far, first)
        except (PgherdError, OSError, LocalProtocolError, RemoteProtocolError) as error:
            self._trouble = error
        except Exception as error:  # whoever waits must be told
            logger.exception("a program in %s", self._pod)
            self._trouble = error
        finally:
            self._ended.set()

    def _talk(self, far: socket.socket, first: bytes) -> None:
        framing, message, beaten = Connection(ConnectionType.CLIENT), bytearray(), time.monotonic()
        content: bytes | None = first or None
        while True:
            if content is not None:
                framing.receive_data(content or None)
                for event in framing.events():
                    if isinstance(event, BytesMessage | TextMessage):
                        message += event.data.encode() if isinstance(event, TextMessage) else event.data
                        if event.message_finished:
                            self._received(bytes(message))
                            message.clear()
                    elif isinstance(event, Ping):
                        far.sendall(framing.send(event.response()))
                    elif isinstance(event, CloseConnection):
                        return
            if self._status is not None or content == b"":
                return
            words = self._take_words()
            if b"" in words:
                return
            if time.monotonic() - beaten >= BEAT_SECONDS:
                words.append(b"beat\n")
                beaten = time.monotonic()
            for word in words:
                far.sendall(framing.send(BytesMessage(bytes([_INPUT]) + word)))
            try:
                content = far.recv(_CHUNK)
            except TimeoutError:
                content = None

    def _take_words(self) -> list[bytes]:
        with self._guard:
            words, self._words = self._words, []
        return words

    def _received(self, message: bytes) -> None:
        channel, content = message[0], message[1:]
        if channel == _STATUS and content:
            self._status = json.loads(content)
        elif channel in self._said and content:
            with self._guard:
                self._printed += len(content) if channel == _OUTPUT else 0
                limit = self._limit if channel == _OUTPUT else KEPT
                for kept, most in ((self._said[channel], limit), (self._all, KEPT)):
                    kept.extend(content)
                    del kept[:-most]
