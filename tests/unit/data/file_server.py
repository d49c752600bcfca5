"""A server on this machine that cuts connections, forgets sizes, changes files and answers with errors; for tests."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bm3_dgl.config.schema import DataConfig, DownloadConfig
from bm3_dgl.data import download as downloading

NAME = "reviews_Tiny_5.json.gz"


BODY = random.Random(7).randbytes(300_000)


OTHER = random.Random(8).randbytes(300_000)


@dataclass
class Behaviour:
    """How the server answers; `log` holds the Range header (or None) of each request."""

    body: bytes = BODY
    tag: str | None = '"one"'
    date: str | None = None
    resumes: bool = True
    chunked: bool = False
    announces: int | None = None  # Content-Length instead of the true one
    tells_size: bool = True
    content_type: str = "application/octet-stream"
    cuts: list[int | None] = field(default_factory=list)  # per request: bytes after which the connection ends
    statuses: list[int] = field(default_factory=list)  # per request; 200 when used up
    headers: dict[str, str] = field(default_factory=dict)  # of answers with another status
    more: dict[str, str] = field(default_factory=dict)  # headers of answers with a file
    heeds_if_range: bool = True
    garbage: bytes = b""  # instead of any answer
    lies: str | None = None  # Content-Range instead of the true one
    silent_seconds: float = 0.0  # after the first half of the first answer
    log: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour
    woken: threading.Event

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        how = self.behaviour
        how.log.append(self.headers.get("Range"))
        how.paths.append(self.path)
        self.close_connection = True
        if how.garbage:
            self.wfile.write(how.garbage)
            return
        status = how.statuses.pop(0) if how.statuses else 200
        if status != 200:
            self.send_response(status)
            for name, value in {"Content-Length": "0", **how.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        begin = self.begin()
        if begin is None:
            return
        rest = how.body[begin:]
        if how.tag:
            self.send_header("ETag", how.tag)
        if how.date:
            self.send_header("Last-Modified", how.date)
        self.send_header("Content-Type", how.content_type)
        for name, value in how.more.items():
            self.send_header(name, value)
        if how.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif how.tells_size:
            self.send_header("Content-Length", str(how.announces if how.announces is not None else len(rest)))
        self.end_headers()
        self.send(rest, how.cuts.pop(0) if how.cuts else None)

    def begin(self) -> int | None:
        """Send the status line; from which byte the answer goes, None where it has none."""
        how, asked = self.behaviour, self.headers.get("Range")
        if asked and how.resumes and (self.headers["If-Range"] in (how.tag, how.date) or not how.heeds_if_range):
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(how.body):
                self.send_error(416)
                return None
            self.send_response(206)
            self.send_header("Content-Range", how.lies or f"bytes {begin}-{len(how.body) - 1}/{len(how.body)}")
            return begin
        self.send_response(200)
        return 0

    def send(self, rest: bytes, cut: int | None) -> None:
        if self.behaviour.chunked:
            for begin in range(0, len(rest if cut is None else rest[:cut]), 50_000):
                piece = rest[begin : begin + 50_000]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"" if cut is not None else b"0\r\n\r\n")
        elif self.behaviour.silent_seconds:
            self.wfile.write(rest[: len(rest) // 2])
            seconds, self.behaviour.silent_seconds = self.behaviour.silent_seconds, 0.0
            self.woken.wait(seconds)
        else:
            self.wfile.write(rest if cut is None else rest[:cut])


@dataclass
class Server:
    url: str
    how: Behaviour


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine, until the block ends."""
    behaviour, woken = Behaviour(), threading.Event()
    handler = type("OurHandler", (Handler,), {"behaviour": behaviour, "woken": woken})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{listening.server_address[1]}/amazon", behaviour)
        woken.set()
        listening.shutdown()
        thread.join()


def settings(server: Server, **changes: object) -> DownloadConfig:
    defaults = {"url": server.url, "files": [NAME], "attempts": 3, "wait_seconds": 0.001, "silence_seconds": 5.0}
    return DownloadConfig(**{**defaults, **changes})


def download(config: DownloadConfig, source: str) -> list[Path]:
    return downloading.download(config, DataConfig(source=source))


def sums(directory: Path, body: bytes, name: str = NAME) -> str:
    path = directory / "SHA256SUMS"
    path.write_text(f"{hashlib.sha256(body).hexdigest()}  {name}\n")
    return str(path)


def left_over(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
