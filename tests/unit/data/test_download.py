"""Fetching files from a server on this machine that cuts connections, forgets sizes, changes files and answers with errors."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path

import pytest

from bm3_dgl.config.schema import DataConfig, DataFormat, DownloadConfig
from bm3_dgl.data import download as downloading
from bm3_dgl.data import transfer
from bm3_dgl.errors import ConfigError, DataError

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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
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


def test_fetches_once_and_asks_no_server_when_all_is_there(server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    config = settings(server, files=["categoryFiles/" + NAME, "meta_Tiny.json.gz"])
    paths = download(config, str(raw))
    assert [path.name for path in paths] == [NAME, "meta_Tiny.json.gz"]
    assert all(path.read_bytes() == BODY for path in paths)
    assert left_over(raw) == sorted(path.name for path in paths)
    assert server.how.log == [None, None]
    config.url = ""
    assert download(config, str(raw)) == paths
    assert server.how.log == [None, None]


@pytest.mark.parametrize(
    "release, names",
    [
        (DataFormat.amazon2014, ["reviews_Baby_5.json.gz", "meta_Baby.json.gz", "image_features_Baby.b"]),
        (DataFormat.amazon2018, ["Baby_5.json.gz", "meta_Baby.json.gz"]),
        (DataFormat.amazon2023, ["Baby.jsonl.gz", "meta_Baby.jsonl.gz"]),
    ],
)
def test_fetches_a_category(server: Server, tmp_path: Path, release: DataFormat, names: list[str]) -> None:
    data = DataConfig(format=release, category="Baby", source=str(tmp_path))
    downloading.download(settings(server, files=[]), data)
    assert left_over(tmp_path) == sorted(names)


def test_goes_on_after_each_cut(server: Server, tmp_path: Path) -> None:
    server.how.cuts = [100_000, 50_000, 0, 1]
    download(settings(server, attempts=2, checksums=sums(tmp_path, BODY)), str(tmp_path / "raw"))
    assert (tmp_path / "raw" / NAME).read_bytes() == BODY
    assert server.how.log == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150001-"]
    assert left_over(tmp_path / "raw") == [NAME]


def test_goes_on_in_a_later_call(server: Server, tmp_path: Path) -> None:
    server.how.cuts = [100_000, 0, 0]  # a byte gained makes good for all failures before it
    message = rf"{NAME}: the connection ended at byte 100000 of 300000 \(attempt 2 of 2 .*\); 100000 bytes are kept, call again"
    with pytest.raises(DataError, match=message):
        download(settings(server, attempts=2), str(tmp_path))
    assert left_over(tmp_path) == [f".{NAME}.part", f".{NAME}.part.json"]
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY
    assert server.how.log[-1] == "bytes=100000-"
    assert left_over(tmp_path) == [NAME]


def test_a_part_that_is_whole_is_only_renamed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_sha256", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(settings(server), str(tmp_path))
    assert not (tmp_path / NAME).exists()
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY
    assert server.how.log == [None]


@pytest.mark.parametrize(
    "mark",
    [
        {"tag": '"two"'},
        {"tag": None, "date": "Sun, 22 Nov 2026 00:00:00 GMT"},
        {"tag": 'W/"weak"', "date": None},
        {"tag": None, "date": None},
    ],
)
def test_bytes_of_two_versions_are_never_joined(server: Server, tmp_path: Path, mark: dict[str, str | None]) -> None:
    server.how.cuts = [100_000, 0]
    with pytest.raises(DataError, match="call again"):
        download(settings(server, attempts=1), str(tmp_path))
    server.how.body = OTHER
    for name, value in mark.items():
        setattr(server.how, name, value)
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_a_server_without_marks_of_versions_is_asked_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.how.tag, server.how.cuts = 'W/"weak"', [100_000]
    download(settings(server), str(tmp_path))
    assert server.how.log == [None, None]
    assert (tmp_path / NAME).read_bytes() == BODY


def test_resumes_by_the_date_where_there_is_no_tag(server: Server, tmp_path: Path) -> None:
    server.how.tag, server.how.date, server.how.cuts = None, "Sat, 21 Nov 2026 00:00:00 GMT", [100_000]
    download(settings(server), str(tmp_path))
    assert server.how.log == [None, "bytes=100000-"]
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_server_that_cannot_resume_and_cuts_at_the_same_byte_ends_the_patience(server: Server, tmp_path: Path) -> None:
    server.how.resumes, server.how.cuts = False, [100_000] * 9
    with pytest.raises(DataError, match=r"attempt 3 of 3 without progress"):
        download(settings(server), str(tmp_path))
    assert len(server.how.log) == 4  # the first gained bytes


@pytest.mark.parametrize("lies", ["bytes 5-299999/300000", "bytes 100000-299999/300001", "bytes */300000", "nonsense"])
def test_a_part_of_the_wrong_place_is_thrown_away(server: Server, tmp_path: Path, lies: str) -> None:
    server.how.cuts, server.how.lies = [100_000], lies
    download(settings(server), str(tmp_path))
    assert server.how.log == [None, "bytes=100000-", None]
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_file_that_has_shrunk_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.how.cuts = [200_000, 0]
    with pytest.raises(DataError):
        download(settings(server, attempts=1), str(tmp_path))
    server.how.body = BODY[:150_000]
    download(settings(server), str(tmp_path))
    assert server.how.log == [None, "bytes=200000-", "bytes=200000-", None]
    assert (tmp_path / NAME).read_bytes() == BODY[:150_000]


def test_a_part_that_is_longer_than_the_new_version(server: Server, tmp_path: Path) -> None:
    server.how.cuts = [200_000, 0]
    with pytest.raises(DataError):
        download(settings(server, attempts=1), str(tmp_path))
    server.how.body, server.how.tag = OTHER[:150_000], '"two"'
    download(settings(server, attempts=1), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == OTHER[:150_000]


def test_a_part_of_another_address_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.how.cuts = [100_000, 0]
    with pytest.raises(DataError):
        download(settings(server, attempts=1), str(tmp_path))
    server.how.body = OTHER  # under the same tag: a tag tells versions of one address apart, no more
    download(settings(server, url=f"{server.url}/2018"), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_a_file_that_another_process_has_finished_meanwhile(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(OTHER)
    transfer.fetch(f"{server.url}/{NAME}", tmp_path / NAME, patience=transfer.Patience(1, 0.0, 5.0))
    assert (tmp_path / NAME).read_bytes() == OTHER
    assert left_over(tmp_path) == [NAME]
    assert server.how.log == []


def test_chunked_answers_are_read_to_their_end(server: Server, tmp_path: Path) -> None:
    server.how.chunked, server.how.cuts = True, [100_000]
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_silent_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.how.silent_seconds = 20.0
    download(settings(server, silence_seconds=0.3), str(tmp_path))
    assert server.how.log == [None, "bytes=150000-"]
    assert (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize("status", [202, 408, 429, 500, 502, 503, 504])
def test_passing_errors_are_waited_out(server: Server, tmp_path: Path, status: int) -> None:
    server.how.statuses = [status, status]
    download(settings(server), str(tmp_path))
    assert len(server.how.log) == 3
    assert (tmp_path / NAME).read_bytes() == BODY


def test_waits_double_and_obey_the_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    server.how.statuses = [500] * 4
    download(settings(server, attempts=5, wait_seconds=30.0), str(tmp_path / "a"))
    server.how.statuses, server.how.headers = [429], {"Retry-After": "90"}
    download(settings(server, wait_seconds=1.0), str(tmp_path / "b"))
    assert waits == [30.0, 60.0, 60.0, 60.0, 90.0]


@pytest.mark.parametrize("status", [201, 203, 204, 400, 401, 403, 404, 410])
def test_lasting_errors_end_at_once_and_leave_nothing(server: Server, tmp_path: Path, status: int) -> None:
    server.how.statuses = [status] * 9
    with pytest.raises(DataError, match=rf"/amazon/{NAME}: the server answers {status} .*; check download.url"):
        download(settings(server), str(tmp_path))
    assert len(server.how.log) == 1
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "behaviour, message",
    [
        ({"announces": 300_001}, r"(ended at byte 300000 of 300001|answers 416 .*) \(attempt 3 of 3"),
        ({"tells_size": False, "tag": None}, "the server tells no size, so an early end could not be seen"),
        ({"content_type": "text/html; charset=utf-8"}, "sends a page of HTML instead of the file"),
        ({"tells_size": False, "more": {"Content-Length": "\xb2"}}, "the server tells no size"),
        ({"tells_size": False, "more": {"Content-Length": "9" * 5000}}, "the server tells no size"),
        ({"body": b""}, f"{NAME}: the server sends a file of no bytes; check download.url"),
        ({"body": b"", "chunked": True}, "the server sends a file of no bytes"),
        ({"body": b"\xef\xbb\xbf\n<!DOCTYPE HTML><html></html>"}, "sends a page of HTML instead of the file"),
        ({"body": b"<?xml version='1.0'?>\n<!-- no -->\n<html lang='en'>"}, "sends a page of HTML instead of the file"),
        ({"more": {"Content-Encoding": "br"}}, "sends the file encoded by 'br', unasked; choose"),
        ({"garbage": b"HELLO\r\n\r\n"}, "the server does not answer in HTTP but 'HELLO' .attempt 3 of 3"),
        ({"garbage": b"\x1b[31m\x00" + b"x" * 9000 + b"\n"}, r"not answer in HTTP but '\[31m x{100,200} .attempt 3 of 3"),
        ({"statuses": [302] * 20, "headers": {"Location": "/amazon"}}, "answers 302 .* infinite loop"),
        ({"statuses": [302], "headers": {"Location": "http://[::1/"}}, "leads on to no valid address .*; check download.url"),
        ({"statuses": [302], "headers": {"Location": f"http://{'a' * 64}.de/"}}, "leads on to no valid address"),
        ({"statuses": [302], "headers": {"Location": "http://127.0.0.1:abc/"}}, "leads on to no valid address"),
        ({"announces": 10**17}, r"bytes are still to come and \d+ are free; choose"),
        ({"statuses": [500] * 9}, r"answers 500 .* \(attempt 3 of 3 without progress\); 0 bytes are kept"),
    ],
)
def test_wrong_answers_end_in_one_line_and_no_file(
    server: Server, tmp_path: Path, behaviour: dict[str, object], message: str
) -> None:
    for name, value in behaviour.items():
        setattr(server.how, name, value)
    with pytest.raises(DataError, match=message) as caught:
        download(settings(server), str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / NAME).exists()


def test_a_page_is_taken_where_it_is_asked_for(server: Server, tmp_path: Path) -> None:
    server.how.body, server.how.content_type = b"<html></html>", "text/html"
    download(settings(server, files=["index.HTML"]), str(tmp_path))
    assert (tmp_path / "index.HTML").read_bytes() == b"<html></html>"


def test_an_encoding_by_gzip_is_that_of_a_gz_file_and_refused_of_others(server: Server, tmp_path: Path) -> None:
    server.how.more = {"Content-Encoding": "gzip"}
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY
    with pytest.raises(DataError, match="encoded by 'gzip', unasked"):
        download(settings(server, files=["items.csv"]), str(tmp_path))
    assert left_over(tmp_path) == [NAME]


def test_a_file_that_takes_some_bytes_at_a_time_is_written_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sparing(FileIO):
        def write(self, content: object) -> int:
            return super().write(memoryview(content)[:1000])  # type: ignore[call-overload]

    monkeypatch.setattr(transfer.os, "fdopen", lambda number, mode, buffering: Sparing(number, mode.replace("b", "")))
    server.how.chunked = True
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_network_that_goes_down_while_bytes_come_is_waited_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [OSError(errno.EHOSTUNREACH, "No route to host")]
    read1 = http.client.HTTPResponse.read1

    def failing(answer: http.client.HTTPResponse, size: int) -> bytes:
        if errors:
            raise errors.pop()
        return read1(answer, size)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", failing)
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_server_that_passes_over_if_range_joins_no_versions(server: Server, tmp_path: Path) -> None:
    server.how.cuts, server.how.heeds_if_range = [100_000, 0], False
    with pytest.raises(DataError, match="call again"):
        download(settings(server, attempts=1), str(tmp_path))
    server.how.body, server.how.tag = OTHER, '"two"'
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_a_chunked_answer_goes_on_where_only_the_second_tells_the_size(server: Server, tmp_path: Path) -> None:
    server.how.chunked, server.how.cuts = True, [100_000]
    download(settings(server), str(tmp_path))
    assert server.how.log == [None, "bytes=100000-"]


@pytest.mark.parametrize("asked", ["\xb2", "soon", "-1"])
def test_a_wait_that_is_no_number_is_passed_over(server: Server, tmp_path: Path, asked: str) -> None:
    server.how.statuses, server.how.headers = [503], {"Retry-After": asked}
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_very_long_patience(server: Server, tmp_path: Path) -> None:
    server.how.statuses = [500] * 1100
    download(settings(server, attempts=1200, wait_seconds=0.0), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


def test_addresses_and_names_in_other_letters_are_quoted(server: Server, tmp_path: Path) -> None:
    config = settings(server, url=f"{server.url}/k\xe4se%20a@1/", files=["gr\xf6\xdfe 100%.gz"])
    download(config, str(tmp_path))
    assert server.how.paths == ["/amazon/k%C3%A4se%20a@1/gr%C3%B6%C3%9Fe%20100%25.gz"]
    assert left_over(tmp_path) == ["gr\xf6\xdfe 100%.gz"]
    assert downloading._base_url("HTTPS://k\xe4se.de:8080/") == "https://xn--kse-qla.de:8080"
    assert downloading._base_url("http://[::1]:80/a") == "http://[::1]:80/a"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:se/cret@host/",
        "http://me:secret@host/",
        "ftp://me:secret@host/",
        "http://me:secret@[::1/",
        "http://me:s?cret@h",
    ],
)
def test_a_password_is_refused_and_not_shown(server: Server, tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        download(settings(server, url=url), str(tmp_path))
    assert "me" not in str(caught.value).replace("name", "").split(";")[0]
    assert "cret" not in str(caught.value)


def test_a_checksum_of_the_same_name_in_another_folder_is_not_taken(server: Server, tmp_path: Path) -> None:
    one, two = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(OTHER).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{one}  ./a/{NAME}\n{two}  b/{NAME}\n")
    config = settings(server, files=[f"a/{NAME}"], checksums=str(tmp_path / "SHA256SUMS"))
    download(config, str(tmp_path / "raw"))
    config.files = [f"c/{NAME}"]
    with pytest.raises(DataError, match="two checksums of 'c/reviews"):
        download(config, str(tmp_path / "raw"))


@pytest.mark.parametrize(
    "owner, name, message",
    [
        ("os", "fsync", r"\.part: cannot be written \(No space left\)"),
        ("Path", "rename", r"\.part: cannot be written \(No space left\)"),
        ("Path", "write_text", r"\.part: cannot be written \(No space left\)"),
        ("fcntl", "flock", r"\.part: cannot be locked \(No space left\); choose another data.source"),
    ],
)
def test_what_the_disk_refuses_is_told_in_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, message: str
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(getattr(transfer, owner), name, refuse)
    with pytest.raises(DataError, match=message):
        download(settings(server), str(tmp_path))
    assert not (tmp_path / NAME).exists()


def test_a_file_name_that_no_disk_takes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(File name too long\)"):
        download(settings(server, files=["x" * 300]), str(tmp_path))


@pytest.mark.parametrize("mark", ['["one"]', '"a\\\\nb"', "7"])
def test_damaged_notes_are_not_used(server: Server, tmp_path: Path, mark: str) -> None:
    (tmp_path / f".{NAME}.part").write_bytes(OTHER[:1000])
    notes = f'{{"url": "{server.url}/{NAME}", "size": 300000, "mark": {mark}}}'.replace("\\\\", "\\")
    (tmp_path / f".{NAME}.part.json").write_text(notes)
    download(settings(server), str(tmp_path))
    assert server.how.log == [None]
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_category_that_holds_a_query(server: Server, tmp_path: Path) -> None:
    data = DataConfig(format=DataFormat.amazon2014, category="x?y", source=str(tmp_path))
    with pytest.raises(ConfigError, match=r"data.category: .* has a \?query"):
        downloading.download(settings(server, files=[]), data)


def test_no_server_at_all(server: Server, tmp_path: Path) -> None:
    config = settings(server, url="http://127.0.0.1:9/amazon", attempts=2)
    with pytest.raises(DataError, match=r"Connection refused \(attempt 2 of 2"):
        download(config, str(tmp_path))
    assert left_over(tmp_path) == []


def test_a_size_that_is_too_small_is_found_by_the_checksum(server: Server, tmp_path: Path) -> None:
    server.how.announces = 299_999
    with pytest.raises(DataError, match=r"has SHA-256 [0-9a-f]{64}, twice, expected [0-9a-f]{64}"):
        download(settings(server, checksums=sums(tmp_path, BODY)), str(tmp_path / "raw"))
    assert left_over(tmp_path / "raw") == []


def test_a_damaged_transfer_is_repeated_once(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = tmp_path / "raw" / f".{NAME}.part"
    server.how.cuts = [100_000, 0]
    with pytest.raises(DataError):
        download(settings(server, attempts=1), str(tmp_path / "raw"))
    part.write_bytes(OTHER[:100_000])  # bits that rotted on the disk
    with caplog.at_level(logging.WARNING, "bm3_dgl"):
        download(settings(server, checksums=sums(tmp_path, BODY)), str(tmp_path / "raw"))
    assert "fetching it again from the beginning" in caplog.text
    assert server.how.log == [None, "bytes=100000-", "bytes=100000-", None]
    assert (tmp_path / "raw" / NAME).read_bytes() == BODY


def test_a_file_that_is_there_is_checked_against_its_checksum(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(OTHER)
    assert download(settings(server), str(tmp_path)) == [tmp_path / NAME]
    with pytest.raises(DataError, match=r"download.checksums says .*; remove the file to fetch it again"):
        download(settings(server, checksums=sums(tmp_path, BODY)), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_two_processes_do_not_write_the_same_file(server: Server, tmp_path: Path) -> None:
    with open(tmp_path / f".{NAME}.part", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is fetching this file"):
            download(settings(server), str(tmp_path))
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize(
    "changes, source, message",
    [
        ({"url": ""}, "raw", r"download.url=: expected an http:// or https:// address, to fetch reviews_Tiny"),
        ({"url": "file:///etc"}, "raw", "download.url=file:///etc: expected an http"),
        ({"url": "http://"}, "raw", "expected an http"),
        ({"url": "http://[::1/a"}, "raw", r"download.url=http://\[::1/a: has no valid host and port; expected"),
        ({"url": f"http://{'a' * 64}.de/"}, "raw", "has no valid host and port"),
        ({"url": "http://a..b/"}, "raw", "has no valid host and port"),
        ({"url": "http://a%0ab/"}, "raw", "has no valid host and port"),
        ({"url": "http://host:abc/"}, "raw", "has no valid host and port"),
        ({"url": "http://host:99999/"}, "raw", "has no valid host and port"),
        ({"url": "http://host/a b"}, "raw", "has a blank or an unprintable sign; .* %20"),
        ({"url": "http://host/a\n"}, "raw", "has a blank or an unprintable sign"),
        ({"url": "http://host/a?key=1"}, "raw", r"download.url=http://host/a: has a \?query or a #fragment"),
        ({"url": "http://host/a#b"}, "raw", r"has a \?query or a #fragment"),
        ({"files": ["x.csv?raw=1"]}, "raw", r"download.files: 'x.csv\?raw=1' has a \?query or a #fragment"),
        ({"files": ["x.csv#1"]}, "raw", r"has a \?query or a #fragment"),
        ({"files": []}, "raw", "download.files is empty"),
        ({}, "", "data.source is empty"),
        ({"files": ["../passwd"]}, "raw", "'../passwd' is no file name"),
        ({"files": ["/etc/passwd"]}, "raw", "is no file name"),
        ({"files": [".bashrc"]}, "raw", "is no file name"),
        ({"files": ["a\nb"]}, "raw", "is no file name"),
        ({"files": ["a/x.gz", "b/x.gz"]}, "raw", "two of them are called 'x.gz'"),
    ],
)
def test_wrong_settings(server: Server, tmp_path: Path, changes: dict[str, object], source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        download(settings(server, **changes), str(tmp_path / source) if source else "")
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path) == []
    assert server.how.log == []


@pytest.mark.parametrize(
    "content, message",
    [
        (b"not a sum\n", r"SHA256SUMS, line 1: 'not a sum' is no line of sha256sum"),
        (b"\n" + b"0" * 64 + b"  other.gz\n", rf"SHA256SUMS: no checksum of '{NAME}'"),
        (b"\xff\xfe", r"SHA256SUMS: cannot be read \(not UTF-8\)"),
        (None, r"SHA256SUMS: cannot be read \(No such file"),
    ],
)
def test_wrong_checksum_files(server: Server, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "SHA256SUMS"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        download(settings(server, checksums=str(path)), str(tmp_path / "raw"))
    assert server.how.log == []


def test_an_unwritable_source(server: Server, tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(DataError, match="raw: cannot be made"):
        download(settings(server), str(tmp_path / "raw"))


def test_the_launcher(server: Server, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, str(root / "launch/download.py"), f"data.source={tmp_path}", f"download.url={server.url}"]
    done = subprocess.run([*command, f"download.files=[{NAME}]"], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"{NAME}: 300000 bytes, SHA-256 {hashlib.sha256(BODY).hexdigest()}" in done.stderr
    server.how.statuses = [404]
    done = subprocess.run([*command, "download.files=[b.gz]"], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"error: {server.url}/b.gz: the server answers 404 Not Found")
