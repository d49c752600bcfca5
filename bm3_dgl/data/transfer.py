"""One file from an HTTP server: resumed, retried, checked, and under its final name only when it is whole.

    target               the file; appears by a rename, after size and checksum were found right
    .<target>.part       the bytes so far, locked while they grow; kept when a transfer ends early
    .<target>.part.json  which version of the file they are of: address, size, and the server's mark of the version

Resuming asks for the missing bytes of that very version (RFC 9110: Range with If-Range); a server that has another
version by now, that cannot resume, or that marks no versions, sends the file from its beginning again.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from email.message import Message
from io import FileIO
from pathlib import Path
from typing import NoReturn
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from bm3_dgl.data.progress import Progress
from bm3_dgl.errors import DataError
from bm3_dgl.log import logger

_CHUNK = 1 << 20  # bytes read at once
_LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more
_LONGEST_ASKED = 600.0  # seconds: the most that a server's Retry-After is obeyed
_TRANSIENT = {202, 408, 425, 429}  # and 500 to 599: the server may answer otherwise later
_PAGE = re.compile(rb"(?is)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html)\b")
_PAGE_NAMES = (".html", ".htm", ".xhtml")


@dataclass(frozen=True)
class Patience:
    """attempts: failures in a row, without a byte gained, that end a transfer. wait_seconds: after the first; doubles."""

    attempts: int
    wait_seconds: float
    silence_seconds: float


@dataclass(frozen=True)
class _Version:
    """What the bytes of a part are of. size: bytes of the whole file, None where unknown; mark: ETag or date."""

    url: str
    size: int | None
    mark: str | None


class _TransferCut(Exception):
    """The transfer failed in a way that another attempt may mend. wait_seconds: what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(_one_line(reason))
        self.wait_seconds = wait_seconds


def fetch(url: str, target: Path, *, patience: Patience, sha256: str | None = None) -> None:
    """Bring the file at `url` to `target`; sha256: lower-case hexadecimal, checked before the file gets its name.

    Raises DataError, one line, for an answer that no patience mends, for patience at its end (the bytes so far are kept
    and the next call goes on from them), a wrong checksum, too little disk, and another process at the same file.
    """
    part = target.with_name(f".{target.name}.part")
    with _locked(part) as file:
        if target.exists():  # another process was faster
            part.unlink(missing_ok=True)
            return
        for may_retry in (True, False):
            _persist(url, file, part, patience, needs_size=sha256 is None)
            found = _sha256(file)
            if found != sha256:
                _refuse_no_file(url, file)
            if sha256 in (None, found):
                break
            file.truncate(0)
            if not may_retry:
                raise DataError(f"{url}: has SHA-256 {found}, twice, expected {sha256}; one is of another version")
            logger.warning("%s: has SHA-256 %s, expected %s; fetching it again from the beginning", url, found, sha256)
        os.fsync(file.fileno())
        part.rename(target)
        _notes(part).unlink(missing_ok=True)
    logger.info("%s: %d bytes, SHA-256 %s", target, target.stat().st_size, found)


def _persist(url: str, file: FileIO, part: Path, patience: Patience, *, needs_size: bool) -> None:
    """Attempt after attempt until the part is whole; failures count only while no byte is gained."""
    failures, furthest = 0, _size(file)
    while True:
        try:
            return _attempt(url, file, part, patience.silence_seconds, needs_size=needs_size)
        except _TransferCut as cut:
            failures = 0 if _size(file) > furthest else failures + 1
            furthest = max(furthest, _size(file))
            if failures >= patience.attempts:
                raise DataError(
                    f"{url}: {cut} (attempt {failures} of {patience.attempts} without progress); "
                    f"{_size(file)} bytes are kept, call again to go on from there"
                ) from None
            doublings = min(20, max(0, failures - 1))  # no overflow, however long the patience
            wait = max(cut.wait_seconds, min(_LONGEST_WAIT, patience.wait_seconds * 2**doublings))
            logger.warning("%s: %s; %d bytes are here, going on in %.3g s", url, cut, _size(file), wait)
            time.sleep(wait)


