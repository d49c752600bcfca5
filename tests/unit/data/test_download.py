"""Fetching files: once, resumed after every cut, never two versions joined; see file_server.py for who answers."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest

from bm3_dgl.config.schema import DataConfig, DataFormat
from bm3_dgl.data import download as downloading
from bm3_dgl.data import transfer
from bm3_dgl.errors import DataError
from tests.unit.data.file_server import BODY, NAME, OTHER, Server, download, left_over, settings, sums


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


def test_two_processes_do_not_write_the_same_file(server: Server, tmp_path: Path) -> None:
    with open(tmp_path / f".{NAME}.part", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is fetching this file"):
            download(settings(server), str(tmp_path))
    download(settings(server), str(tmp_path))
    assert (tmp_path / NAME).read_bytes() == BODY


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
