"""The part of a report that tells whom the lists serve, how far they reach into the catalogue, and who gains by a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from statistics import fmean

import numpy as np

from bm3_dgl.errors import DataError
from bm3_dgl.report.breakdown import (
    Bin,
    Gain,
    Lists,
    Reach,
    bin_labels,
    bin_starts,
    by_activity,
    by_popularity,
    gains_by_activity,
    gains_by_popularity,
    mean_over_seeds,
    popularity_shares,
    reach_of_lists,
    reach_of_test,
    read_lists,
    same_users,
)
from bm3_dgl.report.document import Block, Cell, Figure, Mark, Points, Table, Text, number, ranked, words
from bm3_dgl.report.figures import bars, gains
from bm3_dgl.report.run import USERS_FILE, Run, open_run
from bm3_dgl.report.study import Study, Variant, shared_seeds

_SHOWN_RUNS = 6  # bars that one group can hold
_WHISKERS = "Whiskers are 95 % intervals over users or test interactions, of each {} alone."

Groups = Mapping[str, Sequence[Lists]]  # run or variant -> its lists, one per seed, all of the same users
Bins = dict[str, dict[str, Bin]]  # run -> label -> bin
Gains = dict[str, dict[str, Gain]]
_KINDS: list[tuple[str, Callable[[Lists], list[Bin]], Callable[[Lists, Lists], list[Gain]], str, str]] = [
    ("activity", by_activity, gains_by_activity, "users", "train interactions of the user"),
    ("popularity", by_popularity, gains_by_popularity, "test interactions", "train interactions of the test item"),
]


def breakdowns(runs: Sequence[Run]) -> list[Block]:
    """Recall by activity and popularity, coverage, bias: of every run that has users_test.parquet and its dataset."""
    groups, reasons = {}, []
    for run in runs:
        try:
            groups[run.name] = [_lists(run)]
        except DataError as error:
            reasons.append(f"{run.name}: {error}")
    return [*_warning(reasons), *_blocks(groups, _WHISKERS.format("run"), base=None)]


def variant_breakdowns(study: Study, variants: Sequence[Variant]) -> list[Block]:
    """The same of variants, over the seeds that are done in all of them, and the paired differences to the base."""
    seeds = shared_seeds(variants)
    started = [variant for variant in variants if variant.done()]
    if not seeds:
        return _warning(["No seed is done in every variant, so nothing is compared by users and items."]) if started else []
    groups: dict[str, list[Lists]] = {}
    reasons = []
    for variant in sorted(started, key=lambda variant: variant.name != study.base):
        try:
            lists = [_lists(open_run(trial.directory)) for trial in variant.done() if trial.seed in seeds]
            reference = next(iter(groups.values()), lists)[0]
            if not all(same_users(reference, one) for one in lists):
                raise DataError("judged on other users or another dataset, so left out here")
            groups[variant.name] = lists
        except DataError as error:
            reasons.append(f"{variant.name}: {error}")
    of_seeds = "the mean of the seeds" if len(seeds) > 1 else "of one seed,"
    paired = study.base in groups and len(groups) > 1
    how = "Differences are of the same users under both." if paired else _WHISKERS.format("variant")
    said = f"Every recall is {of_seeds} {', '.join(map(str, seeds))}."
    return [*_warning(reasons), *_blocks(groups, f"{said} {how}", base=study.base if paired else None)]


def _warning(reasons: Sequence[str]) -> list[Block]:
    return [Points(reasons, warning=True)] if reasons else []


def _lists(run: Run) -> Lists:
    if run.users is None:
        raise DataError(f"no {USERS_FILE}, so nothing about single users; train with `evaluate.users_file=true`")
    if run.dataset is None:
        raise DataError(f"{USERS_FILE} is there, but not the dataset that it is of")
    return read_lists(run.users, run.dataset, run.monitor)


def _blocks(groups: Groups, said: str, *, base: str | None) -> list[Block]:
    """base: the group that the others are held against, None for no differences."""
    if not groups:
        return []
    means = {name: mean_over_seeds(seeds) for name, seeds in groups.items()}
    blocks: list[Block] = [Text(f"Recall@{next(iter(means.values())).cutoff} on test. {said}")]
    tables: list[Block] = []
    for name, bins_of, gains_of, counted, axis in _KINDS:
        bins = {run: {bin.label: bin for bin in bins_of(one)} for run, one in means.items()}
        blocks.append(_chart(bins, name, axis, whiskers=base is None))
        tables.append(_table(bins, name, counted, axis))
        if base is not None:
            gained = {
                run: {gain.label: gain for gain in gains_of(one, means[base])} for run, one in means.items() if run != base
            }
            blocks.append(_gains_chart(gained, name, axis, base))
            tables.append(_gains_table(gained, name, counted, axis, base))
    return [*blocks, _shares(groups), *tables, _reach_table(groups)]


def _chart(bins: Bins, name: str, axis: str, *, whiskers: bool) -> Figure:
    shown = list(bins)[:_SHOWN_RUNS]
    heights = {run: [bins[run][label].recall if label in bins[run] else 0.0 for label in _labels(bins)] for run in shown}
    halves = {run: {label: 1.96 * (bin.error or 0.0) for label, bin in bins[run].items()} for run in shown}
    errors = {run: [of_run.get(label, 0.0) for label in _labels(bins)] for run, of_run in halves.items()}
    caption = f"Recall by {axis}."
    values = "; ".join(f"{run}: " + ", ".join(f"{bin.label} {bin.recall:.3f}" for bin in bins[run].values()) for run in shown)
    chart = bars(_labels(bins), heights, x=axis, y="recall", errors=errors if whiskers else None)
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


def _gains_chart(gained: Gains, name: str, axis: str, base: str) -> Figure:
    shown = dict(list(gained.items())[: _SHOWN_RUNS - 1])
    labels = list(dict.fromkeys(label for of_run in shown.values() for label in of_run))
    heights = {run: [of_run[label].difference for label in labels] for run, of_run in shown.items()}
    halves = {run: [_half(of_run[label]) for label in labels] for run, of_run in shown.items()}
    caption = f"Difference in recall to {base} by {axis}, the same users under both; whiskers are 95 % intervals."
    values = "; ".join(
        f"{run}: " + ", ".join(f"{gain.label} {gain.difference:+.4f}" for gain in of_run.values())
        for run, of_run in shown.items()
    )
    chart = gains(labels, heights, halves, x=axis, y=f"recall − that of {base}")
    return Figure(f"gains_by_{name}", caption, f"{caption} {values}", chart)


def _half(gain: Gain) -> float:
    return float("nan") if gain.high is None else gain.high - gain.difference


def _gains_table(gained: Gains, name: str, counted: str, axis: str, base: str) -> Table:
    """A row per bin; the bins are those of the dataset, so all variants have the same."""
    rows: list[list[Cell]] = []
    for label, first in next(iter(gained.values())).items():
        cells = [number(first.count, ",d")]
        for of_run in gained.values():
            cells += [number(value, "+.4f") for value in (of_run[label].difference, of_run[label].low, of_run[label].high)]
        rows.append([words(label), *cells])
    heads = [axis, counted, *(head for run in gained for head in (run, f"{run}, low", f"{run}, high"))]
    caption = (
        f"Difference in recall to {base} by {axis}: mean, low and high end of its 95 % interval over the same users. An"
        " interval without zero is a gain or a loss there; with many bins, one in twenty is so by chance."
    )
    return Table(f"gains_by_{name}_bins", caption, heads, rows)


def _labels(bins: Bins) -> list[str]:
    return list(dict.fromkeys(label for of_run in bins.values() for label in of_run))


def _shares(groups: Groups) -> Figure:
    """Where the lists' items stand in popularity, beside the catalogue and what users took."""
    one = next(iter(groups.values()))[0]
    starts = bin_starts(one.popularity)
    series = {"catalogue": popularity_shares(np.arange(len(one.popularity)), one.popularity, starts)}
    series["taken (test)"] = popularity_shares(one.pair_item, one.popularity, starts)
    for run, seeds in list(groups.items())[: _SHOWN_RUNS - 2]:
        listed = np.concatenate([of_seed.items[of_seed.items >= 0] for of_seed in seeds])
        series[f"recommended by {run}"] = popularity_shares(listed, seeds[0].popularity, starts)
    caption = "Share of items, of test interactions and of recommendations by popularity."
    percents = {name: (100 * shares).tolist() for name, shares in series.items()}
    labels = bin_labels(starts)
    alt = f"{caption} " + "; ".join(
        f"{name}: " + ", ".join(f"{label} {value:.0f} %" for label, value in zip(labels, values, strict=True))
        for name, values in percents.items()
    )
    return Figure("popularity_shares", caption, alt, bars(labels, percents, x="train interactions of the item", y="share, %"))


