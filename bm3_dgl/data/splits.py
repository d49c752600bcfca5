"""Which interactions are held out: per user by chance or by time, for all users at once by time, or as the source says.

Out: an order of the rows, user by user, and the split of each. Within a user train rows come first, then valid, then test.
"""

from __future__ import annotations

# mypy: disallow-untyped-defs=False
import numpy as np
from numba import njit, uint64

from bm3_dgl.config.schema import SplitMethod
from bm3_dgl.runtime.random import derive, mix
from bm3_dgl.types import Split

_FEW = 10  # a user with fewer interactions has one valid and one test row
_LEAST = 3  # one of each split; a user with fewer has train rows only
_BOUNDARIES = (80, 90)  # per cent of all interactions before valid and before test, by global time
_VALID, _TEST = int(Split.valid), int(Split.test)  # plain numbers, as compiled code takes them


def split_rows(
    users: np.ndarray, rows: np.ndarray, decisive: np.ndarray | None, *, num_users: int, method: SplitMethod, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order the kept rows by user and say in which split each is.

    users: int32 (m,), of each kept row in the order of the source; rows: int (m,), its row in the source; decisive: of all
    source rows, times int64, or for `given` splits int8. Returns order: positions in 0..m-1, and split: int8 (m,) in that
    order.

    - random: by a hash of seed, user and the how-manieth row of the user it is;
    - time: a user's rows by time, equal times in the order of the source;
    - global_time: valid from the time that 80 % of all rows are before, test from 90 %; equal times stay together;
    - given: as the source says.
    """
    assert decisive is not None or method is SplitMethod.random, f"{method.name} needs times or splits"
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(users, minlength=num_users))])
    order = np.empty(len(users), np.int32 if len(users) < 2**31 else np.int64)
    _group(users, starts[:-1].copy(), order)
    split = np.zeros(len(users), np.int8)
    if decisive is None or method is SplitMethod.random:
        _shuffle(starts, order, np.uint64(derive(seed, "split")))
        _per_user(starts, split)
        return order, split
    _sort_each_user(starts, order, rows, decisive)
    if method is SplitMethod.given:
        split = decisive[rows[order]]
    elif method is SplitMethod.global_time:
        _by_boundaries(order, rows, decisive, *_boundaries(decisive[rows]), split)
    else:
        _per_user(starts, split)
    return order, split


def held_out(count: int) -> tuple[int, int]:
    """Valid and test rows of a user with `count` interactions."""
    if count < _LEAST:
        return 0, 0
    if count < _FEW:
        return 1, 1
    held = count // 5
    return held // 2, held - held // 2


def _boundaries(times: np.ndarray) -> tuple[int, int]:
    """The times at which valid and test begin. times: int64 (m,)."""
    first, second = (len(times) * share // 100 for share in _BOUNDARIES)
    parted = np.partition(times, (first, second))
    return int(parted[first]), int(parted[second])


_held_out = njit(cache=True)(held_out)


@njit(cache=True, nogil=True)
def _group(users, places, order):
    """Positions by user, in the order of the source within a user. places: where each user's begin; moved on."""
    for position in range(len(users)):
        user = users[position]
        order[places[user]] = position
        places[user] += 1


@njit(cache=True, nogil=True)
def _shuffle(starts, order, key):
    for user in range(len(starts) - 1):
        begin, end = starts[user], starts[user + 1]
        keys = np.empty(end - begin, np.uint64)
        own = mix(key + uint64(user))
        for step in range(end - begin):
            keys[step] = mix(own + uint64(step))
        order[begin:end] = order[begin:end][np.argsort(keys, kind="mergesort")]


@njit(cache=True, nogil=True)
def _sort_each_user(starts, order, rows, decisive):
    for user in range(len(starts) - 1):
        begin, end = starts[user], starts[user + 1]
        keys = np.empty(end - begin, np.int64)
        for step in range(end - begin):
            keys[step] = decisive[rows[order[begin + step]]]
        order[begin:end] = order[begin:end][np.argsort(keys, kind="mergesort")]


@njit(cache=True, nogil=True)
def _per_user(starts, split):
    for user in range(len(starts) - 1):
        end = starts[user + 1]
        valid, test = _held_out(end - starts[user])
        split[end - valid - test : end - test] = _VALID
        split[end - test : end] = _TEST


@njit(cache=True, nogil=True)
def _by_boundaries(order, rows, times, first, second, split):
    for place in range(len(order)):
        time = times[rows[order[place]]]
        split[place] = _TEST if time >= second else (_VALID if time >= first else 0)
