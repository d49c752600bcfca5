"""Feature files of a modality: one row of numbers per item, opened memory-mapped and checked block by block.

In: a .npy file, float16, float32 or float64, of any byte order and layout. Out: float32 (num_items, width), C order.
A file that holds just that is mapped as it is; any other is converted, one block at a time, into an unnamed temporary
file. So memory stays at one block, whatever the size of the file. New files of rows are made here too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bm3_dgl.errors import DataError

_BLOCK_BYTES = 1 << 24  # of one block as float32
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_REMEDY = "expected a .npy file with one float32 row per item, as numpy.save writes it"


def map_features(path: Path) -> np.ndarray:
    """Map a .npy file read-only: (rows, width), rows >= 0, width >= 1, float16, float32 or float64.

    Reads the header and the size only. Raises DataError for what is not a whole .npy file of such an array; pickled
    objects are refused, never loaded.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:  # later versions exist for named columns, which no feature file has
                raise ValueError(f"format version {version[0]}.{version[1]}")
            shape, fortran, dtype = _HEADERS[version](file)
            begin, size = file.tell(), path.stat().st_size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); {_REMEDY}") from None
    if dtype.hasobject:
        raise DataError(f"{path}: holds pickled Python objects, which are never loaded; {_REMEDY}")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise DataError(f"{path}: holds {dtype}; expected float32 (float16 and float64 are converted)")
    if len(shape) != 2 or shape[1] < 1:
        raise DataError(f"{path}: has shape {shape}; expected (items, width), width at least 1")
    expected = begin + shape[0] * shape[1] * dtype.itemsize
    if size < expected:
        raise DataError(f"{path}: is cut short: {size} bytes, its header promises {expected}; copy the file again")
    if shape[0] == 0:
        return np.empty(shape, np.float32)
    return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")


def checked_float32(path: Path, mapped: np.ndarray) -> np.ndarray:
    """The mapped rows as float32 (rows, width), C order; `mapped` itself where it is that already.

    Raises DataError, with row and column from 0, for the first value that is not a finite float32.
    """
    blocks = _finite_blocks(path, mapped)
    if mapped.dtype == np.dtype(np.float32) and mapped.flags.c_contiguous:
        for _ in blocks:
            pass  # checked only
        return mapped
    try:
        with tempfile.TemporaryFile() as converted:  # has no name: nothing is left behind, however the program ends
            for block in blocks:
                converted.write(block.tobytes())
            converted.flush()
            return np.memmap(converted, np.float32, "r", 0, mapped.shape)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be converted to float32 ({error.strerror or error}); set TMPDIR to a larger disk"
        ) from None


def new_rows(path: Path, shape: tuple[int, int], dtype: np.dtype) -> np.memmap:
    """A new .npy file of zeros, mapped for writing. Raises DataError where the disk has no room for all of it.

    All its blocks are taken now: a disk that is found full while a mapped row is written kills the process.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    try:
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            os.posix_fallocate(file.fileno(), file.tell(), max(1, shape[0] * shape[1] * np.dtype(dtype).itemsize))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DataError(
            f"{path}: no room for {shape[0]} rows of {shape[1]} {np.dtype(dtype).name} ({error.strerror}); "
            "free space, choose another data.dir, or set data.feature_dtype=float16"
        ) from None
    return np.lib.format.open_memmap(path, mode="r+")


def fill_with_mean(rows: np.ndarray, found: np.ndarray) -> None:
    """Give the items without a row of their own the mean of the others, in place, block by block.

    rows: float16 or float32 (n, width), writable; found: bool (n,), with at least one true. Summed in float64.
    """
    assert found.any(), "a mean of nothing"
    step = max(1, _BLOCK_BYTES // (8 * rows.shape[1]))
    total = np.zeros(rows.shape[1], np.float64)
    for begin in range(0, len(rows), step):
        total += rows[begin : begin + step][found[begin : begin + step]].sum(axis=0, dtype=np.float64)
    mean = (total / np.count_nonzero(found)).astype(rows.dtype)
    for index in np.flatnonzero(~found):
        rows[index] = mean


def _finite_blocks(path: Path, mapped: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in order as float32 (up to a block's rows, width). A float64 beyond float32's range is not finite."""
    step = max(1, _BLOCK_BYTES // (4 * mapped.shape[1]))
    for begin in range(0, len(mapped), step):
        rows = mapped[begin : begin + step]
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(rows, dtype=np.float32)
        wrong = ~np.isfinite(block)
        if wrong.any():
            row, column = (int(place) for place in np.argwhere(wrong)[0])
            raise DataError(
                f"{path}, row {begin + row}, column {column} (from 0): holds {rows[row, column]}; expected a finite float32: "
                "fill in or leave out what is unknown before"
            )
        yield block
