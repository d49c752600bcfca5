"""What is made of finished runs: the choice by validation alone, comparisons over users, sentences, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from bm3_dgl.study.conclusions import conclude
from bm3_dgl.study.results import choose, user_differences
from bm3_dgl.study.tables import tables


def means(value: float, n: int = 3) -> dict[str, Any]:
    return {"recall@20": {"mean": value, "std": 0.001, "low": value - 0.002, "high": value + 0.002, "n": n}}


def variant(name: str, valid: float, test: float, n: int = 3, **extra: Any) -> dict[str, Any]:
    runs = [{"seed": seed, "dir": f"../runs/{name}{seed}", "status": "done", "error": None} for seed in range(1, n + 1)]
    empty = {"overrides": [], "values": {}, "ranks": 1, "runs": runs, "cost": {}, "against_base": None}
    return {"name": name, "valid": means(valid, n), "test": means(test, n)} | empty | extra


def against(difference: float, p: float, seeds: list[float]) -> dict[str, Any]:
    return {
        "metric": "recall@20",
        "base": 0.0868,
        "difference": difference,
        "relative": difference / 0.0868,
        "low": difference - 0.001,
        "high": difference + 0.001,
        "p": p / 3,
        "p_corrected": p,
        "comparisons": 3,
        "users": 19000,
        "seed_differences": seeds,
    }


def study(variants: list[dict[str, Any]], view: str = "table", **extra: Any) -> dict[str, Any]:
    chosen = choose(variants, "recall@20")
    return {"variants": variants, "metric": "recall@20", "base": "full", "view": view, "chosen": chosen, "axes": []} | extra


def test_the_choice_is_by_validation_never_by_test() -> None:
    variants = [variant("a", 0.10, 0.30), variant("b", 0.12, 0.10), variant("c", 0.11, 0.90)]
    assert choose(variants, "recall@20") == "b"
    for entry, test in zip(variants, (0.9, 0.0, 0.1), strict=True):
        entry["test"] = means(test)
    assert choose(variants, "recall@20") == "b"
    variants[1]["valid"] = means(0.09)
    assert choose(variants, "recall@20") == "c"


def test_a_variant_with_fewer_runs_is_not_chosen() -> None:
    assert choose([variant("a", 0.10, 0.1), variant("lucky", 0.2, 0.2, n=1)], "recall@20") == "a"
    assert choose([variant("a", 0.1, 0.1) | {"valid": {}}], "recall@20") is None


def write_users(directory: Path, users: list[int], values: np.ndarray) -> Path:
    directory.mkdir()
    table = pa.table({"user": pa.array(users, pa.int32()), "recall@20": pa.array(values, pa.float32())})
    pq.write_table(table, directory / "users_test.parquet")
    return directory


def test_differences_of_users_are_paired_and_averaged_over_seeds(tmp_path: Path) -> None:
    random, users = np.random.default_rng(1), [0, 2, 5, 9]
    values = {name: random.random(4).astype(np.float32) for name in ("a1", "a2", "b1", "b2")}
    paths = {name: write_users(tmp_path / name, users, numbers) for name, numbers in values.items()}
    found = user_differences([(paths["a1"], paths["b1"]), (paths["a2"], paths["b2"])], "recall@20")
    naive = [np.mean([values["a1"][u], values["a2"][u]]) - np.mean([values["b1"][u], values["b2"][u]]) for u in range(4)]
    assert found == pytest.approx(np.array(naive), abs=1e-6)
    other = write_users(tmp_path / "other", [0, 2, 5, 8], values["a1"])
    assert user_differences([(other, paths["b1"])], "recall@20") is None
    assert user_differences([(tmp_path / "none", paths["b1"])], "recall@20") is None
    assert user_differences([], "recall@20") is None
    assert stats.ttest_1samp(np.array(naive), 0).pvalue > 0  # the pairing that scipy's test would take


def test_a_difference_that_is_shown() -> None:
    worse = variant("without visual", 0.08, 0.0832, against_base=against(-0.0036, 0.0003, [-0.003, -0.004, -0.0038]))
    (sentence,) = conclude(study([variant("full", 0.086, 0.0868), worse]))
    assert sentence == (
        "without visual: test Recall@20 is lower by 4.1% than with full (0.0832 against 0.0868; interval of the difference"
        " over users -0.0046 to -0.0026; p < 0.001, corrected for 3 comparisons); the 3 seeds agree in direction."
    )


@pytest.mark.parametrize(
    ("p", "seeds", "words"),
    [
        (0.2, [0.002, 0.003, 0.001], "the 3 seeds agree in direction"),
        (0.001, [0.002, -0.003, 0.007], "the 3 seeds do not all agree"),
    ],
)
def test_what_may_be_chance_is_not_called_a_difference(p: float, seeds: list[float], words: str) -> None:
    better = variant("other", 0.09, 0.0888, against_base=against(0.002, p, seeds))
    (sentence,) = conclude(study([variant("full", 0.086, 0.0868), better]))
    assert sentence.startswith("other: no difference in test Recall@20 from full could be shown (0.0888 against 0.0868;")
    assert words in sentence


def test_one_seed_is_said_to_be_one() -> None:
    worse = variant("b", 0.08, 0.08, against_base=against(-0.0036, 0.0003, [-0.0036]))
    assert conclude(study([variant("full", 0.086, 0.0868), worse]))[0].endswith(
        "one seed, so how far seeds differ is not known."
    )


def test_what_is_missing_is_said() -> None:
    broken = variant("b", 0.08, 0.08)
    broken["runs"][0] |= {"status": "failed", "error": "out of memory"}
    broken["runs"][1] |= {"status": "pending"}
    said = conclude(study([variant("full", 0.086, 0.0868), broken], view="lines"))
    assert said[0] == "Best on validation: full, which is the base itself, Recall@20 0.0860; its test value is 0.0868."
    assert said[1:] == ["Failed: b, seed 1: out of memory", "Not all is done: 1 runs are still to come."]


def test_costs_are_compared() -> None:
    def cost(seconds: float, size: float) -> dict[str, Any]:
        return {"train_epoch_seconds": {"mean": seconds}, "peak_pss_bytes": {"mean": size}}

    variants = [variant("full", 0.1, 0.1, cost=cost(2.0, 2**30)), variant("fast", 0.1, 0.1, cost=cost(0.5, 2**29))]
    expected = "an epoch takes 0.5 s against 2 s (0.25 times), memory peaks at 512 MiB against 1,024 MiB (0.50 times)"
    assert expected in conclude(study(variants, view="cost"))[0]


def test_a_map_has_a_row_and_a_column_for_each_value() -> None:
    variants = [
        variant(f"{a}{b}", a + b, 0.0, values={"model.dropout": a, "model.reg_weight": b})
        for a in (0.1, 0.2)
        for b in (1.0, 2.0)
    ]
    axes = [{"key": "model.dropout", "values": [0.1, 0.2]}, {"key": "model.reg_weight", "values": [1.0, 2.0]}]
    found = tables(study(variants, axes=axes))
    assert found["map_valid"] == [("model.dropout \\ model.reg_weight", 1.0, 2.0), (0.1, 1.1, 2.1), (0.2, 1.2, 2.2)]
    assert len(found["metrics"]) == 1 + 4 * 2 and len(found["runs"]) == 1 + 4 * 3
