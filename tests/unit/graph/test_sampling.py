"""Drawn neighbours: how many, all different, uniform, and a function of the key and the node alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bm3_dgl.graph.local import Adjacency
from bm3_dgl.graph.sampling import draw_neighbors

DEGREES = [0, 1, 3, 5, 40, 1000]
INDPTR = np.concatenate([[0], np.cumsum(DEGREES)])
ADJACENCY = Adjacency(INDPTR, np.concatenate([2 * np.arange(degree) for degree in DEGREES]).astype(np.int32))
ROWS = np.arange(len(DEGREES))


@pytest.mark.parametrize("fanout", [-1, 0, 1, 3, 39, 999, 5000])
def test_as_many_as_there_are_and_all_different(fanout: int) -> None:
    counts, columns = draw_neighbors(ADJACENCY, ROWS, 70 + ROWS, fanout, key=5)
    assert counts.tolist() == [degree if fanout < 0 else min(degree, fanout) for degree in DEGREES]
    for row, drawn in zip(ROWS, np.split(columns, np.cumsum(counts)[:-1]), strict=True):
        assert (np.diff(drawn) > 0).all(), "in the order of the row, none twice"
        assert np.isin(drawn, ADJACENCY.columns[INDPTR[row] : INDPTR[row + 1]]).all()


def test_every_subset_is_equally_likely() -> None:
    """All 10 pairs of 5 neighbours, over keys and over nodes: chi-square with 9 degrees of freedom, 99.99 % quantile."""
    draws = 5000
    row = np.full(draws, 3)
    by_node = draw_neighbors(ADJACENCY, row, np.arange(draws), 2, key=1)[1].reshape(-1, 2)
    by_key = np.stack([draw_neighbors(ADJACENCY, row[:1], row[:1], 2, key=key)[1] for key in range(draws)])
    for drawn in (by_node, by_key):
        seen = np.array([(drawn == pair).all(1).sum() for pair in itertools.combinations(range(0, 10, 2), 2)])
        assert seen.sum() == draws
        assert ((seen - draws / 10) ** 2 / (draws / 10)).sum() < 33.7


def test_nobody_else_matters() -> None:
    """A node draws the same alone, among others, in any order, and on a machine where it is another row."""
    counts, columns = draw_neighbors(ADJACENCY, ROWS, 70 + ROWS, 4, key=9)
    expected = dict(zip(70 + ROWS, np.split(columns, np.cumsum(counts)[:-1]), strict=True))
    for row in ROWS:
        alone = draw_neighbors(ADJACENCY, ROWS[row : row + 1], 70 + ROWS[row : row + 1], 4, key=9)[1]
        assert np.array_equal(alone, expected[70 + row])
    moved = Adjacency(INDPTR[3:] - INDPTR[3], ADJACENCY.columns[INDPTR[3] :])
    assert np.array_equal(draw_neighbors(moved, ROWS[1:2], np.array([74]), 4, key=9)[1], expected[74])
    assert not np.array_equal(draw_neighbors(ADJACENCY, ROWS[5:], 70 + ROWS[5:], 4, key=10)[1], expected[75])
