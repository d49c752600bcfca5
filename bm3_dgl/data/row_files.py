"""Feature rows in .npy and .safetensors files that go by position: several files count as one, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from bm3_dgl.data.features import map_features
from bm3_dgl.errors import DataError

ROW_FILES = (".npy", ".safetensors")
_BLOCK_BYTES = 1 << 24  # of rows at once


class RowBlock(NamedTuple):
    """Some rows in order, float (c, width). begin: position of the first among all; number: in its file, from 1."""

    rows: np.ndarray
    begin: int
    path: Path
    number: int


class RowFiles:
    """The rows of some files, of which only those asked for are read."""

    def __init__(self, paths: Sequence[Path], modality: str) -> None:
        """Raises DataError for what is no file of rows, and where the files differ in width."""
        self._files = [(path, _open_rows(path, modality)) for path in paths]
        self._ends = np.cumsum([len(rows) for _, rows in self._files])
        (first, rows), *others = self._files
        for path, other in others:
            if other.shape[1] != rows.shape[1]:
                raise DataError(
                    f"{path}: has rows of {other.shape[1]} numbers, {first} of {rows.shape[1]}; expected one width in all"
                )
        self._step = max(1, _BLOCK_BYTES // (8 * rows.shape[1]))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def blocks(self, begin: int, end: int) -> Iterator[RowBlock]:
        """The rows begin..end-1, as far as there are any; each block is of one file."""
        while begin < min(end, len(self)):
            place = int(np.searchsorted(self._ends, begin, side="right"))
            path, rows = self._files[place]
            own = begin - (int(self._ends[place]) - len(rows))
            block = rows[own : min(own + self._step, own + end - begin)]
            yield RowBlock(block, begin, path, own + 1)
            begin += len(block)


def _open_rows(path: Path, modality: str) -> Any:
    """Rows of a .npy or .safetensors file, read as they are sliced: (rows, width)."""
    if path.suffix == ".npy":
        return map_features(path)
    try:
        file = safe_open(str(path), "numpy")
        names = list(file.keys())
        if modality not in names and len(names) != 1:
            raise DataError(
                f"{path}: its tensors are {', '.join(sorted(names)) or 'none'}; expected one, or one called {modality}"
            )
        rows = _TensorRows(file, modality if modality in names else names[0])
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors ({str(error).splitlines()[0]})") from None
    if rows.kind not in ("F16", "F32", "F64") or len(rows.shape) != 2 or rows.shape[1] < 1:
        raise DataError(f"{path}: holds {rows.kind} {rows.shape}; expected F16, F32 or F64 (records, width)")
    return rows


class _TensorRows:
    """A tensor of a safetensors file, of which only the rows asked for are read."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file  # has to stay open
        self._slice = file.get_slice(name)
        self.shape, self.kind = self._slice.get_shape(), self._slice.get_dtype()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._slice[rows]
