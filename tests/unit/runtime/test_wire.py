"""What a guard says last arrives, whatever else is on the connection."""

from __future__ import annotations

import socket
import threading
import time

from bm3_dgl.runtime.wire import Wire


def test_last_words_arrive_although_the_other_side_is_speaking() -> None:
    """The kernel still holds the abort back when its sender leaves, with a beat of the other side unread."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = socket.socket()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that little is on its way at a time
        there.connect(server.getsockname())
        leaving, staying = Wire(server.accept()[0]), Wire(there)
    staying.send(beat=True)
    beats = 2000
    for _ in range(beats):
        leaving.send(beat=True)
    leaving.send(abort=[5, "rank 1 died"])

    def leave() -> None:
        leaving.hang_up()
        leaving.close(time.monotonic() + 10.0)

    thread = threading.Thread(target=leave)
    thread.start()
    time.sleep(0.3)  # it would be gone by now
    heard: list[dict] = []
    deadline = time.monotonic() + 10.0
    ended = False
    while not ended and time.monotonic() < deadline:
        messages, ended = staying.receive()
        heard += messages
    staying.socket.close()
    thread.join()
    assert heard == [{"beat": True}] * beats + [{"abort": [5, "rank 1 died"]}]


def test_nobody_is_waited_for_longer_than_said() -> None:
    leaving, silent = map(Wire, socket.socketpair())
    leaving.send(abort=[5, "rank 1 died"])
    began = time.monotonic()
    leaving.hang_up()
    leaving.close(began + 0.5)
    assert 0.4 < time.monotonic() - began < 5.0
    assert silent.receive() == ([{"abort": [5, "rank 1 died"]}], False)
    silent.socket.close()
