"""Strings numbered in order of first appearance, a column of a block at once: a hash table in compiled code.

A Python dict of twenty million ids takes 3 GB and a look-up per row; here an id takes its bytes and about 30 more, and a
row some 50 ns. Strings are compared by their bytes: equal hashes do not make two ids one.
"""

from __future__ import annotations

# mypy: disallow-untyped-defs=False
from pathlib import Path

import numpy as np
import pyarrow as pa
from numba import njit, uint64

from bm3_dgl.data.inter import MAX_ID
from bm3_dgl.errors import DataError
from bm3_dgl.runtime.random import mix

_ABSENT = -1


class Vocabulary:
    """A growing list of different strings; string k has index k."""

    def __init__(self) -> None:
        self._count = 0
        self._bytes = np.empty(1 << 16, np.uint8)  # all strings, one behind the other
        self._ends = np.zeros(1 << 10, np.int64)  # string k is _bytes[_ends[k - 1] : _ends[k]], with 0 before the first
        self._hashes = np.empty(1 << 10, np.uint64)
        self._slots = np.full(1 << 11, _ABSENT, np.int32)

    def __len__(self) -> int:
        return self._count

    def add(self, strings: pa.Array) -> np.ndarray:
        """Indices of strings, int32 (n,); new ones are appended. strings: string or large_string without nulls."""
        data, offsets = _buffers(strings)
        self._reserve(len(strings), int(offsets[-1] - offsets[0]))
        indices = np.empty(len(strings), np.int32)
        self._count = _add(data, offsets, self._bytes, self._ends, self._hashes, self._slots, self._count, indices)
        if self._count > MAX_ID:
            raise DataError(f"more than {MAX_ID} different ids; indices are 32 bits wide")
        return indices

    def strings(self) -> pa.LargeStringArray:
        """All strings in order of index; shares the vocabulary's memory."""
        offsets = np.concatenate([np.zeros(1, np.int64), self._ends[: self._count]])
        letters = pa.py_buffer(self._bytes[: int(offsets[-1])])
        return pa.LargeStringArray.from_buffers(self._count, pa.py_buffer(offsets), letters)

    def save(self, path: Path) -> None:
        """Write the strings as an Arrow file."""
        table = pa.table({"string": self.strings()})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def _reserve(self, strings: int, letters: int) -> None:
        """Make room for so many more."""
        used = int(self._ends[self._count - 1]) if self._count else 0
        self._bytes = _grown(self._bytes, used, used + letters)
        self._ends = _grown(self._ends, self._count, self._count + strings)
        self._hashes = _grown(self._hashes, self._count, self._count + strings)
        if 2 * (self._count + strings) > len(self._slots):
            size = 1 << (2 * (self._count + strings) - 1).bit_length()
            self._slots = np.full(size, _ABSENT, np.int32)
            _refill(self._hashes, self._slots, self._count)


def load_strings(path: Path) -> pa.LargeStringArray:
    """What `save` wrote, memory-mapped."""
    (column,) = pa.ipc.open_file(pa.memory_map(str(path))).read_all().columns
    return column.combine_chunks()


def _buffers(strings: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Letters uint8 and offsets int32 or int64 (n + 1,) of a string array, without copying."""
    assert strings.null_count == 0, "nulls are dropped before"
    wide = pa.types.is_large_string(strings.type)
    _, offsets, letters = strings.buffers()
    if len(strings) == 0 or letters is None:
        return np.zeros(1, np.uint8), np.zeros(len(strings) + 1, np.int64)
    places = np.frombuffer(offsets, np.int64 if wide else np.int32)
    data = np.frombuffer(letters, np.uint8) if letters.size else np.zeros(1, np.uint8)
    return data, places[strings.offset : strings.offset + len(strings) + 1]


def _grown(array: np.ndarray, used: int, needed: int) -> np.ndarray:
    if needed <= len(array):
        return array
    wider = np.empty(max(needed, 2 * len(array)), array.dtype)
    wider[:used] = array[:used]
    return wider


@njit(inline="always")
def _hash(data, begin, end):
    """FNV-1a over the bytes, then mixed, since its low bits are poor and they choose the slot."""
    value = uint64(0xCBF29CE484222325)
    for place in range(begin, end):
        value = (value ^ uint64(data[place])) * uint64(0x100000001B3)
    return mix(value)


@njit(inline="always")
def _slot_of(data, begin, end, value, letters, ends, hashes, slots):
    """The slot that holds the string, or the empty one where it belongs."""
    mask = uint64(len(slots) - 1)
    slot = value & mask
    while slots[slot] >= 0:
        known = slots[slot]
        if hashes[known] == value:
            first = ends[known - 1] if known > 0 else 0
            if ends[known] - first == end - begin:
                same = True
                for step in range(end - begin):
                    if letters[first + step] != data[begin + step]:
                        same = False
                        break
                if same:
                    break
        slot = (slot + uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _add(data, offsets, letters, ends, hashes, slots, count, indices):
    """Index every string, appending new ones; there must be room. Returns the new count."""
    for row in range(len(indices)):
        begin, end = np.int64(offsets[row]), np.int64(offsets[row + 1])
        value = _hash(data, begin, end)
        slot = _slot_of(data, begin, end, value, letters, ends, hashes, slots)
        if slots[slot] < 0:
            first = ends[count - 1] if count > 0 else 0
            for step in range(end - begin):
                letters[first + step] = data[begin + step]
            ends[count] = first + end - begin
            hashes[count] = value
            slots[slot] = count
            count += 1
        indices[row] = slots[slot]
    return count


@njit(cache=True, nogil=True)
def _refill(hashes, slots, count):
    mask = uint64(len(slots) - 1)
    for index in range(count):
        slot = hashes[index] & mask
        while slots[slot] >= 0:
            slot = (slot + uint64(1)) & mask
        slots[slot] = index
