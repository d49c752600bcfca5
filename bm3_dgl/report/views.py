"""The ways in which a study can be looked at: table, lines, heat map, cost, search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats as tests

from bm3_dgl.report.compare import spell
from bm3_dgl.report.document import SPLITS, Block, Cell, Figure, Table, number, words
from bm3_dgl.report.figures import Line, bars, heat, intervals, lines, scatter
from bm3_dgl.report.run import is_number
from bm3_dgl.report.study import Stat, Study, Variant

_LEAST_TRIALS = 5  # for a rank correlation


def view_blocks(study: Study) -> list[Block]:
    """What the study's view shows of its finished runs; empty where none has finished."""
    view = {"table": _table, "lines": _lines, "heat": _heat, "cost": _cost, "search": _search}[study.view]
    return view(study)


def _table(study: Study) -> list[Block]:
    """Means with their intervals, the base's as a line."""
    charts: list[Block] = []
    for split, shown in SPLITS.items():
        known = [(variant, stat) for variant in study.variants if (stat := _stat(study, variant, split))]
        if not known:
            continue
        base = next((stat.mean for variant, stat in known if variant.name == study.base), None)
        names = [variant.name for variant, _ in known]
        low, high = [_low(stat) for _, stat in known], [_high(stat) for _, stat in known]
        svg = intervals(names, [stat.mean for _, stat in known], low, high, x=f"{study.metric} on {shown}", base=base)
        dashed = " The dashed line is the base." if base is not None else ""
        caption = f"{study.metric} on {shown}, {_over_seeds([stat for _, stat in known])}.{dashed}"
        charts.append(Figure(f"variants_{split}", caption, f"{caption} {_spoken(known)}.", svg))
    return charts


def _lines(study: Study) -> list[Block]:
    """The metric over the first axis; with a second axis, a line for each of its values."""
    if not study.axes or not all(map(is_number, study.axes[0][1])):
        return _table(study)
    key, values = study.axes[0]
    charts: list[Block] = []
    if len(study.axes) == 1:
        series = [_over(study, split, key, values, {}, shown) for split, shown in SPLITS.items()]
        charts += _line_chart(study, "lines", f"{study.metric} over {key}", [line for line in series if line.x], key)
        return charts
    other, others = study.axes[1]
    for split, shown in SPLITS.items():
        series = [_over(study, split, key, values, {other: value}, f"{other}={spell(value)}") for value in others]
        charts += _line_chart(study, f"lines_{split}", f"{study.metric} on {shown} over {key}", [s for s in series if s.x], key)
    return charts


def _line_chart(study: Study, name: str, caption: str, series: list[Line], key: str) -> list[Block]:
    if not series:
        return []
    stats = [stat for split in SPLITS for variant in study.variants if (stat := _stat(study, variant, split))]
    alt = f"{caption}. " + "; ".join(
        f"{line.label}: " + ", ".join(f"{x:g} {y:.4f}" for x, y in zip(line.x, line.y, strict=True)) for line in series
    )
    svg = lines(series, x=key, y=study.metric, epochs=False)
    return [Figure(name, f"{caption}, {_over_seeds(stats)}.", alt, svg)]


def _over(study: Study, split: str, key: str, values: Sequence[Any], fixed: dict[str, Any], label: str) -> Line:
    x, y, low, high = [], [], [], []
    for value in values:
        variant = _find(study, {**fixed, key: value})
        stat = _stat(study, variant, split) if variant else None
        if stat is not None:
            x.append(float(value))
            y.append(stat.mean)
            low.append(_low(stat))
            high.append(_high(stat))
    return Line(label, x, y, band=(low, high) if np.isfinite(low).any() else None)


def _heat(study: Study) -> list[Block]:
    if len(study.axes) < 2:
        return _lines(study)
    (row_key, rows), (column_key, columns) = study.axes[:2]
    chosen = next((variant for variant in study.variants if variant.name == study.chosen), None)
    best = None
    if chosen is not None and chosen.values.get(row_key) in rows and chosen.values.get(column_key) in columns:
        best = rows.index(chosen.values[row_key]), columns.index(chosen.values[column_key])
    blocks: list[Block] = []
    for split, shown in SPLITS.items():
        grid = np.full((len(rows), len(columns)), np.nan)
        for (row, column), _ in np.ndenumerate(grid):
            variant = _find(study, {row_key: rows[row], column_key: columns[column]})
            stat = _stat(study, variant, split) if variant else None
            grid[row, column] = stat.mean if stat else np.nan
        if not np.isfinite(grid).any():
            continue
        spelt = [[spell(value) for value in values] for values in (rows, columns)]
        mark = " The frame is the cell chosen on validation." if best is not None else ""
        caption = f"{study.metric} on {shown} over {row_key} and {column_key}.{mark}"
        svg = heat(spelt[0], spelt[1], grid, y=row_key, x=column_key, best=best)
        blocks.append(Figure(f"map_{split}", caption, f"{caption} The table beside it has the numbers.", svg))
        cells = [[words(spelt[0][row]), *(number(_known(value)) for value in grid[row])] for row in range(len(rows))]
        heads = [f"{row_key}, across: {column_key}", *spelt[1]]
        blocks.append(Table(f"map_{split}_cells", f"{study.metric} on {shown}.", heads, cells))
    return sorted(blocks, key=lambda block: isinstance(block, Table))  # figures side by side, tables below


