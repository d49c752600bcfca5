"""JSON lines between two guards. Stdlib only."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

_LONGEST = 1 << 16  # bytes of a message
_FLUSH_SECONDS = 0.1


class Wire:
    """JSON lines over a socket that never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket, self.machine = connection, -1
        self.accepted = self.heard = time.monotonic()
        self.ended = False  # said that its machine has ended well
        self.closed = False
        self._received, self._unsent = b"", b""

    def send(self, **message: Any) -> None:
        """Queue and send what the connection takes; a broken one shows when it is read."""
        self._unsent += json.dumps(message).encode() + b"\n"
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except OSError:
            pass

    def receive(self) -> tuple[list[dict], bool]:
        """Messages that have come, and whether the connection has ended."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return [], False
        except OSError:
            return [], True
        self.heard = time.monotonic()
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return [], True
        if not all(isinstance(message, dict) for message in messages) or len(self._received) > _LONGEST:
            return [], True
        return messages, not data

    def hang_up(self) -> None:
        """Send what is unsent and then the end; the other side may go on speaking."""
        try:
            self.socket.settimeout(_FLUSH_SECONDS)
            self.socket.sendall(self._unsent)
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone, or does not read
            pass

    def close(self, deadline: float) -> None:
        """Close, but first hear the other side out until it closes too, or until this time of `time.monotonic`.

        A socket that is closed with bytes unread, such as a beat, is reset, and the kernel throws away what it had yet to
        deliver: an abort, which it holds back as long as a beat before it is not acknowledged.
        """
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(1 << 16):
                    break
        except OSError:
            pass
        self.socket.close()
