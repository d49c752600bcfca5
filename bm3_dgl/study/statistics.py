"""What numbers over seeds and over users can say. Pure numpy and scipy.

    over seeds   a few runs that differ in their random numbers: mean, standard deviation, Student's interval of the mean
    over users   thousands of users, each judged under both of two models: the mean of their differences d_u, with a
                 bootstrap interval and a permutation test. Under the hypothesis that the models are alike, exchanging them
                 for a user (the sign of d_u) changes nothing (Fisher, The Design of Experiments, 1935, section 21).

Both computations over users draw from the exact distribution without touching users one by one: users of one difference
are counted, and the number of them that a draw picks is multinomial, of those whose sign it flips binomial.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import special

LEVEL = 0.95  # of every interval
_DRAWS = 10_000  # least p: 1 / 10,001
_EXACT_USERS = 13  # up to so many users with a difference all 2^n signs are gone through, fewer than the draws
_BLOCK_CELLS = 1 << 22  # drawn numbers at once
_SEED = 20_230_430  # of the draws: the same numbers give the same result


@dataclass(frozen=True)
class OverSeeds:
    """mean of n runs; std with n - 1, low and high of the mean: None for one run, which tells nothing of its spread."""

    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class OverUsers:
    """Mean difference over users, the interval of it, and two-sided p of `no difference`."""

    difference: float
    low: float
    high: float
    p: float
    users: int


def over_seeds(values: Sequence[float]) -> OverSeeds | None:
    """Mean, standard deviation and Student's t interval; None where there is no value."""
    if not values:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    mean, n = float(numbers.mean()), len(numbers)
    if n == 1:
        return OverSeeds(mean, None, None, None, 1)
    std = float(numbers.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * std / n**0.5
    return OverSeeds(mean, std, mean - half, mean + half, n)


def over_users(differences: np.ndarray, *, seed: int = _SEED) -> OverUsers:
    """differences: float (U,), of a metric of each user under two models; U at least 1."""
    assert differences.ndim == 1 and len(differences), f"expected (U,), got {differences.shape}"
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    low, high = bootstrap_interval(values, counts, seed=seed)
    mean = float(counts @ values) / len(differences)  # in the order of the values, so that of users does not matter
    return OverUsers(mean, low, high, permutation_p(values, counts, seed=seed), len(differences))


def bootstrap_interval(values: np.ndarray, counts: np.ndarray, *, seed: int = _SEED) -> tuple[float, float]:
    """Percentile interval of the mean; values: distinct, float64 (V,); counts: int (V,), how often each is there."""
    random, users = np.random.default_rng(seed), int(counts.sum())
    block = max(1, _BLOCK_CELLS // len(values))
    means = [
        random.multinomial(users, counts / users, size=min(block, _DRAWS - start)) @ values / users
        for start in range(0, _DRAWS, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def permutation_p(values: np.ndarray, counts: np.ndarray, *, seed: int = _SEED) -> float:
    """Share of sign flips whose mean is at least as far from 0 as the observed; arguments as `bootstrap_interval`.

    All of them where there are few; otherwise 10,000 drawn ones beside the observed (Phipson and Smyth 2010), so p > 0.
    """
    observed = abs(float(counts @ values))
    sizes, place = np.unique(np.abs(values), return_inverse=True)
    counts = np.bincount(place, weights=counts).astype(np.int64)
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    if not len(sizes):
        return 1.0
    enough = observed - 1e-9 * float(counts @ sizes)  # equal sums may differ in their rounding
    if counts.sum() <= _EXACT_USERS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=int(counts.sum()))))
        return float((np.abs(signs @ np.repeat(sizes, counts)) >= enough).mean())
    random, extreme = np.random.default_rng(seed), 0
    block = max(1, _BLOCK_CELLS // len(sizes))
    for start in range(0, _DRAWS, block):
        kept = random.binomial(counts, 0.5, size=(min(block, _DRAWS - start), len(sizes)))
        extreme += int((np.abs((2 * kept - counts) @ sizes) >= enough).sum())
    return (extreme + 1) / (_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979), in the order given: at level a, all below a stand, with chance a of any false one at most."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [1.0] * len(order), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def as_json(numbers: OverSeeds | OverUsers | None) -> Mapping[str, float | int | None] | None:
    return None if numbers is None else asdict(numbers)
