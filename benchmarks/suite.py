"""Everything that `make bench` measures, in turn, into one dictionary (benchmarks/results/latest.json).

The transcription and the job take turns within a round, and rounds repeat, so that a slow minute of the machine falls on
both. What fails is named in `failures`, and what depends on it is null.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import baby, cost, electronics, growth, job, ranking
from benchmarks.ceiling import Ceiling
from benchmarks.processes import CommandFailedError, run
from bm3_dgl.data.dataset import open_dataset
from bm3_dgl.errors import JobError
from bm3_dgl.types import Split

T = TypeVar("T")
MAIN, NONE = "residual", "none"
# How features enter -> the job's settings. `bfloat16` stores what edges and the head read in half the bytes.
FEATURES = {
    MAIN: ["model.features=residual"],
    "residual, bfloat16": ["model.features=residual", "train.precision=bfloat16"],
    "fixed": ["model.features=fixed"],
    "trainable": ["model.features=trainable"],
    NONE: ["data.modalities=[]"],
}
PRIMARY = ((MAIN, 8192, 2), (MAIN, 8192, 1), (MAIN, 2048, 2), (NONE, 8192, 2))  # features, global batch, ranks
OTHERS = (
    *((MAIN, 2048, 1), (NONE, 2048, 2), (NONE, 8192, 1), (NONE, 2048, 1), ("residual, bfloat16", 8192, 2)),
    *((features, batch, ranks) for features in ("fixed", "trainable") for batch in (8192, 2048) for ranks in (2, 1)),
)
FANOUTS = ((10, 10), (25, 25))


@dataclass(frozen=True)
class Plan:
    """How much is measured. scale: of the Electronics dataset. steps: enough that nearly all feature rows have been read,
    which then count as memory; few_steps: of all trials but the headline's. epochs: the most of the transcription's time to
    accuracy."""

    scale: float = 1
    rounds: int = 2
    steps: int = 60
    few_steps: int = 15
    peer_steps: int = 5
    others: Sequence[tuple[str, int, int]] = OTHERS
    fanouts: Sequence[tuple[int, int]] = FANOUTS
    growth_scales: Sequence[float] = (1, 3, 10)
    growth_steps: int = 10
    ranking_users: int = electronics.USERS
    epochs: int = 1000
    limit_seconds: float = 420

    @classmethod
    def quick(cls) -> Plan:
        """A tenth of the size, once: whether everything runs, and roughly how it stands."""
        return cls(0.1, 1, 20, 10, 3, (), FANOUTS[:1], (0.1, 0.3), 6, 20_000, 12, 60)


@dataclass
class Suite:
    """One run of the whole. results fills up as it goes."""

    plan: Plan
    work: Path
    baby_source: Path | None
    results: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _peers: dict[bool, list[dict]] = field(default_factory=lambda: {True: [], False: []})
    _trials: dict[tuple[str, int, int], list[job.Trial]] = field(default_factory=dict)
    _ceilings: list[Ceiling] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        data = self._dataset()
        for number in range(self.plan.rounds):
            self._round(data, number)
        self._gather(data)
        self._sampled(data)
        self._attempt("evaluation", lambda: job.evaluation_seconds(data, self.work, ranks=2))
        self._attempt("ranking", self._ranking)
        self._attempt("growth", lambda: growth.measure(self.work, self.plan.growth_scales, steps=self.plan.growth_steps))
        limits: dict[str, Any] = {
            "limit_seconds": self.plan.limit_seconds,
            "epochs": self.plan.epochs,
            "quick": self.plan.rounds == 1,
        }
        self._attempt("baby", lambda: baby.measure(self.baby_source, self.work, **limits))
        self.results |= {"seconds": time.monotonic() - self._began, "failures": self.failures}
        self.results |= headline(self.results)
        return self.results

    def _dataset(self) -> Path:
        """Made anew, so that its time is known."""
        self._say("dataset")
        shutil.rmtree(electronics.dataset_directory(self.work, self.plan.scale), ignore_errors=True)
        began = time.monotonic()
        data = electronics.ensure_dataset(self.work, scale=self.plan.scale)
        prepare = time.monotonic() - began
        counts = open_dataset(data).manifest["counts"]
        self.results["data"] = {"scale": self.plan.scale, **counts, "prepare_seconds": prepare}
        self.results["data"]["partition_seconds"] = job.partition(data, self.work)
        return data

    def _round(self, data: Path, number: int) -> None:
        """The transcription before every other trial of the first two, with and without features."""
        found = self._try("ceiling", lambda: run([sys.executable, "-m", "benchmarks.ceiling"], log=self._log("ceiling")))
        if found is not None:
            known = json.loads(found.output)
            self._ceilings.append(Ceiling(**{name: known[name] for name in Ceiling.__dataclass_fields__}))
        for place, key in enumerate([*PRIMARY, *(self.plan.others if number == 0 else ())]):
            if place in (0, 2):
                self._peer(data, features=place == 0, evaluate=number == 0 and place == 2)
            self._trial(data, key)

    def _peer(self, data: Path, *, features: bool, evaluate: bool) -> None:
        options = [] if features else ["--no-features"]
        options += ["--evaluate"] if evaluate else []
        command = [sys.executable, "-m", "benchmarks.transcription", "--data", str(data), "--steps", str(self.plan.peer_steps)]
        name = f"transcription, features {features}"
        finished = self._try(name, lambda: run([*command, *options], log=self._log("transcription")))
        if finished is not None:
            self._peers[features].append(json.loads(finished.output.splitlines()[-1]) | {"pss_bytes": finished.pss_bytes})

    def _trial(self, data: Path, key: tuple[str, int, int]) -> None:
        features, batch, ranks = key
        steps = self.plan.steps if key in PRIMARY else self.plan.few_steps
        # One rank alone would take all cores; what two ranks bring shows where each has its half of them.
        cores = max(1, len(os.sched_getaffinity(0)) * ranks // 2)
        limits: dict[str, Any] = {"ranks": ranks, "batch": batch, "steps": steps, "settings": FEATURES[features]}
        trial = self._try(f"exact {key}", lambda: job.run_trial(data, self.work, cores=cores, **limits))
        if trial is not None:
            self._trials.setdefault(key, []).append(trial)

    def _gather(self, data: Path) -> None:
        """Medians of what the rounds have found."""
        self.results["ceiling"] = medians([asdict(each) | {"bandwidth": each.bandwidth} for each in self._ceilings])
        peers = {("features" if features else NONE): medians(found) for features, found in self._peers.items()}
        self.results["transcription"] = peers
        self.results["exact"] = [
            {"features": features, **medians([asdict(trial) for trial in trials]), "rounds": len(trials)}
            | ratio_to(peers[NONE if features == NONE else "features"], trials)
            for (features, _, _), trials in self._trials.items()
        ]
        main = find(self.results, MAIN, 8192, 2)
        if main and self._ceilings:
            self.results["cost"] = self._cost(data, main["phases"])

    def _cost(self, data: Path, phases: dict[str, float]) -> dict:
        dataset = open_dataset(data)
        widths = tuple(entry["shape"][1] for entry in dataset.manifest["features"].values())
        items = dataset.interactions(Split.train)[1]
        distinct = cost.expected_distinct(np.bincount(items), 8192)
        shape = cost.Shape(dataset.num_users, dataset.num_items, len(items), 8192, distinct, widths)
        names = Ceiling.__dataclass_fields__
        ceiling = Ceiling(**{name: self.results["ceiling"][name] for name in names})
        lines = {
            name: {**asdict(work), "model_seconds": work.seconds(ceiling), "seconds": phases.get(name)}
            for name, work in cost.step_work(shape).items()
        }
        fractions = {
            "bandwidth_fraction": cost.bandwidth_fraction(shape, phases, ceiling),
            "gemm_fraction": cost.gemm_fraction(shape, phases, ceiling),
        }
        return {"phases": lines, **fractions}

    def _sampled(self, data: Path) -> None:
        self.results["sampled"] = []
        for fanouts in self.plan.fanouts:
            trial = self._try(f"sampled {fanouts}", partial(self._sampled_trial, data, fanouts))
            if trial is not None:
                ratios = ratio_to(self.results["transcription"]["features"], [trial])
                self.results["sampled"].append({"features": MAIN, "fanouts": fanouts, **asdict(trial), **ratios})

    def _sampled_trial(self, data: Path, fanouts: tuple[int, int]) -> job.Trial:
        settings = ["propagation.engine=sampled", f"propagation.fanouts=[{fanouts[0]},{fanouts[1]}]"]
        return job.run_trial(data, self.work, ranks=2, batch=2048, steps=self.plan.few_steps, settings=settings)

    def _ranking(self) -> dict:
        return ranking.measure(users=self.plan.ranking_users, items=electronics.ITEMS, dim=64, k=20, repeats=1)

    def _attempt(self, name: str, measure: Callable[[], Any]) -> None:
        self.results[name] = self._try(name, measure)

    def _try(self, name: str, measure: Callable[[], T]) -> T | None:
        self._say(name)
        try:
            return measure()
        except (CommandFailedError, JobError) as error:
            self.failures.append(f"{name}: {error}")
            self._say(f"FAILED: {error}")
            return None

    def _log(self, name: str) -> Path:
        return self.work / "runs" / f"{name}.log"

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)


def medians(entries: Sequence[dict]) -> dict:
    """Median of every number in dictionaries of the same form; of anything else, the first."""
    merged: dict[str, Any] = {}
    for name in {name: None for entry in entries for name in entry}:
        values = [entry[name] for entry in entries if name in entry]
        if isinstance(values[0], dict):
            merged[name] = medians(values)
        elif isinstance(values[0], (int, float)):
            merged[name] = statistics.median(values)
        else:
            merged[name] = values[0]
    return merged


def ratio_to(peer: dict, trials: Sequence[job.Trial]) -> dict[str, float | None]:
    """How many times less a job takes than the transcription: epoch time and memory."""
    if not peer:
        return {"ratio_epoch": None, "ratio_pss": None}
    epoch = statistics.median(trial.epoch_seconds for trial in trials)
    pss = statistics.median(trial.pss_bytes for trial in trials)
    return {"ratio_epoch": peer["epoch_seconds"] / epoch, "ratio_pss": peer["pss_bytes"] / pss}


def find(results: dict, features: str, batch: int, ranks: int) -> dict | None:
    """The exact engine's entry with these settings."""
    wanted = {"features": features, "batch": batch, "ranks": ranks}
    return next((entry for entry in results["exact"] if wanted.items() <= entry.items()), None)


def headline(results: dict) -> dict:
    """The numbers that have targets, from everything else; None where something is missing."""
    main, small, bare = (find(results, *key) for key in ((MAIN, 8192, 2), (MAIN, 2048, 2), (NONE, 8192, 2)))
    alone = find(results, MAIN, 8192, 1)
    both = [entry for entry in (main, small) if entry]
    scales, shop, ranked = results.get("growth"), results.get("baby"), results.get("ranking")
    return {
        "ratios": {
            "epoch_features_8192": main and main["ratio_epoch"],
            "epoch_features_2048": small and small["ratio_epoch"],
            "epoch_nofeatures_8192": bare and bare["ratio_epoch"],
            "ranking": ranked and ranked["ratio"],
            "ranks_2_over_1": main and alone and alone["step_seconds"] / main["step_seconds"],
            "growth_10x_per_edge": scales and growth.growth_per_edge(scales),
            "baby_time_to_accuracy": shop and shop["ratio"],
        },
        "job_pss_gb": max((entry["pss_bytes"] / 1e9 for entry in both), default=None),
        "startup_seconds": max((entry["startup_seconds"] for entry in both), default=None),
        "bandwidth_fraction": results.get("cost") and results["cost"]["bandwidth_fraction"],
    }
