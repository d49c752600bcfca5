"""Who gains by a variant: averages over the seeds that all have done, and differences of the same users."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bm3_dgl.report import reach
from bm3_dgl.report.breakdown import Lists, gains_by_activity, gains_by_popularity, mean_over_seeds, same_users
from bm3_dgl.report.document import Points, Table, Text
from bm3_dgl.report.study import Study, Trial, Variant, shared_seeds

USERS, ITEMS = 300, 40


def lists(level: float, seed: int, *, users: int = USERS) -> Lists:
    """Users with one to three test interactions, each found with probability `level`."""
    shop, rng = np.random.default_rng(0), np.random.default_rng(seed)
    held = shop.integers(1, 4, USERS)
    pair_row = np.repeat(np.arange(USERS), held)
    pair_item = shop.integers(0, ITEMS, len(pair_row))
    hit = (rng.random(len(pair_row)) < level).astype(np.float64)
    recall = np.bincount(pair_row, weights=hit) / held
    trained = shop.integers(1, 20, USERS)
    popularity = shop.integers(0, 60, ITEMS)
    items = rng.integers(0, ITEMS, (USERS, 5))
    return Lists(5, np.arange(USERS) + USERS - users, trained, recall, items, pair_row, pair_item, hit, popularity)


def test_gains_by_activity_are_those_of_the_paired_test() -> None:
    base, other = lists(0.3, 1), lists(0.5, 2)
    gains = gains_by_activity(other, base)
    assert len(gains) > 3 and sum(gain.count for gain in gains) == USERS
    for gain in gains:
        low, _, high = gain.label.rstrip("+").partition("–")
        end = math.inf if gain.label.endswith("+") else int(high or low)
        inside = (base.train_items >= int(low)) & (base.train_items <= end)
        test = stats.ttest_rel(other.recall[inside], base.recall[inside])
        expected = test.confidence_interval(0.95)
        assert gain.difference == pytest.approx(np.mean(other.recall[inside] - base.recall[inside]))
        assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))


def test_test_interactions_of_one_user_are_no_draws_of_their_own() -> None:
    """Every interaction twice tells nothing more, so the intervals stay."""
    base, other = lists(0.3, 1), lists(0.5, 2)

    def twice(one: Lists) -> Lists:
        return replace(one, **{name: np.repeat(getattr(one, name), 2) for name in ("pair_row", "pair_item", "hit")})

    for once, doubled in zip(gains_by_popularity(other, base), gains_by_popularity(twice(other), twice(base)), strict=True):
        assert doubled.count == 2 * once.count
        assert (doubled.difference, doubled.low, doubled.high) == pytest.approx((once.difference, once.low, once.high))


def test_one_user_has_no_interval() -> None:
    (gain,) = gains_by_activity(*(replace(lists(level, 1), recall=np.ones(1), train_items=np.ones(1, int), users=np.ones(1))
                                  for level in (0.1, 0.9)))  # fmt: skip
    assert (gain.difference, gain.low, gain.high) == (0.0, None, None)


def test_the_mean_over_seeds() -> None:
    seeds = [lists(0.4, seed) for seed in (1, 2, 3)]
    mean = mean_over_seeds(seeds)
    assert mean.recall == pytest.approx((seeds[0].recall + seeds[1].recall + seeds[2].recall) / 3)
    assert mean.hit.mean() == pytest.approx(np.mean([one.hit.mean() for one in seeds]))
    assert not same_users(seeds[0], replace(seeds[0], users=seeds[0].users + 1))


def variant(name: str, **status: str) -> Variant:
    """Runs at seeds s1, s2, ... of that status; their directories are variant/seed."""
    trials = [Trial(int(seed[1:]), Path(name) / seed[1:], state, None) for seed, state in status.items()]
    return Variant(name, {}, [], 1, trials, {}, {}, {})


def study(*variants: Variant) -> Study:
    return Study(Path("s"), "s", "s", "", "recall@5", "full", "table", [], list(variants), None, [])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were read; recall is 0.2 for `full`, 0.5 for others."""
    seen: list[str] = []

    def read(run: Any) -> Lists:
        name, seed = run.directory.parts
        seen.append(f"{name}/{seed}")
        return lists(0.2 if name == "full" else 0.5, int(seed), users=7 if name == "strange" else USERS)

    monkeypatch.setattr(reach, "open_run", lambda directory: SimpleNamespace(directory=directory))
    monkeypatch.setattr(reach, "_lists", read)
    return seen


def test_variants_are_compared_over_the_seeds_that_all_have_done(opened: list[str]) -> None:
    made = study(
        variant("full", s1="done", s2="done", s3="done"),
        variant("less", s1="failed", s2="done", s3="done"),
        variant("none yet", s1="pending"),
    )
    assert shared_seeds(made.variants) == [2, 3]
    blocks = reach.variant_breakdowns(made, made.variants)
    assert sorted(opened) == ["full/2", "full/3", "less/2", "less/3"]
    assert any(isinstance(block, Text) and "the mean of the seeds 2, 3" in block.text for block in blocks)
    tables = {block.name: block for block in blocks if isinstance(block, Table)}
    gains = tables["gains_by_activity_bins"]
    assert list(gains.heads[2:]) == ["less", "less, low", "less, high"]
    base, other = (mean_over_seeds([lists(level, seed) for seed in (2, 3)]) for level in (0.2, 0.5))
    for row, expected in zip(gains.rows, gains_by_activity(other, base), strict=True):
        assert [cell.value for cell in row[1:]] == [expected.count, expected.difference, expected.low, expected.high]


def test_curves_are_of_one_seed_and_maps_of_the_run_that_was_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(variant("full", s1="done", s2="done"), variant("less", s1="failed", s2="done"))
    monkeypatch.setattr("bm3_dgl.report.study.open_run", lambda directory: Trial(None, directory, "", None))
    monkeypatch.setattr("bm3_dgl.report.study.replace", lambda run, name: run)
    for seeds, expected in ((shared_seeds(made.variants), ["full/2", "less/2"]), ([], ["full/1", "less/2"])):
        assert [str(run.directory) for run in made.runs(made.variants, seeds)[0]] == expected


def test_what_does_not_compare_is_said(opened: list[str]) -> None:
    made = study(variant("full", s1="done"), variant("less", s2="done"))
    (note,) = reach.variant_breakdowns(made, made.variants)
    assert isinstance(note, Points) and "No seed is done in every variant" in note.lines[0] and not opened
    made = study(variant("full", s1="done"), variant("strange", s1="done"))
    note, text, *_ = reach.variant_breakdowns(made, made.variants)
    assert isinstance(note, Points) and note.lines == ["strange: judged on other users or another dataset, so left out here"]
    assert (
        isinstance(text, Text)
        and "one seed, 1" in text.text
        and "Differences" not in text.text
        and "of each variant alone" in text.text
    )