def _attempt(url: str, file: FileIO, part: Path, silence_seconds: float, *, needs_size: bool) -> None:
    """Ask for what is missing and write it. Raises _TransferCut, with the part in order, where it ends early."""
    noted = _read_notes(part, url)
    begin = _size(file) if noted else 0
    if noted and begin and begin == noted.size:
        return  # whole already: it was stopped just before the rename
    headers = {"Range": f"bytes={begin}-", "If-Range": noted.mark or ""} if begin and noted else {}
    try:
        with _open(url, headers, silence_seconds) as answer:
            begin, version = _begin(answer, url, file, noted if headers else None)
            if needs_size and version.size is None and not answer.chunked:
                raise DataError(f"{url}: the server tells no size, so an early end could not be seen; give download.checksums")
            with _on_disk(part):
                file.truncate(begin)
                _notes(part).write_text(json.dumps(asdict(version)), encoding="utf-8")
                free, missing = shutil.disk_usage(part.parent).free, (version.size or 0) - begin
            if missing > free:
                raise DataError(
                    f"{part.parent}: {missing} bytes are still to come and {free} are free; choose another data.source"
                )
            _copy(answer, file, part, begin, version.size)
    except HTTPError as error:
        with error:
            _judge_status(url, error.code, error.reason, error.headers, file)
    except (OSError, http.client.HTTPException) as error:  # of the network: those of the disk are DataErrors by now
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(f"{url}: the server's certificate is not trusted ({reason.verify_message})") from None
        if type(error) is http.client.BadStatusLine:
            reason = f"the server does not answer in HTTP but {_one_line(error)!r}"
        raise _TransferCut(str(reason) or type(reason).__name__) from None


def _open(url: str, headers: dict[str, str], silence_seconds: float) -> http.client.HTTPResponse:
    """The answer to one request, redirects followed. Raises DataError where they lead to what is no address of HTTP."""
    try:
        answer = urlopen(Request(url, headers={"Accept-Encoding": "identity", **headers}), timeout=silence_seconds)
    except (ValueError, http.client.InvalidURL) as error:
        raise DataError(f"{url}: the server leads on to no valid address ({_one_line(error)}); check download.url") from None
    if not isinstance(answer, http.client.HTTPResponse):
        with answer:
            raise DataError(f"{url}: the server leads on to {_one_line(answer.url)}, not by HTTP; check download.url")
    return answer


def _begin(answer: http.client.HTTPResponse, url: str, file: FileIO, asked: _Version | None) -> tuple[int, _Version]:
    """At which byte the answer begins, and the version it is of. asked: the version whose missing bytes were asked for.

    Raises DataError for what is no file, _TransferCut, with the part emptied, for bytes that do not fit to the part.
    """
    if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
        _judge_status(url, answer.status, answer.reason, answer.headers, file)
    if answer.headers.get_content_type() == "text/html" and not url.lower().endswith(_PAGE_NAMES):
        raise DataError(f"{url}: the server sends a page of HTML instead of the file; check download.url")
    coding = ", ".join(answer.headers.get_all("Content-Encoding", [])).strip().lower()
    # Some servers call a file that is stored as .gz encoded by gzip; it comes as it is stored.
    as_stored = ("", "identity", "gzip", "x-gzip") if url.lower().endswith((".gz", ".tgz")) else ("", "identity")
    if coding not in as_stored:
        raise DataError(
            f"{url}: the server sends the file encoded by {_one_line(coding)!r}, unasked; choose another download.url"
        )
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        return _size(file), _continued(answer, file, asked)
    length = "" if answer.chunked else answer.headers.get("Content-Length", "").strip()
    size = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    tag = answer.headers.get("ETag", "")  # If-Range takes a strong one, else the date of the last change
    return 0, _Version(url, size, tag if tag.startswith('"') else answer.headers.get("Last-Modified"))


