"""The report of one run, or of several beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bm3_dgl.report.compare import changed_settings, spell
from bm3_dgl.report.curves import curves
from bm3_dgl.report.document import (
    SPLITS,
    Block,
    Cell,
    Listing,
    Points,
    Report,
    Section,
    Table,
    Text,
    number,
    ranked,
    unique_names,
    words,
)
from bm3_dgl.report.embedding import embeddings
from bm3_dgl.report.reach import breakdowns
from bm3_dgl.report.run import Run, numbers, one_number
from bm3_dgl.report.spent import spent


def run_report(runs: Sequence[Run]) -> Report:
    """One page of runs, in the order given."""
    runs = [replace(run, name=name) for run, name in zip(runs, unique_names([run.name for run in runs]), strict=True)]
    title = f"Run {runs[0].name}" if len(runs) == 1 else "Runs " + ", ".join(run.name for run in runs)
    sections = [
        Section("Results", _results(runs)),
        Section("Training", curves(runs)),
        Section("Who is served, and with what", breakdowns(runs)),
        Section("Map of the items", embeddings(runs)),
        Section("Time and memory", spent(runs)),
        Section("Settings", _settings(runs)),
    ]
    return Report(title, [str(run.directory) for run in runs], sections)


def _results(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = []
    if notes := [_of(run, note, runs) for run in runs for note in [*run.notes, *_summary_note(run)]]:
        blocks.append(Points(notes, warning=True))
    blocks.append(Text(_headline(runs)))
    if table := results_table(runs):
        blocks.append(table)
    if len({run.dataset_hash for run in runs if run.dataset_hash}) > 1:
        blocks.append(Points(["The runs are of different datasets: their metrics do not compare."], warning=True))
    return blocks


def results_table(runs: Sequence[Run]) -> Table | None:
    """A row per run and split; None where no run has been judged."""
    names = list(dict.fromkeys(name for run in runs for split in SPLITS for name in numbers(run.summary, split)))
    rows: list[list[Cell]] = []
    for split, shown in SPLITS.items():
        judged = [(run, numbers(run.summary, split)) for run in runs]
        judged = [(run, values) for run, values in judged if values]
        marks = {name: ranked([values.get(name) for _, values in judged]) for name in names}
        for place, (run, values) in enumerate(judged):
            cells = [number(values.get(name), mark=marks[name][place]) for name in names]
            rows.append([words(run.name), words(shown), number(run.best_epoch, "d"), *cells])
        popular = next((p for run, _ in judged if (p := numbers(run.summary, "popularity", split))), {})
        if popular:
            rows.append([words("popularity"), words(shown), number(None), *(number(popular.get(name)) for name in names)])
    if not rows:
        return None
    best = " Best in bold, second best underlined." if len(runs) > 1 else ""
    caption = f"Metrics at the epoch that validation chose, beside the ranking of all items by train interactions.{best}"
    return Table("results", caption, ["run", "split", "epoch", *names], rows)


def _headline(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side. The test split was ranked once per run, at its best validation epoch."
    run = runs[0]
    parts = [f"`{run.directory}`"]
    if name := run.summary.get("model", run.settings.get("model.name")):
        parts.append(f"model {name}" if isinstance(name, str) else "")
    if (ranks := run.summary.get("world_size")) is not None:
        parts.append(f"{ranks} rank{'s' if ranks != 1 else ''}")
    if (epochs := run.summary.get("epochs_run")) is not None:
        stopped = ", stopped early" if run.summary.get("stopped_early") else ""
        parts.append(f"{epochs} epochs{stopped}")
    users = numbers(run.summary, "users")
    parts += [f"{int(count):,} users judged on {SPLITS[split]}" for split, count in users.items() if split in SPLITS]
    if run.dataset is not None:
        counts = run.dataset.manifest["counts"]
        parts.append(f"{counts['users']:,} users, {counts['items']:,} items, {counts['train']:,} train interactions")
    gain = _gain(run)
    return "; ".join(part for part in parts if part) + "." + (f" {gain}" if gain else "")


def _gain(run: Run) -> str:
    name = f"recall@{run.monitor}"
    ours, popular = one_number(run.summary, "test", name), one_number(run.summary, "popularity", "test", name)
    if not ours or not popular:
        return ""
    return f"Test Recall@{run.monitor} is {ours:.4f}, {ours / popular:.1f} times that of the popularity ranking."


def _settings(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = []
    if len(runs) > 1:
        changed = changed_settings(runs)
        rows = [[words(key), *(words(spell(value)) for value in values)] for key, values in changed.items()]
        if rows:
            blocks.append(Table("settings", "Settings in which the runs differ.", ["setting", *(r.name for r in runs)], rows))
        else:
            blocks.append(Text("The runs have the same settings."))
    blocks += [Listing(f"config.yaml of {run.name}", run.config_text) for run in runs]
    return blocks


def _summary_note(run: Run) -> list[str]:
    note = run.summary.get("note")
    return [note] if isinstance(note, str) else []


def _of(run: Run, note: str, runs: Sequence[Run]) -> str:
    return note if len(runs) == 1 else f"{run.name}: {note}"
