"""The part of a report that tells whom the lists serve, and how far they reach into the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bm3_dgl.errors import DataError
from bm3_dgl.report.breakdown import (
    Bin,
    Lists,
    Reach,
    bin_labels,
    bin_starts,
    by_activity,
    by_popularity,
    popularity_shares,
    reach_of_lists,
    reach_of_test,
    read_lists,
)
from bm3_dgl.report.document import Block, Cell, Figure, Mark, Points, Table, Text, number, ranked, words
from bm3_dgl.report.figures import bars
from bm3_dgl.report.run import USERS_FILE, Run

_SHOWN_RUNS = 6  # bars that one group can hold

Bins = dict[str, dict[str, Bin]]  # run -> label -> bin


def breakdowns(runs: Sequence[Run]) -> list[Block]:
    """Recall by activity and popularity, coverage, bias: of every run that has users_test.parquet and its dataset."""
    lists: dict[str, Lists] = {}
    reasons = []
    for run in runs:
        try:
            lists[run.name] = _lists(run)
        except DataError as error:
            reasons.append(f"{run.name}: {error}")
    blocks: list[Block] = [Points(reasons, warning=True)] if reasons else []
    if not lists:
        return blocks
    cutoff = next(iter(lists.values())).cutoff
    blocks.append(Text(f"Recall@{cutoff} on test. Whiskers are 95 % intervals over users or test interactions."))
    kinds = [
        ("activity", by_activity, "users", "train interactions of the user"),
        ("popularity", by_popularity, "test interactions", "train interactions of the test item"),
    ]
    tables: list[Block] = []
    for name, bins_of, counted, axis in kinds:
        bins = {run: {bin.label: bin for bin in bins_of(one)} for run, one in lists.items()}
        blocks.append(_chart(bins, name, axis))
        tables.append(_table(bins, name, counted, axis))
    return [*blocks, _shares(lists), *tables, _reach_table(lists)]


def _lists(run: Run) -> Lists:
    if run.users is None:
        raise DataError(f"no {USERS_FILE}, so nothing about single users; train with `evaluate.users_file=true`")
    if run.dataset is None:
        raise DataError(f"{USERS_FILE} is there, but not the dataset that it is of")
    return read_lists(run.users, run.dataset, run.monitor)


def _chart(bins: Bins, name: str, axis: str) -> Figure:
    shown = list(bins)[:_SHOWN_RUNS]
    heights = {run: [bins[run][label].recall if label in bins[run] else 0.0 for label in _labels(bins)] for run in shown}
    whiskers = {run: {label: 1.96 * (bin.error or 0.0) for label, bin in bins[run].items()} for run in shown}
    errors = {run: [of_run.get(label, 0.0) for label in _labels(bins)] for run, of_run in whiskers.items()}
    caption = f"Recall by {axis}."
    values = "; ".join(f"{run}: " + ", ".join(f"{bin.label} {bin.recall:.3f}" for bin in bins[run].values()) for run in shown)
    chart = bars(_labels(bins), heights, x=axis, y="recall", errors=errors)
    return Figure(f"by_{name}", caption, f"{caption} {values}", chart)


def _table(bins: Bins, name: str, counted: str, axis: str) -> Table:
    """A row per bin, a column per run; the count is that of the first run that has the bin."""
    rows: list[list[Cell]] = []
    for label in _labels(bins):
        found = [of_run.get(label) for of_run in bins.values()]
        marks = ranked([bin.recall if bin else None for bin in found])
        cells = [number(next(bin.count for bin in found if bin), ",d")]
        for bin, mark in zip(found, marks, strict=True):
            cells += [number(bin.recall if bin else None, mark=mark), number(bin.error if bin else None)]
        rows.append([words(label), *cells])
    heads = [axis, counted]
    for run in bins:
        heads += ["recall", "standard error"] if len(bins) == 1 else [run, f"± {run}"]
    note = "" if len(bins) == 1 else " ± is the standard error. Best of a row in bold, second underlined."
    return Table(f"by_{name}_bins", f"Recall by {axis}.{note}", heads, rows)


def _labels(bins: Bins) -> list[str]:
    return list(dict.fromkeys(label for of_run in bins.values() for label in of_run))


def _shares(lists: dict[str, Lists]) -> Figure:
    """Where the lists' items stand in popularity, beside the catalogue and what users took."""
    one = next(iter(lists.values()))
    starts = bin_starts(one.popularity)
    series = {"catalogue": popularity_shares(np.arange(len(one.popularity)), one.popularity, starts)}
    series["taken (test)"] = popularity_shares(one.pair_item, one.popularity, starts)
    for run, of_run in list(lists.items())[: _SHOWN_RUNS - 2]:
        series[f"recommended by {run}"] = popularity_shares(of_run.items[of_run.items >= 0], of_run.popularity, starts)
    caption = "Share of items, of test interactions and of recommendations by popularity."
    percents = {name: (100 * shares).tolist() for name, shares in series.items()}
    labels = bin_labels(starts)
    alt = f"{caption} " + "; ".join(
        f"{name}: " + ", ".join(f"{label} {value:.0f} %" for label, value in zip(labels, values, strict=True))
        for name, values in percents.items()
    )
    return Figure("popularity_shares", caption, alt, bars(labels, percents, x="train interactions of the item", y="share, %"))


def _reach_table(lists: dict[str, Lists]) -> Table:
    reaches: dict[str, Reach] = {run: reach_of_lists(of_run) for run, of_run in lists.items()}
    covered = ranked([reach.coverage for reach in reaches.values()])
    rows = []
    for (run, reach), mark in zip(reaches.items(), covered, strict=True):
        rows.append([words(run), *_reach_cells(reach, mark)])
    truth = reach_of_test(next(iter(lists.values())))
    rows.append([words("what users took (test)"), *_reach_cells(truth, "")])
    cutoff = next(iter(lists.values())).cutoff
    caption = (
        f"Reach of the top {cutoff}: share of the catalogue that is recommended to anyone, how unevenly (Gini: 0 all items"
        " alike), and how popular the items are. The last row is what users really took."
    )
    heads = ["lists", "coverage, %", "Gini", "mean train interactions", "mean popularity percentile"]
    return Table("reach", caption, heads, rows)


def _reach_cells(reach: Reach, mark: Mark) -> list[Cell]:
    return [
        number(100 * reach.coverage, ".1f", mark=mark),
        number(reach.gini, ".3f"),
        number(reach.train_interactions, ".1f"),
        number(reach.percentile, ".1f"),
    ]
