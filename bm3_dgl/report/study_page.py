"""The report of a study: its conclusions, the view that it asked for, every number, and what its runs cost."""

from __future__ import annotations

from bm3_dgl.report.curves import curves
from bm3_dgl.report.document import Block, Cell, Mark, Points, Report, Section, Table, Text, number, ranked, words
from bm3_dgl.report.embedding import embeddings
from bm3_dgl.report.reach import breakdowns
from bm3_dgl.report.run import is_number
from bm3_dgl.report.study import Stat, Study, Variant
from bm3_dgl.report.views import view_blocks

_SIDE_BY_SIDE = 8  # variants whose runs are shown beside one another
_SPLITS = {"test": "test", "valid": "validation"}
_COSTS = {
    "train_epoch_seconds": ("epoch, s", ".3f", 1.0),
    "evaluation_seconds": ("evaluation, s", ".3f", 1.0),
    "best_epoch": ("best epoch", ".1f", 1.0),
    "total_seconds": ("whole run, s", ",.1f", 1.0),
    "peak_pss_bytes": ("peak memory, GiB", ".2f", 2.0**30),
}


def study_report(study: Study) -> Report:
    sections = [Section("Conclusions", _conclusions(study)), Section("Result", _result(study))]
    sections.append(Section("Every variant", _tables(study)))
    if cost := cost_table(study):
        sections.append(Section("Time and memory", [cost]))
    if study.view == "table":
        sections += _inside(study)
    return Report(study.title, [str(study.directory)], sections)


def _conclusions(study: Study) -> list[Block]:
    blocks: list[Block] = []
    if study.question:
        blocks.append(Text(study.question))
    if study.conclusions:
        blocks.append(Points(study.conclusions))
    else:
        blocks.append(Text("The study has drawn no conclusion yet."))
    if notes := _unfinished(study):
        blocks.append(Points(notes, warning=True))
    trials = [trial for variant in study.variants for trial in variant.trials]
    done = sum(trial.status == "done" for trial in trials)
    chosen = f" Chosen on validation: {study.chosen}." if study.chosen else ""
    blocks.append(Text(f"`{study.directory}`: {len(study.variants)} variants, {done} of {len(trials)} runs done.{chosen}"))
    return blocks


def _unfinished(study: Study) -> list[str]:
    """A sentence per failed run; pruned and pending ones are counted."""
    notes = []
    for variant in study.variants:
        for trial in variant.trials:
            if trial.status == "failed":
                notes.append(f"Failed: {variant.name}, seed {trial.seed}: {trial.error or 'no reason was noted'}")
    for status, what in (("pending", "not run yet"), ("pruned", "ended early as hopeless")):
        names = [variant.name for variant in study.variants for trial in variant.trials if trial.status == status]
        if names:
            few = ", ".join(dict.fromkeys(names[:6])) + (", …" if len(set(names)) > 6 else "")
            notes.append(f"Runs {what}: {len(names)} ({few}).")
    strange = {trial.status for v in study.variants for trial in v.trials} - {"done", "failed", "pruned", "pending"}
    return notes + [f"Runs of an unknown state: {status}." for status in sorted(strange)]


def _result(study: Study) -> list[Block]:
    blocks = view_blocks(study)
    return blocks or [Text("No run that this view needs has finished.")]


def _tables(study: Study) -> list[Block]:
    blocks: list[Block] = []
    for split, shown in _SPLITS.items():
        if table := _metrics_table(study, split, shown):
            blocks.append(table)
    if table := _against_base(study):
        blocks.append(table)
    return blocks or [Text("No run has finished.")]


