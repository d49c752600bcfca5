"""The statistics against scipy, against naive loops, and against what they promise on simulated data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from bm3_dgl.study.statistics import bootstrap_interval, holm, over_seeds, over_users, permutation_p


def counted(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(differences, return_counts=True)


def test_over_seeds_is_scipys_interval() -> None:
    values = [0.0841, 0.0832, 0.0850]
    found = over_seeds(values)
    assert found is not None
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-12)
    assert (found.low, found.high, found.n) == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12), 3)


def test_one_seed_has_no_spread_and_none_has_nothing() -> None:
    found = over_seeds([0.5])
    assert found is not None
    assert (found.mean, found.std, found.low, found.high, found.n) == (0.5, None, None, None, 1)
    assert over_seeds([]) is None


def test_the_interval_over_seeds_holds_the_mean_in_95_of_100_cases() -> None:
    random, hits = np.random.default_rng(1), 0
    for _ in range(2000):
        found = over_seeds(list(random.normal(3.0, 2.0, size=3)))
        assert found is not None and found.low is not None and found.high is not None
        hits += found.low <= 3.0 <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_few_users_go_through_every_sign(seed: int) -> None:
    """A naive loop over all signs, ties and zeros among the differences."""
    differences = np.random.default_rng(seed).integers(-3, 4, size=9) / 4
    means = [abs(np.mean(differences * signs)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean([mean >= abs(differences.mean()) - 1e-12 for mean in means])
    assert permutation_p(*counted(differences)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("shift", "seed"), [(0.0, 1), (0.02, 2), (0.05, 3)])
def test_many_users_agree_with_scipys_permutation_test(shift: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    differences = np.where(random.random(400) < 0.7, 0.0, random.normal(shift * 3, 0.3, 400))

    def mean(first: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean(first, axis=axis)

    expected = stats.permutation_test(
        (differences,), mean, permutation_type="samples", n_resamples=20_000, alternative="two-sided", vectorized=True, rng=0
    ).pvalue
    assert permutation_p(*counted(differences)) == pytest.approx(expected, abs=0.015)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    random = np.random.default_rng(4)
    p_values = [over_users(random.choice([-1.0, -0.5, 0.0, 0.5, 1.0], size=300)).p for _ in range(300)]
    for level in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.075)


def test_a_difference_that_is_there_is_found_and_p_is_never_0() -> None:
    found = over_users(np.random.default_rng(5).normal(0.1, 0.3, size=2000))
    assert found.p == 1 / 10_001
    assert found.low > 0 and found.users == 2000
    assert over_users(np.zeros(10)).p == 1.0


def test_the_bootstrap_interval_is_the_naive_one() -> None:
    random = np.random.default_rng(6)
    differences = random.choice([0.0, 0.25, -0.5, 1.0], size=500, p=[0.7, 0.15, 0.1, 0.05])
    naive = [random.choice(differences, size=500).mean() for _ in range(4000)]
    assert bootstrap_interval(*counted(differences)) == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.003)


def test_the_bootstrap_interval_holds_the_mean_in_95_of_100_cases() -> None:
    random, hits = np.random.default_rng(7), 0
    for _ in range(400):
        low, high = bootstrap_interval(*counted(random.choice([0.0, 0.5, -0.25], size=400, p=[0.6, 0.2, 0.2])))
        hits += low <= 0.05 <= high
    assert hits / 400 == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04, but not below the one before
        ([0.9, 0.001, 0.5], [1.0, 0.003, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p_values: list[float], expected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(expected)


def test_holm_keeps_false_findings_below_its_level() -> None:
    random = np.random.default_rng(8)
    found = [min(holm(list(random.random(6)))) < 0.05 for _ in range(4000)]
    assert np.mean(found) <= 0.06


def test_the_same_numbers_give_the_same_result() -> None:
    differences = np.random.default_rng(9).normal(size=100)
    assert over_users(differences) == over_users(differences[::-1].copy())
