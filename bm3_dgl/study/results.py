"""What a study has found so far, out of its run directories: study.json.

A variant's numbers are those of its runs that are done. It is compared with the baseline over the seeds that both have done
and over the users of their test split; the best one is chosen by its mean on validation, never by test.
"""

from __future__ import annotations

import itertools
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
from bm3_dgl.study.runs import DONE, PENDING, Run, metric_lines, status_of, summary_of
from bm3_dgl.study.statistics import OverUsers, as_json, holm, over_seeds, over_users

SCHEMA_VERSION = 1
_TEST = "paired permutation over users, Holm's correction"
_WHO = ("user", "train_items", "test_items")  # by which users are known to be the same
Members = Sequence[tuple[Variant, Sequence[Run]]]


class Incomparable(ValueError):
    """Why two variants cannot be compared."""


@dataclass
class Results:
    """Reads runs; remembers comparisons, since the runs of most variants are the same at the next call."""

    study: Study
    dataset: str
    code: str
    _compared: dict[tuple[str, ...], OverUsers] = field(default_factory=dict)

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
            "not_compared": None,
        }

    def _compare(self, variants: Sequence[dict[str, Any]], members: Members) -> None:
        """Fill in against_base, or not_compared with the reason, and correct p for the number of comparisons."""
        base = next(runs for variant, runs in members if variant.name == self.study.baseline)
        compared = []
        for entry, (variant, runs) in zip(variants, members, strict=True):
            if variant.name == self.study.baseline:
                continue
            try:
                entry["against_base"] = self._against(runs, base)
            except Incomparable as reason:
                entry["not_compared"] = str(reason)
            compared += [entry["against_base"]] if entry["against_base"] is not None else []
        for against, p in zip(compared, holm([against["p"] for against in compared]), strict=True):
            against |= {"p_corrected": p, "comparisons": len(compared)}

    def _against(self, runs: Sequence[Run], base: Sequence[Run]) -> dict[str, Any] | None:
        """None as long as that is to come, or where no run is done, which is said of the run. Raises Incomparable."""
        metric, done = self.study.settings.metric, {run.seed: run for run in base if status_of(run)[0] == DONE}
        mine = [run for run in runs if status_of(run)[0] == DONE]
        pairs = [(run, done[run.seed]) for run in mine if run.seed in done]
        if not pairs:
            if not mine or any(status_of(run)[0] == PENDING for run in (*runs, *base)):
                return None
            raise Incomparable("no seed is done in both" if done else f"no run of {self.study.baseline} is done")
        key = tuple(run.identity for pair in pairs for run in pair)
        if key not in self._compared:
            directories = [(run.directory, other.directory) for run, other in pairs]
            self._compared[key] = over_users(user_differences(directories, metric))
        numbers = self._compared[key]
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


def user_differences(pairs: Sequence[tuple[Path, Path]], metric: str) -> np.ndarray:
    """float64 (U,): for each user the metric in the first runs minus that in the second, both averaged over the pairs.

    pairs: at least one. Raises Incomparable where a run has no users_test.parquet, there is no user, or the runs' users are
    not the same: an index alone does not tell who it is, so the numbers of train and test items have to agree as well.
    """
    tables = [[_read_users(directory, metric) for directory in pair] for pair in pairs]
    users = tables[0][0][0]
    for table in itertools.chain.from_iterable(tables):
        if not np.array_equal(table[0][0], users[0]):
            raise Incomparable("they were judged on different users")
        if not np.array_equal(table[0], users):
            raise Incomparable("their users have different numbers of train or test items, so their datasets differ")
    if not users.size:
        raise Incomparable("the test split has no users")
    return np.mean([first - second for (_, first), (_, second) in tables], axis=0)


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
        "peak_pss_bytes": summary.get("memory", {}).get("peak_pss_bytes") or None,  # 0: nothing was trained, nobody looked
        "best_epoch": summary.get("best_epoch"),
        "total_seconds": (seconds.get("startup") or 0.0) + sum(train) + sum(valid),
    }


def _read_users(directory: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """int (3, U): index, train items and test items of each user; and its metric, float64 (U,)."""
    path = directory / "users_test.parquet"
    try:
        table = pq.read_table(path, columns=[*_WHO, metric])
    except FileNotFoundError:
        raise Incomparable(f"{path} is missing") from None
    except (pa.ArrowInvalid, KeyError):
        raise Incomparable(f"{path} is damaged, or lacks {', '.join(_WHO)} or {metric}") from None
    return np.stack([table[name].to_numpy() for name in _WHO]), table[metric].to_numpy().astype(np.float64)
