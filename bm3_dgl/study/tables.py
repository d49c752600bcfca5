"""Every number of study.json as CSV files: tables/*.csv in the study's directory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bm3_dgl.study.runs import write_text

_MEANS = ("mean", "std", "low", "high", "n")
_AGAINST = ("metric", "base", "difference", "relative", "low", "high", "p", "p_corrected", "comparisons", "users")
Row = Sequence[Any]


def write_tables(directory: Path, content: Mapping[str, Any]) -> None:
    """content: that of study.json."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in tables(content).items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text(directory / f"{name}.csv", text.getvalue())


def tables(content: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Name -> rows, the first being the heading."""
    variants = content["variants"]
    found: dict[str, list[Row]] = {
        "metrics": [("variant", "split", "metric", *_MEANS), *_metric_rows(variants)],
        "cost": [("variant", "ranks", "cost", *_MEANS), *_cost_rows(variants)],
        "runs": [("variant", "seed", "status", "dir", "error"), *_run_rows(variants)],
        "against_base": [("variant", *_AGAINST, "seed_differences"), *_against_rows(variants)],
    }
    if len(content["axes"]) == 2:
        for split in ("valid", "test"):
            found[f"map_{split}"] = _map(content, split)
    return found


def _metric_rows(variants: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for variant in variants:
        for split in ("valid", "test"):
            for metric, numbers in variant[split].items():
                yield variant["name"], split, metric, *(numbers[key] for key in _MEANS)


def _cost_rows(variants: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for variant in variants:
        for name, numbers in variant["cost"].items():
            yield variant["name"], variant["ranks"], name, *(numbers[key] for key in _MEANS)


def _run_rows(variants: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for variant in variants:
        for run in variant["runs"]:
            yield variant["name"], run["seed"], run["status"], run["dir"], run["error"]


def _against_rows(variants: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for variant in variants:
        against = variant["against_base"]
        if against is not None:
            yield variant["name"], *(against[key] for key in _AGAINST), " ".join(map(repr, against["seed_differences"]))


def _map(content: Mapping[str, Any], split: str) -> list[Row]:
    """Means of the study's metric: a row for each value of the first key, a column for each of the second."""
    (first, second), metric = content["axes"], content["metric"]
    means = {
        (repr(variant["values"][first["key"]]), repr(variant["values"][second["key"]])): variant[split][metric]["mean"]
        for variant in content["variants"]
        if metric in variant[split]
    }
    rows: list[Row] = [(f"{first['key']} \\ {second['key']}", *second["values"])]
    for value in first["values"]:
        rows.append((value, *(means.get((repr(value), repr(other)), "") for other in second["values"])))
    return rows
