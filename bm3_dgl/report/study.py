"""Reading a study's directory: study.json, checked, and the runs that it points to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bm3_dgl.errors import DataError
from bm3_dgl.report.run import Run, is_number, open_run, read_json

STUDY_FILE = "study.json"
SCHEMA_VERSION = 1
VIEWS = ("table", "lines", "heat", "cost", "search")


@dataclass(frozen=True)
class Stat:
    """Over the seeds of a variant: mean, standard deviation, 95 % interval. What is not known is None."""

    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Trial:
    """One run of a variant. status: done, failed, pruned or pending."""

    seed: int | None
    directory: Path
    status: str
    error: str | None


@dataclass(frozen=True)
class Variant:
    """values: setting -> value. cost: without a memory of 0 bytes, which was not measured. against_base: the paired test, as
    the study wrote it."""

    name: str
    values: dict[str, Any]
    overrides: list[str]
    ranks: int
    trials: list[Trial]
    valid: dict[str, Stat]
    test: dict[str, Stat]
    cost: dict[str, Stat]
    against_base: dict[str, Any] = field(default_factory=dict)

    def done(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status == "done"]


@dataclass(frozen=True)
class Study:
    directory: Path
    name: str
    title: str
    question: str
    metric: str
    base: str | None
    view: str
    axes: list[tuple[str, list[Any]]]
    variants: list[Variant]
    chosen: str | None
    conclusions: list[str]

    def runs(self, variants: Sequence[Variant], seeds: Sequence[int | None]) -> tuple[list[Run], list[str]]:
        """A finished run of each variant under the variant's name, the one of the first of `seeds`, without these the first;
        and a sentence for each that cannot be read."""
        runs, notes = [], []
        for variant in variants:
            trial = next((trial for trial in variant.done() if not seeds or trial.seed == seeds[0]), None)
            if trial is None:
                continue
            try:
                runs.append(replace(open_run(trial.directory), name=variant.name))
            except DataError as error:
                notes.append(f"{variant.name}: {error}")
        return runs, notes


def shared_seeds(variants: Sequence[Variant]) -> list[int | None]:
    """Seeds that are done in every variant of which any run is done, in the order of the first."""
    done = [[trial.seed for trial in variant.done()] for variant in variants if variant.done()]
    return [seed for seed in done[0] if all(seed in other for other in done)] if done else []


def open_study(directory: Path) -> Study:
    """Raises DataError, one line, where study.json is damaged or of another version."""
    path = directory / STUDY_FILE
    content = read_json(path)
    if content.get("schema_version") != SCHEMA_VERSION:
        found = content.get("schema_version")
        raise DataError(f"{path}: schema version {found}, this program reads {SCHEMA_VERSION}; run the study again")
    if content.get("view") not in VIEWS:
        raise DataError(f"{path}: view {content.get('view')!r}, expected one of {', '.join(VIEWS)}; run the study again")
    try:
        return _study(directory, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise DataError(f"{path}: damaged ({what}); run the study again, finished runs are kept") from None


def _study(directory: Path, content: Mapping[str, Any]) -> Study:
    return Study(
        directory=directory,
        name=str(content["name"]),
        title=str(content.get("title") or content["name"]),
        question=str(content.get("question") or ""),
        metric=str(content["metric"]),
        base=content.get("base"),
        view=content["view"],
        axes=[(str(axis["key"]), list(axis["values"])) for axis in content.get("axes") or []],
        variants=[_variant(directory, entry) for entry in content["variants"]],
        chosen=content.get("chosen"),
        conclusions=[str(sentence) for sentence in content.get("conclusions") or []],
    )


def _variant(directory: Path, entry: Mapping[str, Any]) -> Variant:
    return Variant(
        name=str(entry["name"]),
        values=dict(entry.get("values") or {}),
        overrides=[str(text) for text in entry.get("overrides") or []],
        ranks=int(entry.get("ranks") or 1),
        trials=[_trial(directory, run) for run in entry["runs"]],
        valid=_stats(entry.get("valid")),
        test=_stats(entry.get("test")),
        cost={name: stat for name, stat in _stats(entry.get("cost")).items() if stat.mean or not name.endswith("_bytes")},
        against_base=dict(entry.get("against_base") or {}),
    )


def _trial(directory: Path, run: Mapping[str, Any]) -> Trial:
    return Trial(run.get("seed"), _plain(directory / str(run["dir"])), str(run["status"]), run.get("error"))


def _plain(path: Path) -> Path:
    """Without `..`, where that is the same place; behind a symbolic link it may not be."""
    plain = Path(os.path.normpath(path))
    return plain if plain.exists() and plain.samefile(path) else path


def _stats(content: Mapping[str, Any] | None) -> dict[str, Stat]:
    """Metrics or costs of a variant; those without a mean are left out."""
    found = {}
    for name, entry in (content or {}).items():
        if is_number(entry):
            found[str(name)] = Stat(float(entry))
        elif isinstance(entry, Mapping) and is_number(entry.get("mean")):
            known = {key: entry[key] for key in ("std", "low", "high", "n") if is_number(entry.get(key))}
            found[str(name)] = Stat(float(entry["mean"]), **known)
    return found
