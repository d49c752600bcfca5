"""A small source directory in the authors' format, for the tests of the reader and of preparing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bm3_dgl.config.schema import DataConfig

# user, item, label; 3 users, 4 items
ROWS = [(0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 1, 0), (1, 3, 2), (2, 3, 0), (2, 0, 0)]
HEADER = "userID\titemID\tx_label"


def write_source(directory: Path) -> DataConfig:
    """Interactions, visual (4, 3) and text (4, 2) float32 features; the config that reads them."""
    directory.mkdir(parents=True)
    write_lines(directory, HEADER, *("\t".join(map(str, row)) for row in ROWS))
    np.save(directory / "visual.npy", features(3))
    np.save(directory / "text.npy", features(2))
    return DataConfig(
        source=str(directory), features={"visual": "visual.npy", "text": "text.npy"}, dir=str(directory.parent / "dataset")
    )


def write_lines(directory: Path, *lines: str, name: str = "tiny.inter") -> None:
    (directory / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def features(width: int, items: int = 4) -> np.ndarray:
    """float32 (items, width): 0, 1, 2, ..."""
    return np.arange(items * width, dtype=np.float32).reshape(items, width)