def _cost(study: Study) -> list[Block]:
    """Seconds of an epoch and peak memory as bars; the numbers are in the table of costs. No recall: the runs are of few
    epochs."""
    charts: list[Block] = []
    for name, caption, y, unit in (
        ("train_epoch_seconds", "Time of a training epoch.", "seconds", 1.0),
        ("peak_pss_bytes", "Peak memory of all processes (PSS).", "GiB", 2.0**30),
    ):
        known = {variant.name: variant.cost[name].mean / unit for variant in study.variants if name in variant.cost}
        if known:
            alt = f"{caption} " + "; ".join(f"{variant}: {value:.3g} {y}" for variant, value in known.items())
            svg = bars(list(known), {y: list(known.values())}, x="variant", y=y)
            charts.append(Figure(f"cost_{name}", caption, alt, svg))
    return charts


def _search(study: Study) -> list[Block]:
    """Trials in their order with the best so far, the metric over each setting, and rank correlations."""
    known = [(place, variant, stat.mean) for place, variant in enumerate(study.variants, start=1)
             if (stat := _stat(study, variant, "valid")) and math.isfinite(stat.mean)]  # fmt: skip
    if not known:
        return []
    values = [value for _, _, value in known]
    best = int(np.argmax(values))
    order = [float(place) for place, _, _ in known]
    metric = f"{study.metric} on validation"
    caption = "Trials in their order, and the best so far."
    so_far = np.maximum.accumulate(values).tolist()
    svg = scatter(order, values, x="trial", y=metric, log=False, best=best, line=so_far)
    charts: list[Block] = [
        Figure("trials", caption, f"{caption} The best, trial {order[best]:g}, has {values[best]:.4f}.", svg)
    ]
    rows: list[list[Cell]] = []
    for number_of, key in enumerate(dict.fromkeys(key for _, variant, _ in known for key in variant.values), start=1):
        with_key = [(variant.values[key], value) for _, variant, value in known if key in variant.values]
        settings, metrics = [setting for setting, _ in with_key], [value for _, value in with_key]
        numeric = all(map(is_number, settings))
        shown: list[Any] = settings if numeric else [spell(setting) for setting in settings]
        log = numeric and min(settings) > 0 and max(settings) / min(settings) > 50
        where = int(np.argmax(metrics))
        alt = f"{metric} over {key}; the best trial has {spell(settings[where])}."
        chart = scatter(shown, metrics, x=key, y=metric, log=log, best=where)
        charts.append(Figure(f"trials_{number_of}", f"{key}.", alt, chart))
        if numeric and len(settings) >= _LEAST_TRIALS and len(set(settings)) > 1 and len(set(metrics)) > 1:
            test = tests.spearmanr(settings, metrics)
            rows.append(
                [
                    words(key),
                    number(float(test.statistic), "+.2f"),
                    number(float(test.pvalue), ".2g"),
                    number(len(settings), "d"),
                ]
            )
    if rows:
        caption = f"Rank correlation (Spearman) of each setting with {metric}: how far it alone moves the result, and whither."
        charts.append(Table("importance", caption, ["setting", "correlation", "p", "trials"], rows))
    return [*charts, *_trials(study)]


def _trials(study: Study) -> list[Block]:
    """Every trial with its settings and state."""
    keys = list(dict.fromkeys(key for variant in study.variants for key in variant.values))
    rows = []
    for variant in study.variants:
        states = ", ".join(dict.fromkeys(trial.status for trial in variant.trials))
        stat = _stat(study, variant, "valid")
        cells = [_setting(variant.values[key]) if key in variant.values else number(None) for key in keys]
        rows.append([words(variant.name), *cells, number(stat.mean if stat else None), words(states)])
    return [Table("trials_all", "All trials.", ["trial", *keys, f"{study.metric}, validation", "state"], rows)] if keys else []


def _setting(value: Any) -> Cell:
    return number(value, ".4g") if is_number(value) else words(spell(value))


def _find(study: Study, values: dict[str, Any]) -> Variant | None:
    return next((v for v in study.variants if all(v.values.get(key, ...) == value for key, value in values.items())), None)


def _stat(study: Study, variant: Variant, split: str) -> Stat | None:
    found: dict[str, Stat] = getattr(variant, split)
    return found.get(study.metric)


def _low(stat: Stat) -> float:
    """NaN, which is not drawn, where there is no interval."""
    return math.nan if stat.low is None else stat.low


def _high(stat: Stat) -> float:
    return math.nan if stat.high is None else stat.high


def _over_seeds(known: Sequence[Stat]) -> str:
    """What a chart of these shows: one seed has no interval."""
    single = [stat.low is None for stat in known]
    if all(single):
        return "one seed"
    return "mean and 95 % interval over seeds" + (" (none where there is one seed)" if any(single) else "")


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _spoken(known: Sequence[tuple[Variant, Stat]]) -> str:
    return "; ".join(f"{variant.name} {stat.mean:.4f}" for variant, stat in known)
