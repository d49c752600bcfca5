"""Fetching files from servers that answer wrongly, onto disks that refuse, with settings that cannot be meant."""

from __future__ import annotations

import errno
import hashlib
import logging
from pathlib import Path

import pytest

from bm3_dgl.config.schema import DataConfig, DataFormat
from bm3_dgl.data import download as downloading
from bm3_dgl.data import transfer
from bm3_dgl.errors import ConfigError, DataError
from tests.unit.data.file_server import BODY, NAME, OTHER, Server, download, left_over, settings, sums


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


@pytest.mark.parametrize("asked", ["\xb2", "soon", "-1"])
def test_a_wait_that_is_no_number_is_passed_over(server: Server, tmp_path: Path, asked: str) -> None:
    server.how.statuses, server.how.headers = [503], {"Retry-After": asked}
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


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
