"""The item table as the compiled ranking reads it: ordered, centred, rounded to 8 bits, cut into tiles and chunks.

Items are visited by the largest component of i - c, largest first, c being the mean of all items. So the items of a chunk
share one scale at hardly any loss; long rows, which tend to score best, come first and raise every user's limit early;
and the rest can be left out as soon as even its longest row cannot score enough. The centre changes no ranking, since
u . c is the same for all items, but without it a direction that all items have in common would take up the 8 bits.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bm3_dgl.evaluate.search import CHUNK_TILES, OFFSET
from bm3_dgl.evaluate.tiles import TILE_ITEMS


class Catalog(NamedTuple):
    """T tiles of 64 items, C chunks of tiles, Q = ceil(D / 4); rows are places in the visiting order."""

    rows: np.ndarray  # float32 (I * D,), the items in visiting order
    item_I: np.ndarray  # int64, their item indices
    center_D: np.ndarray  # float64
    tiles_TQ: np.ndarray  # int32 (T, Q, 64): per quad of dimensions and item four uint8, each OFFSET too large
    first_C: np.ndarray  # int64 (C + 1,), first tile of each chunk
    scale_C: np.ndarray  # float64, of the 8-bit values of a chunk
    norm_C: np.ndarray  # float64, largest |i - c| of a chunk
    error_C: np.ndarray  # float64, largest distance of i - c from its rounded row
    rest_C: np.ndarray  # float64, largest |i - c| of a chunk and all that follow
    reach: float  # largest |i|, plus |c|


def build_catalog(items_ID: np.ndarray, max_norm: float) -> Catalog:
    """items_ID: float32 (I, D), I >= 1, all finite; max_norm: the largest norm of its rows."""
    num_items, dim = items_ID.shape
    num_tiles = -(-num_items // TILE_ITEMS)
    center_D = items_ID.mean(0, dtype=np.float64)
    item_I = np.argsort(-np.abs(items_ID - center_D.astype(np.float32)).max(1), kind="stable")
    rows_ID = items_ID[item_I]
    first_C = _chunks(num_tiles)
    tiles_TQ = np.empty((num_tiles, -(-dim // 4), TILE_ITEMS), np.int32)
    scale_C, norm_C, error_C = np.ones((3, len(first_C) - 1))
    for chunk, (first, stop) in enumerate(pairwise(first_C)):
        x_ND = rows_ID[first * TILE_ITEMS : stop * TILE_ITEMS] - center_D
        scale_C[chunk] = np.abs(x_ND).max() / 127 or 1.0
        level_ND = np.rint(x_ND / scale_C[chunk])
        norm_C[chunk] = np.linalg.norm(x_ND, axis=1).max()
        error_C[chunk] = np.linalg.norm(x_ND - scale_C[chunk] * level_ND, axis=1).max()
        tiles_TQ[first:stop] = _tiles(level_ND, stop - first)
    rest_C = np.maximum.accumulate(norm_C[::-1])[::-1].copy()
    reach = max_norm + float(np.linalg.norm(center_D))
    return Catalog(rows_ID.reshape(-1), item_I, center_D, tiles_TQ, first_C, scale_C, norm_C, error_C, rest_C, reach)


def _chunks(num_tiles: int) -> np.ndarray:
    """First tiles of the chunks, int64 (C + 1,): 1, 1, 2, 4, ... tiles while limits still rise fast, then CHUNK_TILES."""
    first = [0, 1]
    while first[-1] < num_tiles:
        first.append(min(first[-1] + min(first[-1], CHUNK_TILES), num_tiles))
    return np.array(first, np.int64)


def _tiles(level_ND: np.ndarray, num_tiles: int) -> np.ndarray:
    """8-bit rows, N <= 64 num_tiles, as tiles, int32 (num_tiles, Q, 64); what is added at the end holds zeros."""
    count, dim = level_ND.shape
    bytes_ND = np.full((num_tiles * TILE_ITEMS, -(-dim // 4) * 4), OFFSET, np.uint8)
    bytes_ND[:count, :dim] = level_ND + OFFSET
    return bytes_ND.view(np.int32).reshape(num_tiles, TILE_ITEMS, -1).transpose(0, 2, 1)
