"""What a study has found so far, out of its run directories: study.json.

A variant's numbers are those of its runs that are done. It is compared with the baseline over the seeds that both have done
and over the users of their test split; the best one is chosen by its mean on validation, never by test.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.study.conclusions import conclude
from bm3_dgl.study.declare import Study, Variant
from bm3_dgl.study.runs import DONE, Run, metric_lines, status_of, summary_of
from bm3_dgl.study.statistics import OverUsers, as_json, holm, over_seeds, over_users

SCHEMA_VERSION = 1
_TEST = "paired permutation over users, Holm's correction"
Members = Sequence[tuple[Variant, Sequence[Run]]]


@dataclass
class Results:
    """Reads runs; remembers comparisons, since the runs of most variants are the same at the next call."""

    study: Study
    dataset: str
    code: str
    _compared: dict[tuple[str, ...], OverUsers | None] = field(default_factory=dict)

    def collect(self, members: Members) -> dict[str, Any]:
        """The content of study.json."""
        study, settings = self.study, self.study.settings
        variants = [self._variant(variant, runs) for variant, runs in members]
        self._compare(variants, members)
        content = {
            "schema_version": SCHEMA_VERSION,
            "name": settings.name,
            "title": settings.title,
            "question": settings.question,
            "metric": settings.metric,
            "base": study.baseline,
            "view": settings.view.name,
            "axes": [{"key": key, "values": list(values)} for key, values in study.axes.items()],
            "dataset": self.dataset,
            "code": self.code,
            "variants": variants,
            "chosen": choose(variants, settings.metric),
        }
        return content | {"conclusions": conclude(content)}

    def _variant(self, variant: Variant, runs: Sequence[Run]) -> dict[str, Any]:
        entries, summaries, costs = [], [], []
        for run in runs:
            status, error = status_of(run)
            directory = os.path.relpath(run.directory, self.study.directory)
            entries.append({"seed": run.seed, "dir": directory, "status": status, "error": error})
            summary = summary_of(run)
            if summary is not None:
                summaries.append(summary)
                costs.append(_costs(run, summary))
        return {
            "name": variant.name,
            "overrides": list(variant.overrides),
            "values": dict(variant.values),
            "ranks": variant.ranks,
            "runs": entries,
            "valid": _means([summary["valid"] for summary in summaries]),
            "test": _means([summary["test"] for summary in summaries]),
            "cost": _means(costs),
            "against_base": None,
        }

    def _compare(self, variants: Sequence[dict[str, Any]], members: Members) -> None:
        """Fill in against_base, and correct its p for the number of comparisons."""
        base = next(runs for variant, runs in members if variant.name == self.study.baseline)
        compared = []
        for entry, (variant, runs) in zip(variants, members, strict=True):
            if variant.name != self.study.baseline:
                entry["against_base"] = self._against(runs, base)
                compared += [entry["against_base"]] if entry["against_base"] is not None else []
        for against, p in zip(compared, holm([against["p"] for against in compared]), strict=True):
            against |= {"p_corrected": p, "comparisons": len(compared)}

    def _against(self, runs: Sequence[Run], base: Sequence[Run]) -> dict[str, Any] | None:
        """None as long as no seed is done in both, or where the two were not judged on the same users."""
        metric, done = self.study.settings.metric, {run.seed: run for run in base if status_of(run)[0] == DONE}
        pairs = [(run, done[run.seed]) for run in runs if run.seed in done and status_of(run)[0] == DONE]
        key = tuple(run.identity for pair in pairs for run in pair)
        if key not in self._compared:
            differences = user_differences([(run.directory, other.directory) for run, other in pairs], metric)
            self._compared[key] = None if differences is None else over_users(differences)
        numbers = self._compared[key]
        if numbers is None:
            return None
        summaries = [(summary_of(run), summary_of(other)) for run, other in pairs]
        by_seed = [mine["test"][metric] - theirs["test"][metric] for mine, theirs in summaries if mine and theirs]
        reference = statistics.fmean(theirs["test"][metric] for _, theirs in summaries if theirs)
        return {
            "metric": metric,
            "base": reference,
            "relative": numbers.difference / reference if reference else None,
            **(as_json(numbers) or {}),
            "seeds": [run.seed for run, _ in pairs],
            "seed_differences": by_seed,
            "test": _TEST,
        }


def user_differences(pairs: Sequence[tuple[Path, Path]], metric: str) -> np.ndarray | None:
    """float64 (U,): for each user the metric in the first runs minus that in the second, both averaged over the pairs.

    None where there is no pair, a run has no users_test.parquet, or they hold other users.
    """
    total, users = None, None
    for pair in pairs:
        tables = [_read_users(directory, metric) for directory in pair]
        if any(table is None for table in tables):
            return None
        (first_users, first), (second_users, second) = (table for table in tables if table is not None)
        users = first_users if users is None else users
        if not (np.array_equal(users, first_users) and np.array_equal(users, second_users)) or not len(users):
            return None
        total = first - second if total is None else total + first - second
    return None if total is None else total / len(pairs)


def choose(variants: Sequence[Mapping[str, Any]], metric: str) -> str | None:
    """Name of the variant with the best mean validation metric, the first of equal ones; of those with the most runs done."""
    most = max((variant["valid"][metric]["n"] for variant in variants if metric in variant["valid"]), default=0)
    whole = [variant for variant in variants if most and variant["valid"].get(metric, {"n": 0})["n"] == most]
    best = max(whole, key=lambda variant: variant["valid"][metric]["mean"], default=None)
    return best["name"] if best is not None else None


def _means(entries: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Name -> mean, std, low, high, n, of the values that are there."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    values = {name: [value for entry in entries if (value := entry.get(name)) is not None] for name in names}
    return {name: as_json(over_seeds(numbers)) for name, numbers in values.items() if numbers}


def _costs(run: Run, summary: Mapping[str, Any]) -> dict[str, float | None]:
    """total_seconds: start-up, epochs and evaluations, also of calls that were interrupted; without what these lost."""
    train, valid = ([line["seconds"] for line in metric_lines(run, event)] for event in ("train", "valid"))
    seconds = summary["seconds"]
    return {
        "train_epoch_seconds": statistics.median(train) if train else None,
        "evaluation_seconds": statistics.median(valid) if valid else None,
        "peak_pss_bytes": summary.get("memory", {}).get("peak_pss_bytes"),
        "best_epoch": summary.get("best_epoch"),
        "total_seconds": (seconds.get("startup") or 0.0) + sum(train) + sum(valid),
    }


def _read_users(directory: Path, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """User indices and the metric of each, float64."""
    try:
        table = pq.read_table(directory / "users_test.parquet", columns=["user", metric])
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return None
    return table["user"].to_numpy(), table[metric].to_numpy().astype(np.float64)
