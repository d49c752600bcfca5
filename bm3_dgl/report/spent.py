"""What runs cost: seconds, their phases, memory, and how these went over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bm3_dgl.report.document import Block, Cell, Figure, Table, Text, number, ranked, words
from bm3_dgl.report.figures import Line, lines, stacked
from bm3_dgl.report.run import Run, is_number, numbers, one_number

_SHOWN_RUNS = 8
_GIB = 2**30


def spent(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = [cost_table(runs)]
    if phases := _phases(runs):
        blocks += phases
    shown = runs[:_SHOWN_RUNS]
    rate = [_line(run, "pairs_per_second", 1.0) for run in shown]
    memory = [_memory_line(run) for run in shown]
    for name, caption, series, y in (
        ("rate", "Training pairs per second.", rate, "pairs / s"),
        ("memory", "Memory of all processes at the ends of epochs (PSS).", memory, "GiB"),
    ):
        if series := [line for line in series if line.x]:
            alt = f"{caption} " + "; ".join(f"{line.label}: {line.y[-1]:.4g} at the end" for line in series)
            blocks.append(Figure(name, caption, alt, lines(series, x="epoch", y=y)))
    return blocks if runs else [Text("Nothing has been timed.")]


def cost_table(runs: Sequence[Run]) -> Table:
    """Medians of an epoch; the smallest time and memory are the best."""
    epoch = [_seconds(run, "train_epoch", run.train) for run in runs]
    judged = [_seconds(run, "evaluation", run.valid) for run in runs]
    peak = [peak_bytes(run) for run in runs]
    marks = [ranked(values, smaller=True) for values in (epoch, judged, peak)]
    rows: list[list[Cell]] = []
    for place, run in enumerate(runs):
        rates = [line["pairs_per_second"] for line in run.train if is_number(line.get("pairs_per_second"))]
        most = peak[place]
        rows.append(
            [
                words(run.name),
                number(one_number({"s": run.summary}, "s", "world_size"), "g"),
                number(one_number(run.summary, "seconds", "startup"), ".1f"),
                number(epoch[place], ".3f", mark=marks[0][place]),
                number(judged[place], ".3f", mark=marks[1][place]),
                number(one_number(run.summary, "seconds", "step"), ".4f"),
                number(median(rates) if rates else None, ",.0f"),
                number(None if most is None else most / _GIB, ".2f", mark=marks[2][place]),
            ]
        )
    heads = ["run", "ranks", "start-up, s", "epoch, s", "evaluation, s", "step, s", "pairs / s", "peak memory, GiB"]
    caption = "Medians over epochs and steps; memory is the most at the end of any epoch, all processes together (PSS)."
    return Table("cost", caption, heads, rows)


def peak_bytes(run: Run) -> float | None:
    """The summary's, or the most of any epoch that was recorded. None where nothing was measured, which is written as 0."""
    told = one_number(run.summary, "memory", "peak_pss_bytes")
    seen = [value for line in run.train if (value := one_number(line, "memory", "pss_bytes")) is not None]
    return told or max(seen, default=None) or None


def _phases(runs: Sequence[Run]) -> list[Block]:
    told = {run.name: numbers(run.summary, "phases") for run in runs}
    told = {name: phases for name, phases in told.items() if phases}
    if not told:
        return []
    names = list(dict.fromkeys(phase for phases in told.values() for phase in phases))
    rows = [[words(phase), *(number(_ms(phases.get(phase)), ".2f") for phases in told.values())] for phase in names]
    rows.append([words("all"), *(number(_ms(sum(phases.values())), ".2f") for phases in told.values())])
    caption = "Milliseconds of a step by phase, mean over ranks."
    parts = {phase: [_ms(phases.get(phase)) or 0.0 for phases in told.values()] for phase in names}
    alt = f"{caption} " + "; ".join(
        f"{name}: " + ", ".join(f"{phase} {seconds * 1e3:.1f}" for phase, seconds in phases.items())
        for name, phases in told.items()
    )
    chart = Figure("phases", caption, alt, stacked(list(told), parts, x="ms of a step"))
    return [Table("phases_ms", caption, ["phase", *told], rows), chart]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _seconds(run: Run, name: str, entries: Sequence[dict]) -> float | None:
    """The summary's median, or that of the lines so far."""
    told = one_number(run.summary, "seconds", name)
    seen = [entry["seconds"] for entry in entries if is_number(entry.get("seconds"))]
    return told if told is not None else median(seen) if seen else None


def _line(run: Run, key: str, unit: float) -> Line:
    found = [(entry["epoch"], entry[key] / unit) for entry in run.train if is_number(entry.get(key))]
    return Line(run.name, [epoch for epoch, _ in found], [value for _, value in found])


def _memory_line(run: Run) -> Line:
    found = [(entry["epoch"], one_number(entry, "memory", "pss_bytes")) for entry in run.train]
    known = [(epoch, value / _GIB) for epoch, value in found if value]
    return Line(run.name, [epoch for epoch, _ in known], [value for _, value in known])
