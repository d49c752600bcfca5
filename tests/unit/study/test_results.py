"""What is made of finished runs: the choice by validation alone, comparisons over users, sentences, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from bm3_dgl.config import load_config
from bm3_dgl.study.conclusions import conclude
from bm3_dgl.study.declare import load_study
from bm3_dgl.study.results import Incomparable, Results, choose, user_differences
from bm3_dgl.study.runs import FAILED, Run, make_run, note
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


def write_users(directory: Path, users: list[int], values: np.ndarray, **counts: list[int]) -> Path:
    directory.mkdir()
    who = {"user": users, "train_items": [5] * len(users), "test_items": [1] * len(users)} | counts
    table = pa.table({name: pa.array(column, pa.int32()) for name, column in who.items()})
    table = table.append_column("recall@20", pa.array(values, pa.float32()))
    pq.write_table(table, directory / "users_test.parquet")
    return directory


def test_differences_of_users_are_paired_and_averaged_over_seeds(tmp_path: Path) -> None:
    random, users = np.random.default_rng(1), [0, 2, 5, 9]
    values = {name: random.random(4).astype(np.float32) for name in ("a1", "a2", "b1", "b2")}
    paths = {name: write_users(tmp_path / name, users, numbers) for name, numbers in values.items()}
    found = user_differences([(paths["a1"], paths["b1"]), (paths["a2"], paths["b2"])], "recall@20")
    naive = [np.mean([values["a1"][u], values["a2"][u]]) - np.mean([values["b1"][u], values["b2"][u]]) for u in range(4)]
    assert found == pytest.approx(np.array(naive), abs=1e-6)
    assert stats.ttest_1samp(np.array(naive), 0).pvalue > 0  # the pairing that scipy's test would take


def test_other_users_are_not_compared(tmp_path: Path) -> None:
    values, users = np.zeros(4), [0, 2, 5, 9]
    base = write_users(tmp_path / "base", users, values)
    others = {
        "different users": write_users(tmp_path / "a", [0, 2, 5, 8], values),
        "numbers of train or test items": write_users(tmp_path / "b", users, values, train_items=[5, 5, 5, 4]),
        "train or test items, so their datasets differ": write_users(tmp_path / "c", users, values, test_items=[1, 1, 1, 2]),
        r"none/users_test\.parquet is missing": tmp_path / "none",
    }
    for reason, other in others.items():
        with pytest.raises(Incomparable, match=reason):
            user_differences([(other, base)], "recall@20")
        with pytest.raises(Incomparable, match=reason):
            user_differences([(base, base), (base, other)], "recall@20")
    with pytest.raises(Incomparable, match=r"users_test\.parquet is damaged, or lacks .* or ndcg@20"):
        user_differences([(base, base)], "ndcg@20")
    nobody = write_users(tmp_path / "nobody", [], np.zeros(0))
    with pytest.raises(Incomparable, match="no users"):
        user_differences([(nobody, nobody)], "recall@20")


def finished(directory: Path, summary: dict[str, Any]) -> Run:
    directory.mkdir(exist_ok=True)
    (directory / "summary.json").write_text(json.dumps({"valid": {"recall@20": 0.1}, "test": {"recall@20": 0.1}} | summary))
    return run_in(directory)


def run_in(directory: Path, seed: int = 1) -> Run:
    return make_run("v", seed, directory.name, load_config(None, []), ranks=1, runs_dir=str(directory.parent))


def collected(directory: Path, base: Run, other: Run) -> dict[str, Any]:
    (directory / "base.yaml").write_text("train: {epochs: 3}\n")
    (directory / "study.yaml").write_text("base: base.yaml\nvariants: {full: [], small: [model.embedding_dim=8]}\n")
    study = load_study(str(directory / "study.yaml"), [f"study.dir={directory}"])
    members = [(variant, [run]) for variant, run in zip(study.variants, (base, other), strict=True)]
    return Results(study, "d", "c").collect(members)


def test_a_comparison_that_cannot_be_made_is_told_with_its_reason(tmp_path: Path) -> None:
    base, other = (finished(tmp_path / name, {"seconds": {}}) for name in ("base", "other"))
    (sentence,) = collected(tmp_path, base, other)["conclusions"]
    assert sentence == f"small could not be compared with full: {other.directory}/users_test.parquet is missing."
    failed = run_in(tmp_path / "broken")
    failed.directory.mkdir()
    note(failed, FAILED, "out of memory")
    found = collected(tmp_path, failed, other)["conclusions"]
    assert found == ["small could not be compared with full: no run of full is done.", "Failed: full, seed 1: out of memory"]
    assert collected(tmp_path, base, failed)["conclusions"] == ["Failed: small, seed 1: out of memory"]
    to_come = collected(tmp_path, run_in(tmp_path / "to_come"), other)["conclusions"]
    assert to_come == ["Not all is done: 1 runs are still to come."]


def test_a_peak_that_nobody_looked_at_is_no_value(tmp_path: Path) -> None:
    popularity = finished(tmp_path / "popularity", {"seconds": {}, "memory": {"peak_pss_bytes": 0}})
    trained = finished(tmp_path / "trained", {"seconds": {}, "memory": {"peak_pss_bytes": 2**30}})
    costs = [entry["cost"] for entry in collected(tmp_path, trained, popularity)["variants"]]
    assert costs[0]["peak_pss_bytes"]["mean"] == 2**30
    assert "peak_pss_bytes" not in costs[1]


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


def test_many_that_do_not_differ_are_told_at_once() -> None:
    same = [variant(f"v{n}", 0.08, 0.0868, against_base=against(n / 1000, 0.9 - n / 10, [n / 1000])) for n in range(1, 6)]
    worse = variant("worse", 0.07, 0.06, against_base=against(-0.03, 0.0003, [-0.03]))
    said = conclude(study([variant("full", 0.086, 0.0868), *same, worse]))
    assert said[0] == (
        "5 variants: no difference in test Recall@20 from full could be shown (differences +0.0010 to"
        " +0.0050; their intervals over users within +0.0000 to +0.0060; smallest p = 0.400, corrected for 3 comparisons);"
        " one seed, so how far seeds differ is not known."
    )
    assert len(said) == 2 and said[1].startswith("worse: test Recall@20 is lower")
    assert len(conclude(study([variant("full", 0.086, 0.0868), *same[1:], worse]))) == 5


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


def test_a_study_of_cost_states_no_quality() -> None:
    worse = variant("fast", 0.08, 0.08, against_base=against(-0.0036, 0.0003, [-0.0036]))
    axes = [{"key": "ranks", "values": [1, 2]}]
    assert conclude(study([variant("full", 0.086, 0.0868), worse], view="cost", axes=axes)) == []


def test_a_grid_of_three_keys_has_a_best_one() -> None:
    axes = [{"key": key, "values": [1, 2]} for key in ("a", "b", "c")]
    variants = [variant("full", 0.086, 0.0868), variant("best", 0.09, 0.09)]
    assert conclude(study(variants, axes=axes))[0].startswith("Best on validation: best, Recall@20 0.0900")
    assert conclude(study(variants)) == []  # named variants are no choice


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