def _continued(answer: http.client.HTTPResponse, file: FileIO, asked: _Version | None) -> _Version:
    """`asked`, with its size where only this answer tells it. Raises _TransferCut where the answer does not continue it."""
    place = answer.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", place)
    size = int(match[2]) if match is not None and match[2] != "*" else None
    if asked is None or match is None or int(match[1]) != _size(file) or asked.size not in (None, size or asked.size):
        file.truncate(0)
        raise _TransferCut(f"the server sends the part {place!r}, which was not asked for")
    name = "ETag" if (asked.mark or "").startswith('"') else "Last-Modified"
    if answer.headers.get(name, asked.mark) != asked.mark:  # some servers pass over If-Range
        file.truncate(0)
        raise _TransferCut(f"the server sends a part of another version, {name} is not {asked.mark}")
    return replace(asked, size=asked.size or size)


def _copy(answer: http.client.HTTPResponse, file: FileIO, part: Path, begin: int, size: int | None) -> None:
    """Append the answer's body to the part. Raises _TransferCut where it is shorter than announced."""
    file.seek(begin)
    with Progress(part.name[1:].removesuffix(".part"), total=size, done=begin, unit="B") as progress:
        while chunk := answer.read1(_CHUNK):
            with _on_disk(part):
                rest = memoryview(chunk)
                while rest:  # an unbuffered file may take a part only
                    rest = rest[file.write(rest) :]
            progress.advance(len(chunk))
    if size is not None and _size(file) != size:
        raise _TransferCut(f"the connection ended at byte {_size(file)} of {size}")


def _judge_status(url: str, status: int, reason: str, headers: Message, file: FileIO) -> NoReturn:
    """Tell an answer that time may mend from one that it will not."""
    text = f"the server answers {status} {_one_line(reason)}"
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        file.truncate(0)  # the file there is shorter by now
        raise _TransferCut(text)
    if status in _TRANSIENT or status >= 500:
        asked = headers.get("Retry-After", "").strip()
        raise _TransferCut(text, min(_LONGEST_ASKED, float(asked)) if asked.isascii() and asked.isdecimal() else 0.0)
    raise DataError(f"{url}: {text}; check download.url and download.files")


def _refuse_no_file(url: str, file: FileIO) -> None:
    """Raises DataError, with the part emptied, for what a server sends as a success although it has no file."""
    file.seek(0)
    head = file.read(1024)
    if head and (url.lower().endswith(_PAGE_NAMES) or not _PAGE.match(head)):
        return
    file.truncate(0)
    sent = "a page of HTML instead of the file" if head else "a file of no bytes"
    raise DataError(f"{url}: the server sends {sent}; check download.url and download.files")


def _one_line(text: object) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())[:200]


@contextmanager
def _on_disk(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{part}: cannot be written ({error.strerror}); what is there is kept, call again") from None


@contextmanager
def _locked(part: Path) -> Iterator[FileIO]:
    """The part, opened unbuffered and for this process alone; an empty one is not left behind."""
    while True:
        try:
            file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise DataError(f"{part}: cannot be written ({error.strerror}); choose another data.source") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{part}: another process is fetching this file; wait for it") from None
            except OSError as error:
                raise DataError(f"{part}: cannot be locked ({error.strerror}); choose another data.source") from None
            if not (part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())):
                continue  # who held it before has renamed or removed it meanwhile
            try:
                with _on_disk(part):
                    yield file
            finally:
                if part.exists() and _size(file) == 0:
                    part.unlink()
                    _notes(part).unlink(missing_ok=True)
            return


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path, url: str) -> _Version | None:
    """The version of the bytes in a part; None where it cannot be told or is of another address: they are not used."""
    try:
        entry = json.loads(_notes(part).read_text(encoding="utf-8"))
        size, mark, same = entry["size"], entry["mark"], entry["url"] == url
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = same and isinstance(size, int | None) and isinstance(mark, str) and mark.isascii() and mark.isprintable()
    return _Version(url, size, mark) if sound else None


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _sha256(file: FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
