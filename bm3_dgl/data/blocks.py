"""Whole lines of a text file in blocks of bytes, plain or gzip, with the number of each block's first line.

Parsing a block at a time keeps memory at a few blocks whatever the size of the file, lets a fast parser take all lines
of a block at once, and leaves a small place to search when it refuses one. The next piece is read and unpacked in a
thread meanwhile.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from bm3_dgl.errors import DataError

PIECE_BYTES = 1 << 24  # read or unpacked at once
LONGEST_LINE = 1 << 26  # bytes; a file without line ends must not fill the memory
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DELIMITERS = ",\t;|"
_QUOTE, _NEWLINE = ord('"'), ord("\n")
_START, _PLAIN, _QUOTED, _BEHIND = range(4)  # where in a field a byte stands; behind a quote within quotes

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Block:
    """Whole lines of a file; the last line of the file may lack its end. first_line counts from 1.

    delimiter: between the fields of records of which one may hold line ends between quotes; empty: a line is a record.
    """

    path: Path
    first_line: int
    text: bytes
    delimiter: str = ""

    def halves(self) -> tuple[Block, Block] | None:
        """The block in two, cut at a line's end near the middle; None where it is small or one long line."""
        if len(self.text) < 1 << 16:
            return None
        cut = line_end(self.text[: len(self.text) // 2], self.delimiter)
        if cut == 0:
            return None
        behind = self.first_line + self.text.count(b"\n", 0, cut)
        return replace(self, text=self.text[:cut]), replace(self, first_line=behind, text=self.text[cut:])


class SourceReader:
    """Reads source files and remembers what it read: path, size, time of last change and SHA-256 of each."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self.entries: list[dict[str, Any]] = []

    def blocks(self, path: Path, *, quoted: bool = False) -> Iterator[Block]:
        """The lines of a file. quoted: its records are of separated fields, where a line end between quotes ends none.

        Raises DataError for an unreadable, empty or damaged file and for a line without end.
        """
        line, carry, delimiter = 1, b"", ""
        try:
            for piece in _ahead(self._unpacked(path)):
                text = carry + piece
                if quoted and not delimiter:
                    delimiter = find_delimiter(text)
                cut = line_end(text, delimiter)
                if cut:
                    yield Block(path, line, _unmarked(text[:cut]), delimiter)
                    line += text.count(b"\n", 0, cut)
                carry = text[cut:]
                if len(carry) > LONGEST_LINE:
                    what = "a quote that is opened and not closed, or a line" if quoted else "a line"
                    raise DataError(f"{path}, line {line}: {what} of more than {LONGEST_LINE >> 20} MiB; is it a text file?")
        except zlib.error as error:
            raise DataError(f"{path}, after line {line - 1}: not valid gzip ({error}); fetch the file again") from None
        except EOFError:
            raise DataError(
                f"{path}, after line {line - 1}: the gzip stream ends in its middle; fetch the file again"
            ) from None
        if carry:
            if delimiter and not line_end(carry + b"\n", delimiter):
                raise DataError(f"{path}, line {line}: a quote is opened and never closed; mend it, or close the quote")
            yield Block(path, line, _unmarked(carry), delimiter)
        elif line == 1:
            raise DataError(f"{path}: the file is empty")

    def pieces(self, path: Path) -> Iterator[bytes]:
        """The pieces of a file as they are on disk."""
        digest = hashlib.sha256()
        try:
            stat = path.stat()
            with open(path, "rb") as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
                    self._advance(len(piece))
                    yield piece
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        entry = {"path": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        self.entries.append(entry | {"sha256": digest.hexdigest()})

    def _unpacked(self, path: Path) -> Iterator[bytes]:
        """The pieces of a file, gzip unpacked (known by its first bytes, not its name)."""
        pieces = self.pieces(path)
        head = next(pieces, b"")
        whole = _chain(head, pieces)
        yield from _inflate(whole) if head.startswith(_GZIP_MAGIC) else whole


def _unmarked(text: bytes) -> bytes:
    """Lines without the byte order marks that files joined to one leave within."""
    return text.removeprefix(_BYTE_ORDER_MARK).replace(b"\n" + _BYTE_ORDER_MARK, b"\n")


def find_delimiter(text: bytes) -> str:
    """What separates the fields of a header: of comma, tab, semicolon and bar the most frequent in the first line."""
    head = text.partition(b"\n")[0].decode("utf-8", "replace")
    return max(_DELIMITERS, key=head.count)


def line_end(text: bytes, delimiter: str) -> int:
    """Bytes up to and with the last end of a record, 0 where there is none. text: begins with a record."""
    cut = text.rfind(b"\n") + 1
    if not delimiter or cut == 0 or text.find(b'"', 0, cut) < 0:
        return cut
    return _last_record_end(np.frombuffer(text, np.uint8), ord(delimiter))


@njit(cache=True, nogil=True)
def _last_record_end(letters, delimiter):  # type: ignore[no-untyped-def]
    """As the parsers see it: a quote opens only where a field begins, and two of them within quotes are one letter."""
    state, end = _START, 0
    for place in range(len(letters)):
        letter = letters[place]
        if state == _QUOTED:
            if letter == _QUOTE:
                state = _BEHIND
        elif letter == _QUOTE and state != _PLAIN:
            state = _QUOTED
        elif letter == _NEWLINE:
            state, end = _START, place + 1
        else:
            state = _START if letter == delimiter else _PLAIN
    return end


def _inflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip, several members too. Raises zlib.error for damage, EOFError where the end is missing."""
    member = zlib.decompressobj(wbits=31)
    for piece in pieces:
        while piece:
            if member.eof:
                piece = piece.lstrip(b"\0")  # padding
                if not piece:
                    break
                member = zlib.decompressobj(wbits=31)
            yield member.decompress(piece, PIECE_BYTES)
            piece = member.unused_data or member.unconsumed_tail
    while not member.eof:
        rest = member.decompress(b"", PIECE_BYTES)
        if not rest and not member.eof:
            raise EOFError
        yield rest


def _chain(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from pieces


def _ahead(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, each fetched by a thread while the one before is worked on."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, pieces, None)
        while (piece := following.result()) is not None:
            following = pool.submit(next, pieces, None)
            yield piece
