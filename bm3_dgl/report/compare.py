"""Two runs against each other: settings in which they differ, and by how much their results do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from scipy import stats

from bm3_dgl.errors import DataError
from bm3_dgl.report.run import Run, numbers, one_number
from bm3_dgl.report.spent import peak_bytes

_COSTS = {"startup": "start-up, s", "train_epoch": "epoch, s", "evaluation": "evaluation, s", "step": "step, s"}


def changed_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings in which any two runs differ: key -> value of each run, None where a run does not know the key."""
    keys = sorted({key for run in runs for key in run.compared_settings()})
    found = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def spell(value: Any) -> str:
    """A setting as it stands on a command line: null, true, [a,b]."""
    if value is None or isinstance(value, (bool, list, dict)):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0].replace(", ", ",")
    return str(value)


def compare(first: Run, second: Run) -> str:
    """Text for a terminal. Raises DataError where the runs are of different datasets."""
    known = first.dataset_hash, second.dataset_hash
    if None not in known and known[0] != known[1]:
        raise DataError(
            f"{first.directory} and {second.directory} are not comparable: trained on different datasets"
            f" ({str(known[0])[:12]}, {str(known[1])[:12]}); give two runs of one dataset"
        )
    parts = [f"A  {first.directory}\nB  {second.directory}", _settings_part(first, second)]
    parts += [_metrics_part(first, second, split) for split in ("valid", "test")]
    parts += [_users_part(first, second), _cost_part(first, second), _notes_part(first, second)]
    return "\n\n".join(part for part in parts if part)


def paired_users(first: Run, second: Run, metric: str) -> tuple[float, float, float, float, int] | None:
    """Over the users judged in both: mean of B - A, its 95 % interval, p of Student's paired test, users.

    None where either run lacks the file or the metric, or fewer than two users are in both.
    """
    if first.users is None or second.users is None:
        return None
    if metric not in first.users.column_names or metric not in second.users.column_names:
        return None
    _, a, b = np.intersect1d(first.users["user"].to_numpy(), second.users["user"].to_numpy(), return_indices=True)
    if len(a) < 2:
        return None
    before = first.users[metric].to_numpy().astype(np.float64)[a]
    after = second.users[metric].to_numpy().astype(np.float64)[b]
    mean = float((after - before).mean())
    if np.ptp(after - before) == 0:
        return mean, mean, mean, 1.0 if mean == 0 else 0.0, len(a)
    test = stats.ttest_rel(after, before)
    low, high = test.confidence_interval(0.95)
    return mean, float(low), float(high), float(test.pvalue), len(a)


def _settings_part(first: Run, second: Run) -> str:
    changed = changed_settings([first, second])
    if not changed:
        return "settings: the same"
    rows = [[key, *(spell(value) for value in values)] for key, values in changed.items()]
    return _columns([["setting", "A", "B"], *rows])


def _metrics_part(first: Run, second: Run, split: str) -> str:
    a, b = numbers(first.summary, split), numbers(second.summary, split)
    shared = [name for name in a if name in b]
    if not shared:
        return f"{split}: not judged in {'A' if not a else 'B'}" if not (a and b) else f"{split}: no metric in common"
    rows = [
        [name, f"{a[name]:.4f}", f"{b[name]:.4f}", f"{b[name] - a[name]:+.4f}", _relative(a[name], b[name])] for name in shared
    ]
    return _columns([[split, "A", "B", "B - A", "relative"], *rows], right=1)


def _users_part(first: Run, second: Run) -> str:
    if first.users is None or second.users is None:
        return ""
    if None in (first.dataset_hash, second.dataset_hash):
        return "paired over users: the runs' datasets are not known, so their users cannot be paired"
    rows = []
    for name in numbers(first.summary, "test"):
        paired = paired_users(first, second, name)
        if paired is not None:
            mean, low, high, p, users = paired
            rows.append([name, f"{mean:+.4f}", f"{low:+.4f} .. {high:+.4f}", f"{p:.2g}", f"{users:,}"])
    return _columns([["test, paired over users", "B - A", "95 % interval", "p", "users"], *rows], right=1) if rows else ""


def _cost_part(first: Run, second: Run) -> str:
    rows = []
    for key, name in _COSTS.items():
        values = [one_number(run.summary, "seconds", key) for run in (first, second)]
        rows.append(_cost_row(name, values, ".3f"))
    peaks = [None if (peak := peak_bytes(run)) is None else peak / 2**30 for run in (first, second)]
    rows.append(_cost_row("peak memory, GiB", peaks, ".2f"))
    rows.append(_cost_row("best epoch", [run.best_epoch for run in (first, second)], "d"))
    return _columns([["cost", "A", "B", "relative"], *rows], right=1)


def _cost_row(name: str, values: Sequence[float | int | None], form: str) -> list[str]:
    a, b = values
    shown = ["-" if value is None else f"{value:{form}}" for value in values]
    return [name, *shown, _relative(a, b) if a is not None and b is not None else ""]


def _notes_part(first: Run, second: Run) -> str:
    notes = [f"note on {label}: {note}" for label, run in (("A", first), ("B", second)) for note in run.notes]
    return "\n".join(notes)


def _relative(a: float, b: float) -> str:
    if a == 0 or not math.isfinite(a) or not math.isfinite(b):
        return "-"
    return f"{100 * (b - a) / a:+.1f} %"


def _columns(rows: list[list[str]], *, right: int | None = None) -> str:
    """Rows as aligned columns; from column `right` on to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right is not None and place >= right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
