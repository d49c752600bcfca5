"""Negatives: never known to the user, uniform, a function of the key and the interaction's number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bm3_dgl.graph.negatives import draw_unknown

NUM_ITEMS = 12
KNOWN = [[], [5], [11, 0, 3], [*range(12)], [*range(11)], [*range(1, 12)], [7, 6, 5, 4]]


def draw(users: list[int], numbers: list[int], *, key: int) -> np.ndarray:
    indptr = np.concatenate([[0], np.cumsum([len(known) for known in KNOWN])])
    known = np.concatenate([np.array(items, np.int64) for items in KNOWN])
    return draw_unknown(indptr, known, np.array(users, np.int64), torch.tensor(numbers), NUM_ITEMS, key=key)


@pytest.mark.parametrize("user", range(len(KNOWN)))
def test_every_unknown_item_is_equally_likely_and_no_other(user: int) -> None:
    """Over interactions and over keys: chi-square below its 99.99 % quantile (37.4 with 11 degrees of freedom)."""
    unknown = sorted(set(range(NUM_ITEMS)) - set(KNOWN[user]))
    draws = 6000
    by_number = draw([user] * draws, list(range(draws)), key=4)
    by_key = np.concatenate([draw([user], [9], key=key) for key in range(draws)])
    for found in (by_number, by_key):
        if not unknown:
            assert (found == -1).all()
            continue
        assert np.isin(found, unknown).all()
        seen, expected = np.array([(found == item).sum() for item in unknown]), draws / len(unknown)
        assert ((seen - expected) ** 2 / expected).sum() < 37.4


def test_as_a_plain_list_would_give_them() -> None:
    """Against the list of unknown items, item by item; and nobody else in the batch matters."""
    users, numbers = [2, 6, 1, 2, 0, 4], [100, 7, 8, 3, 100, 5]
    found = draw(users, numbers, key=77)
    for user, number, item in zip(users, numbers, found, strict=True):
        assert item not in KNOWN[user]
        assert draw([user], [number], key=77) == item
    assert not np.array_equal(draw(users, numbers, key=78), found)
    assert len(draw([], [], key=1)) == 0