def _reach_table(groups: Groups) -> Table:
    """Means over the seeds of a group."""
    reaches = {run: _mean_reach([reach_of_lists(one) for one in seeds]) for run, seeds in groups.items()}
    covered = ranked([reach.coverage for reach in reaches.values()])
    rows = []
    for (run, reach), mark in zip(reaches.items(), covered, strict=True):
        rows.append([words(run), *_reach_cells(reach, mark)])
    one = next(iter(groups.values()))[0]
    rows.append([words("what users took (test)"), *_reach_cells(reach_of_test(one), "")])
    caption = (
        f"Reach of the top {one.cutoff}. Coverage: share of the catalogue that is recommended to anyone. Gini: how unevenly, 0"
        " where all items are recommended equally often, 1 where one item has every place. Popularity percentile of an item:"
        " share of the catalogue that is less popular, so 50 is a middling item and 100 the best-seller. The last row is what"
        " users really took."
    )
    heads = ["lists", "coverage, %", "Gini", "mean train interactions", "mean popularity percentile"]
    return Table("reach", caption, heads, rows)


def _mean_reach(reaches: Sequence[Reach]) -> Reach:
    return Reach(**{field.name: fmean(getattr(reach, field.name) for reach in reaches) for field in fields(Reach)})


def _reach_cells(reach: Reach, mark: Mark) -> list[Cell]:
    return [
        number(100 * reach.coverage, ".1f", mark=mark),
        number(reach.gini, ".3f"),
        number(reach.train_interactions, ".1f"),
        number(reach.percentile, ".1f"),
    ]