def _metrics_table(study: Study, split: str, shown: str) -> Table | None:
    """Mean ± standard deviation of every metric, the interval of the one that decides."""
    stats: list[dict[str, Stat]] = [getattr(variant, split) for variant in study.variants]
    names = list(dict.fromkeys(name for of_variant in stats for name in of_variant))
    if not names:
        return None
    names.sort(key=lambda name: name != study.metric)
    marks = {name: ranked([s[name].mean if name in s else None for s in stats]) for name in names}
    rows: list[list[Cell]] = []
    for place, (variant, of_variant) in enumerate(zip(study.variants, stats, strict=True)):
        cells = []
        for name in names:
            stat = of_variant.get(name)
            cells += _stat_cells(stat, marks[name][place], interval=name == study.metric)
        decisive = of_variant.get(study.metric)
        rows.append([words(_named(study, variant)), number(decisive.n if decisive else None, "d"), *cells])
    heads = ["variant", "runs"]
    for name in names:
        heads += [name, "sd", "95 % interval, low", "high"] if name == study.metric else [name, "sd"]
    caption = f"Metrics on {shown}: mean over seeds, standard deviation. Best in bold, second best underlined."
    return Table(f"metrics_{split}", caption, heads, rows)


def _stat_cells(stat: Stat | None, mark: Mark, *, interval: bool) -> list[Cell]:
    if stat is None:
        return [number(None)] * (4 if interval else 2)
    cells = [number(stat.mean, mark=mark), number(stat.std)]
    return cells + [number(stat.low), number(stat.high)] if interval else cells


def _against_base(study: Study) -> Table | None:
    tested = [variant for variant in study.variants if variant.against_base]
    if not tested:
        return None
    rows = []
    for variant in tested:
        test = {key: value for key, value in variant.against_base.items() if is_number(value)}
        relative = test.get("relative")
        rows.append(
            [
                words(variant.name),
                number(test.get("difference"), "+.4f"),
                number(None if relative is None else 100 * relative, "+.1f", unit=" %"),
                number(test.get("low"), "+.4f"),
                number(test.get("high"), "+.4f"),
                number(test.get("p"), ".2g"),
                number(test.get("p_corrected"), ".2g"),
                number(test.get("users"), ",.0f"),
            ]
        )
    first = tested[0].against_base
    how, metric = first.get("test", "paired test"), first.get("metric", study.metric)
    caption = f"Difference in {metric} to {study.base}, on test ({how}); interval over users."
    heads = ["variant", "difference", "relative", "95 % interval, low", "high", "p", "p, corrected", "users"]
    return Table("against_base", caption, heads, rows)


def cost_table(study: Study) -> Table | None:
    """None where nothing has been timed."""
    known = [name for name in _COSTS if any(name in variant.cost for variant in study.variants)]
    if not known:
        return None
    marks = {
        name: ranked([v.cost[name].mean if name in v.cost else None for v in study.variants], smaller=True) for name in known
    }
    rows = []
    for place, variant in enumerate(study.variants):
        cells = []
        for name in known:
            _, form, unit = _COSTS[name]
            stat = variant.cost.get(name)
            mark: Mark = "" if name == "best_epoch" else marks[name][place]
            cells.append(number(None if stat is None else stat.mean / unit, form, mark=mark))
        rows.append([words(variant.name), number(variant.ranks, "d"), *cells])
    caption = "Means over the finished runs of each variant; least in bold, second underlined."
    return Table("cost", caption, ["variant", "ranks", *(_COSTS[name][0] for name in known)], rows)


def _inside(study: Study) -> list[Section]:
    """Curves and breakdowns of one run per variant."""
    runs, notes = study.runs(study.variants[:_SIDE_BY_SIDE])
    if not runs:
        return [Section("Runs", [Points(notes, warning=True)])] if notes else []
    which = Text("One run per variant, the first that finished: seeds differ by the standard deviations above.")
    warned: list[Block] = [Points(notes, warning=True)] if notes else []
    return [
        Section("Training", [*warned, which, *curves(runs)]),
        Section("Who is served, and with what", breakdowns(runs)),
        Section("Map of the items", embeddings(runs)),
    ]


def _named(study: Study, variant: Variant) -> str:
    marks = [mark for mark, name in (("base", study.base), ("chosen", study.chosen)) if variant.name == name]
    return f"{variant.name} ({', '.join(marks)})" if marks else variant.name
