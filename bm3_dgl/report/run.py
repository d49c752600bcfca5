"""Reading a run directory for a report: all that is there, and a sentence for everything that is not.

A directory without config.yaml is no run and an error. Everything else may be missing, cut off or of an earlier version:
what can be read is shown, and `notes` says what could not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bm3_dgl.data.dataset import Dataset, open_dataset
from bm3_dgl.errors import DataError

USERS_FILE = "users_test.parquet"
ITEMS_FILE = "item_embeddings.parquet"
_NOT_SETTINGS = ("run.dir", "train.resume", "train.progress")  # they do not change what a run computes


@dataclass(frozen=True)
class Run:
    """settings: dotted key -> value. train, valid: the lines of metrics.jsonl by event, in order of epochs. dataset: None
    where it is not there or another one by now. users: users_test.parquet, None where it is not there."""

    directory: Path
    name: str
    settings: dict[str, Any]
    config_text: str
    summary: dict[str, Any]
    train: list[dict[str, Any]]
    valid: list[dict[str, Any]]
    dataset_hash: str | None
    dataset: Dataset | None
    users: pa.Table | None
    notes: list[str] = field(default_factory=list)

    @property
    def monitor(self) -> int:
        """K of the recall that decides."""
        told, monitor = self.settings.get("evaluate.cutoffs"), self.settings.get("evaluate.monitor")
        cutoffs = [k for k in told if isinstance(k, int)] if isinstance(told, list) else []
        return monitor if isinstance(monitor, int) else 20 if 20 in cutoffs or not cutoffs else max(cutoffs)

    @property
    def best_epoch(self) -> int | None:
        """The chosen epoch: of the summary, or of a run that goes on the best so far."""
        if isinstance(self.summary.get("best_epoch"), int):
            return self.summary["best_epoch"]
        metric = f"recall@{self.monitor}"
        judged = [line for line in self.valid if is_number(line.get(metric)) and math.isfinite(line[metric])]
        return max(judged, key=lambda line: (line[metric], -line["epoch"]))["epoch"] if judged else None

    def compared_settings(self) -> dict[str, Any]:
        """Settings that may change the result."""
        return {key: value for key, value in self.settings.items() if key not in _NOT_SETTINGS}


def open_run(directory: Path, name: str | None = None) -> Run:
    """Raises DataError where there is no run, or one whose files are damaged beyond reading."""
    config = directory / "config.yaml"
    if not config.is_file():
        raise DataError(f"{directory}: no run here (config.yaml is missing); give the run.dir of launch/train.py")
    config_text = config.read_text(encoding="utf-8", errors="replace")
    settings = _settings(config, config_text)
    notes: list[str] = []
    summary = read_json(directory / "summary.json") if (directory / "summary.json").is_file() else {}
    train, valid = _lines(directory / "metrics.jsonl", notes)
    _note_state(summary, train, valid, notes)
    dataset_hash = _dataset_hash(directory)
    dataset = _dataset(settings, dataset_hash, notes)
    users = _users(directory / USERS_FILE, notes)
    return Run(
        directory=directory,
        name=name or directory.resolve().name,
        settings=settings,
        config_text=config_text,
        summary=summary,
        train=train,
        valid=valid,
        dataset_hash=dataset_hash or (dataset.hash if dataset else None),
        dataset=dataset,
        users=users,
        notes=notes,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError where the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged, a JSON object was expected; remove it and let the job that wrote it write it again")
    return content


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numbers(content: Mapping[str, Any], *path: str) -> dict[str, float]:
    """The numbers of an inner object, {} where it is not there."""
    inner: Any = content
    for key in path:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    return {str(k): float(v) for k, v in inner.items() if is_number(v)} if isinstance(inner, Mapping) else {}


def one_number(content: Mapping[str, Any], *path: str) -> float | None:
    return numbers(content, *path[:-1]).get(path[-1])


def _settings(path: Path, text: str) -> dict[str, Any]:
    """Read plainly, without the checks of today's program: an older run has other keys."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged, a YAML mapping was expected; is it the run.dir of launch/train.py?")
    return _flatten("", content)


def _flatten(prefix: str, content: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flatten(f"{prefix}{key}.", value)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _lines(path: Path, notes: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train and valid lines; lines that cannot be read are left out and noted."""
    if not path.is_file():
        notes.append("metrics.jsonl is missing, so there are no curves.")
        return [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    good: list[dict[str, Any]] = []
    bad: list[int] = []
    for place, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        whole = isinstance(entry, dict) and isinstance(entry.get("epoch"), int) and isinstance(entry.get("event"), str)
        if whole:
            good.append(entry)
        else:
            bad.append(place)
    if bad == [len(lines)]:
        notes.append("The last line of metrics.jsonl is cut off, as by a kill, and is left out.")
    elif bad:
        notes.append(f"metrics.jsonl: lines that cannot be read are left out: {len(bad)}, the first is line {bad[0]}.")
    return [e for e in good if e["event"] == "train"], [e for e in good if e["event"] == "valid"]


def _note_state(summary: dict, train: list[dict], valid: list[dict], notes: list[str]) -> None:
    """Whether the run has ended, and where its numbers stop being numbers."""
    if "trial_steps" in summary:
        notes.append(f"A trial of {summary['trial_steps']} steps: timed, never judged.")
    elif not summary:
        notes.append(
            f"The run has not ended (no summary.json): it still trains or was interrupted; {len(train)} epochs so far, no test."
        )
    elif train and isinstance(summary.get("epochs_run"), int) and train[-1]["epoch"] > summary["epochs_run"]:
        notes.append(f"The run goes on: summary.json tells of {summary['epochs_run']} epochs, {train[-1]['epoch']} are done.")
    for line in train:
        wrong = [name for name, value in numbers(line, "losses").items() if not math.isfinite(value)]
        if wrong:
            notes.append(f"The loss is not finite from epoch {line['epoch']} on ({', '.join(wrong)}).")
            break
    for line in valid:
        if any(is_number(value) and not math.isfinite(value) for value in line.values()):
            notes.append(f"A validation metric is not a number from epoch {line['epoch']} on.")
            break


def _dataset_hash(directory: Path) -> str | None:
    """Of the dataset that the run was trained on, as its newest checkpoint tells."""
    for manifest in sorted(directory.glob("checkpoints/step-*/manifest.json"), reverse=True):
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))["identity"]["dataset"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return found if isinstance(found, str) else None
    return None


def _dataset(settings: dict[str, Any], trained_on: str | None, notes: list[str]) -> Dataset | None:
    where = settings.get("data.dir")
    try:
        dataset = open_dataset(Path(str(where)))
    except (DataError, KeyError, TypeError):
        notes.append(
            f"The dataset data.dir={where} cannot be opened from this directory, so nothing is said by activity or popularity."
        )
        return None
    if trained_on is not None and dataset.hash != trained_on:
        notes.append(f"data.dir={where} holds another dataset by now, so nothing is said by activity or popularity.")
        return None
    return dataset


def _users(path: Path, notes: list[str]) -> pa.Table | None:
    """The table of judged users; None, with a note, where it is damaged."""
    if not path.is_file():
        return None
    needed = {"user", "train_items", "test_items", "items"}
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        notes.append(f"{path.name} is damaged and left out.")
        return None
    if missing := needed - set(table.column_names):
        notes.append(f"{path.name} lacks the columns {', '.join(sorted(missing))} and is left out.")
        return None
    return table
