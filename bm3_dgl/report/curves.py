"""Curves over epochs: loss terms, validation metrics, gradient norms, norms of embedding rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from bm3_dgl.report.document import Block, Cell, Figure, Table, Text, number, words
from bm3_dgl.report.figures import Line, lines
from bm3_dgl.report.run import Run, is_number, numbers

_MEDIAN = 2  # place of the median in embedding_norms
_SHOWN_RUNS = 8  # lines that one chart can tell apart


def curves(runs: Sequence[Run]) -> list[Block]:
    """One run: a chart per kind with a line per term. Several: a chart per term with a line per run."""
    if not any(run.train or run.valid for run in runs):
        return [Text("No epoch has been recorded yet.")]
    blocks: list[Block] = _of_one(runs[0]) if len(runs) == 1 else _of_many(runs[:_SHOWN_RUNS])
    if len(runs) > _SHOWN_RUNS:
        blocks.insert(0, Text(f"The charts show the first {_SHOWN_RUNS} runs; the table has all."))
    if any(run.train for run in runs):  # popularity has no epoch
        blocks.append(_table(runs))
    return blocks


def _of_one(run: Run) -> list[Block]:
    chosen = run.best_epoch
    charts: list[Block] = []

    def add(name: str, caption: str, series: list[Line], y: str, *, log: bool = False) -> None:
        if series:
            alt = f"{caption} Lines over epochs: {', '.join(line.label for line in series)}."
            charts.append(Figure(name, caption, alt, lines(series, x="epoch", y=y, log=log, chosen=chosen)))

    losses = [_line(run.train, ("losses",), term) for term in _keys(run.train, "losses")]
    add("losses", "Loss terms, mean of the epoch's steps.", losses, "loss")
    for kind, shown in (("recall", "Recall"), ("ndcg", "NDCG")):
        found = [name for name in _metric_names(run.valid) if name.startswith(f"{kind}@")]
        add(f"valid_{kind}", f"{shown} on validation.", [_line(run.valid, (), name) for name in found], kind)
    parts = [_line(run.train, ("grad_norms",), part) for part in _keys(run.train, "grad_norms")]
    add("grad_norms", "Gradient norms at the last step of each epoch.", parts, "norm of dLoss", log=True)
    tables = [_quantile_line(run, table) for table in _keys(run.train, "embedding_norms", of=list)]
    add("embedding_norms", "Norms of the tables' rows: median, and the middle half.", tables, "norm of a row")
    return charts


def _of_many(runs: Sequence[Run]) -> list[Block]:
    charts: list[Block] = []

    def add(name: str, caption: str, line: Callable[[Run], Line], y: str, *, log: bool = False) -> None:
        series = [one for one in map(line, runs) if one.x]
        if series:
            alt = f"{caption} Lines over epochs: {', '.join(one.label for one in series)}."
            charts.append(Figure(name, caption, alt, lines(series, x="epoch", y=y, log=log)))

    metric = f"recall@{runs[0].monitor}"
    add(
        "valid",
        f"Validation {metric}; the dot is the chosen epoch.",
        functools.partial(_of_run, event="valid", path=(), key=metric),
        metric,
    )
    for term in dict.fromkeys(term for run in runs for term in _keys(run.train, "losses")):
        add(f"loss_{term}", f"Loss term {term}.", functools.partial(_of_run, event="train", path=("losses",), key=term), "loss")
    add("grad_norms", "Norm of the whole gradient at the last step of each epoch.", _whole_gradient, "norm of dLoss", log=True)
    return charts


def _table(runs: Sequence[Run]) -> Table:
    """The ends of the curves, and the chosen epoch."""
    rows: list[list[Cell]] = []
    metrics = list(dict.fromkeys(name for run in runs for name in _metric_names(run.valid)))
    terms = list(dict.fromkeys(term for run in runs for term in _keys(run.train, "losses")))
    for run in runs:
        judged = {line["epoch"]: line for line in run.valid}
        for line in run.train:
            if line["epoch"] in {run.best_epoch, run.train[0]["epoch"], run.train[-1]["epoch"]}:
                valid, losses = judged.get(line["epoch"], {}), numbers(line, "losses")
                cells = [number(losses.get(term)) for term in terms]
                cells += [number(numbers({"of": valid}, "of").get(name)) for name in metrics]
                chosen = " (chosen)" if line["epoch"] == run.best_epoch else ""
                rows.append([words(run.name), Cell(line["epoch"], f"{line['epoch']}{chosen}"), *cells])
    caption = "Losses and validation metrics of the first, the chosen and the last epoch; `metrics.jsonl` of the run has all."
    return Table("epochs", caption, ["run", "epoch", *terms, *metrics], rows)


def _of_run(run: Run, *, event: str, path: tuple[str, ...], key: str) -> Line:
    line = _line(run.train if event == "train" else run.valid, path, key)
    return Line(run.name, line.x, line.y, marked=run.best_epoch)


def _whole_gradient(run: Run) -> Line:
    """Root of the sum of squares over all parts."""
    found = [(entry["epoch"], numbers(entry, "grad_norms").values()) for entry in run.train]
    found = [(epoch, norms) for epoch, norms in found if norms]
    return Line(run.name, [e for e, _ in found], [math.hypot(*norms) for _, norms in found], marked=run.best_epoch)


def _line(entries: Sequence[dict], path: tuple[str, ...], key: str) -> Line:
    found = [(entry["epoch"], values[key]) for entry in entries if key in (values := _numbers(entry, path))]
    return Line(key, [epoch for epoch, _ in found], [value for _, value in found])


def _quantile_line(run: Run, table: str) -> Line:
    found = [(entry["epoch"], entry["embedding_norms"][table]) for entry in run.train if _has_quantiles(entry, table)]
    x, middle = [epoch for epoch, _ in found], [values[_MEDIAN] for _, values in found]
    return Line(table, x, middle, band=([values[1] for _, values in found], [values[3] for _, values in found]))


def _has_quantiles(entry: dict, table: str) -> bool:
    norms = entry.get("embedding_norms")
    values = norms.get(table) if isinstance(norms, dict) else None
    return isinstance(values, list) and len(values) == 5 and all(map(is_number, values))


def _numbers(entry: dict, path: tuple[str, ...]) -> dict[str, float]:
    return numbers(entry, *path) if path else numbers({"of": entry}, "of")


def _keys(entries: Sequence[dict], name: str, of: type = float) -> list[str]:
    """Keys of an inner object of the lines, in order of appearance."""
    found: dict[str, Any] = {}
    for entry in entries:
        inner = entry.get(name)
        if isinstance(inner, dict):
            found |= {key: None for key, value in inner.items() if (is_number(value) if of is float else isinstance(value, of))}
    return list(found)


def _metric_names(entries: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name, value in entry.items() if "@" in name and is_number(value)))
