"""Files that a report reads, as other jobs write them: users_test.parquet of a run, and a study's directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.data.dataset import open_dataset
from bm3_dgl.types import Split

CUTOFFS = (10, 20)


def write_users(run_dir: Path, data_dir: Path) -> None:
    """users_test.parquet out of recommendations.parquet, one user after another."""
    dataset = open_dataset(data_dir)
    place_of_user = {raw: index for index, raw in enumerate(dataset.raw_user_ids())}
    place_of_item = {raw: index for index, raw in enumerate(dataset.raw_item_ids())}
    listed: dict[int, list[int]] = {}
    for row in pq.read_table(run_dir / "recommendations.parquet").to_pylist():
        listed.setdefault(place_of_user[row["user_id"]], []).append(place_of_item[row["item_id"]])
    trained, held = (_by_user(dataset.interactions(split)) for split in (Split.train, Split.test))
    users = [user for user in sorted(held) if user in trained]
    columns: dict[str, Any] = {
        "user": pa.array(users, pa.int32()),
        "train_items": pa.array([len(trained[user]) for user in users], pa.int32()),
        "test_items": pa.array([len(held[user]) for user in users], pa.int32()),
    }
    lists = {user: (listed.get(user, []) + [-1] * max(CUTOFFS))[: max(CUTOFFS)] for user in users}
    for k in CUTOFFS:
        hits = {user: [item in held[user] for item in lists[user][:k]] for user in users}
        columns[f"recall@{k}"] = pa.array([sum(hits[user]) / len(held[user]) for user in users], pa.float32())
        gains = [sum(hit / np.log2(place + 2) for place, hit in enumerate(hits[user])) for user in users]
        ideal = [sum(1 / np.log2(place + 2) for place in range(min(k, len(held[user])))) for user in users]
        columns[f"ndcg@{k}"] = pa.array([gain / most for gain, most in zip(gains, ideal, strict=True)], pa.float32())
    flat = pa.array([item for user in users for item in lists[user]], pa.int32())
    columns["items"] = pa.FixedSizeListArray.from_arrays(flat, max(CUTOFFS))
    pq.write_table(pa.table(columns), run_dir / "users_test.parquet")


def write_study(
    directory: Path, runs: Sequence[Path], *, view: str, axes: Sequence[dict[str, Any]] = (), values: Sequence[dict] = ()
) -> Path:
    """A study of variants v0, v1, ...: `runs` as those that were done (again from the first where there are more variants),
    metrics made up. values: settings of each variant; without it a variant per run."""
    values = values or [{"data.modalities": [f"m{number}"]} for number in range(len(runs))]
    variants = []
    for number, settings in enumerate(values):
        identity = f"runs/{number:02d}"
        target = directory / identity
        shutil.copytree(runs[number % len(runs)], target, ignore=shutil.ignore_patterns("report*"))
        trials: list[dict[str, Any]] = [{"seed": 1, "dir": identity, "status": "done", "error": None}]
        if number == 1:
            trials.append(
                {"seed": 2, "dir": f"runs/{number:02d}-2", "status": "failed", "error": "the loss is <no> longer finite"}
            )
            trials.append({"seed": 3, "dir": f"runs/{number:02d}-3", "status": "pending", "error": None})
        variants.append(_variant(f"v{number}", settings, trials, 0.05 + 0.01 * ((number * 7) % 11) / 10, number))
    best = max(variants, key=lambda variant: variant["valid"]["recall@20"]["mean"])
    content = {
        "schema_version": 1, "name": "made_up", "title": "A made-up study", "question": "Does it matter?",
        "metric": "recall@20", "base": "v0", "view": view, "axes": list(axes), "dataset": "d", "code": "c",
        "variants": variants, "chosen": best["name"], "conclusions": [f"{best['name']} is the best on validation."],
    }  # fmt: skip
    (directory / "study.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def _variant(name: str, settings: dict, trials: list[dict], level: float, number: int) -> dict[str, Any]:
    def stat(mean: float) -> dict[str, float]:
        return {"mean": mean, "std": 0.001, "low": mean - 0.002, "high": mean + 0.002, "n": 3}

    against = {
        "metric": "recall@20", "difference": 0.001 * number, "relative": 0.02 * number, "low": -0.001, "high": 0.003,
        "p": 0.04, "p_corrected": 0.08, "users": 2000, "test": "paired permutation",
    }  # fmt: skip
    return {
        "name": name, "overrides": [f"{key}={value}" for key, value in settings.items()], "values": settings, "ranks": 1,
        "runs": trials, "valid": {"recall@20": stat(level), "ndcg@20": stat(level / 2)},
        "test": {"recall@20": stat(level - 0.001), "ndcg@20": stat(level / 2 - 0.001)},
        "cost": {"train_epoch_seconds": stat(1.0 + number / 10), "evaluation_seconds": stat(0.1), "best_epoch": stat(12.0),
                 "peak_pss_bytes": stat(6e8 + 1e7 * number), "total_seconds": stat(60.0)},
        "against_base": against if number else None,
    }  # fmt: skip


def _by_user(pairs: tuple[np.ndarray, np.ndarray]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for user, item in zip(*(column.tolist() for column in pairs), strict=True):
        found.setdefault(user, set()).add(item)
    return found
