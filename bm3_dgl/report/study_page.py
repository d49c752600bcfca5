"""The report of a study: its conclusions, the view that it asked for, every number, and what its runs cost."""

from __future__ import annotations

from bm3_dgl.report.curves import curves
from bm3_dgl.report.document import SPLITS, Block, Cell, Mark, Points, Report, Section, Table, Text, number, ranked, words
from bm3_dgl.report.embedding import embeddings
from bm3_dgl.report.reach import variant_breakdowns
from bm3_dgl.report.run import is_number
from bm3_dgl.report.study import Stat, Study, Variant, shared_seeds
from bm3_dgl.report.variants import settings_of_variants
from bm3_dgl.report.views import view_blocks

_SHOWN_VARIANTS = 8  # whose runs are shown beside one another
_SHOWN = (
    "A difference is shown where the test over users, corrected for the number of comparisons, rejects chance at 5 % and all"
    " seeds agree in its direction; a smaller one may still be there. Intervals of differences are over users, at the trainings"
    " that were done; those of means are over seeds, at the users of the test: what another training would change."
)
_ALONE = "least in bold, second underlined; each run had the machine to itself"
_SIDE_BY_SIDE = (
    "runs went side by side, so neither times nor memory, of which they share pages, compare; a study of view `cost` measures"
    " them alone"
)
_COSTS = {
    "train_epoch_seconds": ("epoch, s", ".3f", 1.0),
    "evaluation_seconds": ("evaluation, s", ".3f", 1.0),
    "best_epoch": ("best epoch", ".1f", 1.0),
    "total_seconds": ("start-up, epochs and evaluations, s", ",.1f", 1.0),
    "peak_pss_bytes": ("peak memory, GiB", ".2f", 2.0**30),
}


def study_report(study: Study) -> Report:
    sections = [Section("Conclusions", _conclusions(study)), Section("Result", _result(study))]
    if settings := settings_of_variants(study):
        sections.append(Section("Settings of each variant", settings))
    metrics = [Section("Every variant", _tables(study))]
    costs = [Section("Time and memory", [cost])] if (cost := cost_table(study)) else []
    sections += [*costs, *metrics] if study.view == "cost" else [*metrics, *costs]
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
    if study.view != "cost" and any(variant.against_base for variant in study.variants):
        blocks.append(Text(_SHOWN))
    if notes := _ended_otherwise(study):
        blocks.append(Points(notes, warning=True))
    trials = [trial for variant in study.variants for trial in variant.trials]
    done = sum(trial.status == "done" for trial in trials)
    chosen = f" Chosen on validation: {study.chosen}." if study.chosen and study.view != "cost" else ""
    blocks.append(Text(f"`{study.directory}`: {len(study.variants)} variants, {done} of {len(trials)} runs done.{chosen}"))
    return blocks


def _ended_otherwise(study: Study) -> list[str]:
    """Pruned runs and unknown states; of failed runs and those to come the conclusions tell."""
    notes = []
    names = [variant.name for variant in study.variants for trial in variant.trials if trial.status == "pruned"]
    if names:
        few = ", ".join(dict.fromkeys(names[:6])) + (", …" if len(set(names)) > 6 else "")
        notes.append(f"Runs ended early as hopeless: {len(names)} ({few}).")
    strange = {trial.status for v in study.variants for trial in v.trials} - {"done", "failed", "pruned", "pending"}
    return notes + [f"Runs of an unknown state: {status}." for status in sorted(strange)]


def _result(study: Study) -> list[Block]:
    blocks = view_blocks(study)
    return blocks or [Text("No run that this view needs has finished.")]


def _tables(study: Study) -> list[Block]:
    blocks: list[Block] = []
    for split, shown in SPLITS.items():
        if table := _metrics_table(study, split, shown):
            blocks.append(table)
    if study.view != "cost" and (table := _against_base(study)):
        blocks.append(table)
    return blocks or [Text("No run has finished.")]


def _metrics_table(study: Study, split: str, shown: str) -> Table | None:
    """Mean ± standard deviation of every metric, the interval of the one that decides."""
    stats: list[dict[str, Stat]] = [getattr(variant, split) for variant in study.variants]
    names = list(dict.fromkeys(name for of_variant in stats for name in of_variant))
    if not names:
        return None
    names.sort(key=lambda name: name != study.metric)
    timed = study.view == "cost"  # runs of few epochs, whose metrics are no result
    seeds = any(stat.std is not None for of_variant in stats for stat in of_variant.values())
    marks = {name: ranked([] if timed else [s[name].mean if name in s else None for s in stats]) for name in names}
    rows: list[list[Cell]] = []
    for place, (variant, of_variant) in enumerate(zip(study.variants, stats, strict=True)):
        cells = []
        for name in names:
            mark: Mark = "" if timed else marks[name][place]
            cells += _stat_cells(of_variant.get(name), mark, spread=seeds, interval=seeds and name == study.metric)
        decisive = of_variant.get(study.metric)
        rows.append([words(_named(study, variant)), number(decisive.n if decisive else None, "d"), *cells])
    heads = ["variant", "runs"]
    for name in names:
        heads += [name, *(["sd"] if seeds else [])]
        heads += ["95 % interval, low", "high"] if seeds and name == study.metric else []
    over = "mean over seeds, standard deviation" if seeds else "one seed"
    said = "The runs are of few epochs, for timing: no result." if timed else "Best in bold, second best underlined."
    return Table(f"metrics_{split}", f"Metrics on {shown}: {over}. {said}", heads, rows)


def _stat_cells(stat: Stat | None, mark: Mark, *, spread: bool, interval: bool) -> list[Cell]:
    cells = [number(stat.mean if stat else None, mark=mark)]
    cells += [number(stat.std if stat else None)] if spread else []
    return cells + ([number(stat.low if stat else None), number(stat.high if stat else None)] if interval else [])


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
            mark: Mark = "" if name == "best_epoch" or study.view != "cost" else marks[name][place]
            cells.append(number(None if stat is None else stat.mean / unit, form, mark=mark))
        rows.append([words(variant.name), number(variant.ranks, "d"), *cells])
    caption = f"Means over the finished runs of each variant; {_ALONE if study.view == 'cost' else _SIDE_BY_SIDE}."
    return Table("cost", caption, ["variant", "ranks", *(_COSTS[name][0] for name in known)], rows)


def _inside(study: Study) -> list[Section]:
    """Curves and maps of one run per variant, breakdowns of all that compare."""
    variants = [variant for variant in study.variants if variant.done()][:_SHOWN_VARIANTS]
    seeds = shared_seeds(variants)
    runs, notes = study.runs(variants, seeds)
    if not runs:
        return [Section("Runs", [Points(notes, warning=True)])] if notes else []
    seed = f"of seed {seeds[0]}" if seeds else "the first that finished; no seed is done in all"
    warned: list[Block] = [Points(notes, warning=True)] if notes else []
    return [
        Section("Training", [*warned, Text(f"One run per variant, {seed}."), *curves(runs)]),
        Section("Who is served, and with what", variant_breakdowns(study, variants)),
        Section("Map of the items", embeddings(study.runs(variants, [])[0])),
    ]


def _named(study: Study, variant: Variant) -> str:
    chosen = None if study.view == "cost" else study.chosen
    marks = [mark for mark, name in (("base", study.base), ("chosen", chosen)) if variant.name == name]
    return f"{variant.name} ({', '.join(marks)})" if marks else variant.name
