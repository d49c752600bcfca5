"""From all interactions to the ones that are kept: duplicates, repeats, the k-core, and new numbers. On int arrays.

Rows are interactions in the order of the source. `alive` (bool, one per row) shrinks from step to step; nothing is moved
until the end. U users and I items by their index in the vocabularies.
"""

from __future__ import annotations

# mypy: disallow-untyped-defs=False
import numpy as np
from numba import njit, uint64

from bm3_dgl.runtime.random import mix

_EMPTY = -1


def drop_repeats(users: np.ndarray, items: np.ndarray, times: np.ndarray | None, alive: np.ndarray) -> None:
    """Of the live rows with equal user, item and time keep the first; without `times`, with equal user and item.

    users, items: int32 (n,); times: int64 (n,); alive: bool (n,), changed in place. Takes 8 to 16 bytes a row for a table.
    """
    live = int(np.count_nonzero(alive))
    size = 1 << max(4, (2 * live - 1).bit_length())
    slots = np.full(size, _EMPTY, np.int32 if len(users) < 2**31 else np.int64)
    no_times = np.zeros(1, np.int64)
    _drop_repeats(users, items, no_times if times is None else times, times is not None, alive, slots)


def k_core(users: np.ndarray, items: np.ndarray, alive: np.ndarray, *, k: int, num_users: int, num_items: int) -> int:
    """Drop the rows of users and of items with fewer than k, both by the same count, until there are none.

    alive: bool (n,), changed in place. Returns the rounds that dropped something.
    """
    user_degree, item_degree = np.zeros(num_users, np.int32), np.zeros(num_items, np.int32)
    _count(users, items, alive, user_degree, item_degree)
    rounds = 0
    while _drop_below(users, items, alive, user_degree, item_degree, user_degree.copy(), item_degree.copy(), k):
        rounds += 1
    return rounds


def renumber(indices: np.ndarray, alive: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Number what live rows refer to from 0 in order of first appearance. indices: int32 (n,), below `size`.

    Returns new: int32 (size,), the new number of each old one or -1, and old: int32 (m,), the old of each new one.
    """
    new = np.full(size, _EMPTY, np.int32)
    count = _renumber(indices, alive, new)
    old = np.empty(count, np.int32)
    old[new[new >= 0]] = np.flatnonzero(new >= 0)
    return new, old


def distinct(indices: np.ndarray, alive: np.ndarray, size: int) -> int:
    """How many different indices the live rows have."""
    return int(_renumber(indices, alive, np.full(size, _EMPTY, np.int32)))


@njit(cache=True, nogil=True)
def _drop_repeats(users, items, times, by_time, alive, slots):
    """slots: a hash table of row numbers, at least twice as large as there are live rows."""
    mask = uint64(len(slots) - 1)
    for row in range(len(users)):
        if not alive[row]:
            continue
        user, item = users[row], items[row]
        value = mix((uint64(user) << uint64(32)) | uint64(item))
        if by_time:
            value = mix(value + uint64(times[row]))
        slot = value & mask
        while slots[slot] >= 0:
            other = slots[slot]
            if users[other] == user and items[other] == item and (not by_time or times[other] == times[row]):
                alive[row] = False
                break
            slot = (slot + uint64(1)) & mask
        if alive[row]:
            slots[slot] = row


@njit(cache=True, nogil=True)
def _count(users, items, alive, user_degree, item_degree):
    for row in range(len(users)):
        if alive[row]:
            user_degree[users[row]] += 1
            item_degree[items[row]] += 1


@njit(cache=True, nogil=True)
def _drop_below(users, items, alive, user_degree, item_degree, user_before, item_before, k):
    """One round, judged by the degrees before it; returns whether a row was dropped."""
    dropped = False
    for row in range(len(users)):
        if alive[row] and (user_before[users[row]] < k or item_before[items[row]] < k):
            alive[row] = False
            user_degree[users[row]] -= 1
            item_degree[items[row]] -= 1
            dropped = True
    return dropped


@njit(cache=True, nogil=True)
def _renumber(indices, alive, new):
    count = 0
    for row in range(len(indices)):
        if alive[row] and new[indices[row]] < 0:
            new[indices[row]] = count
            count += 1
    return count
