"""Charts by matplotlib as SVG text, in the placeholder colours of palette.py.

Charts are small (4.6 x 3 in): a phone shows one per row with readable text, a desktop several. Series differ in dashes,
markers or hatches too, not in colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.patches
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from bm3_dgl.report.canvas import draw_svg, legend, legend_rows, shorten
from bm3_dgl.report.palette import INK, LINE, PAPER, SERIES, SOFT

_DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
# Of points in a picture, which no style sheet reaches: between light and dark, so that both papers suit them.
_MIDDLE = ["#3f83cf", "#e0702a", "#2f9e6b", "#9a66d4", "#b08d10", "#d4548f", "#1d97a4", "#8a93a0"]
_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Line:
    """One series. band: lower and upper values; marked: the x of a point to mark."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    marked: float | None = None


def lines(
    series: Sequence[Line], *, x: str, y: str, log: bool = False, epochs: bool = True, chosen: float | None = None
) -> str:
    """Lines over a common axis. epochs: x holds whole numbers; otherwise every x is a setting of its own, with a tick and
    a marker. chosen: an x to mark by a vertical line."""

    def draw(axes: Axes) -> None:
        for number, line in enumerate(series):
            colour = SERIES[number % len(SERIES)]
            few = not epochs or len(line.x) == 1
            style: dict[str, Any] = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 5} if few else {}
            axes.plot(line.x, line.y, color=colour, linestyle=_DASHES[number % 4], label=line.label, **style)
            if line.band is not None:
                axes.fill_between(line.x, *line.band, color=colour, alpha=0.18, linewidth=0)
            if line.marked is not None and line.marked in line.x:
                height = line.y[list(line.x).index(line.marked)]
                axes.plot([line.marked], [height], "o", color=colour, markeredgecolor=PAPER, markersize=7, zorder=5)
        if chosen is not None:
            axes.axvline(chosen, color=SOFT, linewidth=1, linestyle=(0, (2, 2)))
            left, right = axes.get_xlim()
            side: Any = "right" if chosen > (left + right) / 2 else "left"
            axes.annotate(f"chosen: {chosen:g}", (chosen, 1.02), xycoords=("data", "axes fraction"), ha=side, color=SOFT)
        if log and any(value > 0 for line in series for value in line.y):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if epochs:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        else:
            _tick_every(axes, sorted({value for line in series for value in line.x}))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        legend(axes, [line.label for line in series])

    return draw_svg(draw, rows=legend_rows([line.label for line in series]))


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float]], *, x: str, y: str,
         errors: Mapping[str, Sequence[float]] | None = None) -> str:  # fmt: skip
    """Bars side by side in each group. errors: half lengths of the whiskers."""

    def draw(axes: Axes) -> None:
        width, place = 0.8 / max(1, len(series)), np.arange(len(groups))
        for number, (label, values) in enumerate(series.items()):
            left = place + (number - (len(series) - 1) / 2) * width
            style: dict[str, Any] = {
                "color": SERIES[number % len(SERIES)],
                "edgecolor": PAPER,
                "linewidth": 0.6,
                "label": label,
            }
            axes.bar(left, values, width, hatch=["", "////", "\\\\\\\\", "xxxx"][number % 4] or None, **style)
            if errors is not None and label in errors:
                axes.errorbar(left, values, yerr=errors[label], fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
        slanted = len(groups) > 7 or max(map(len, groups), default=0) > 10
        turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_xticks(place, [shorten(group, 22) for group in groups], **turned)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        legend(axes, list(series))

    return draw_svg(draw, rows=legend_rows(list(series)))


def gains(groups: Sequence[str], series: Mapping[str, Sequence[float]], errors: Mapping[str, Sequence[float]], *, x: str, y: str) -> str:  # noqa: E501  # fmt: skip
    """Differences side by side in each group, about a line of zero. errors: half lengths of the whiskers, NaN for none."""

    def draw(axes: Axes) -> None:
        place = np.arange(len(groups))
        for number, (label, values) in enumerate(series.items()):
            left = place + (number - (len(series) - 1) / 2) * 0.7 / max(1, len(series))
            colour = SERIES[(number + 1) % len(SERIES)]  # the first is the base's
            marker = _MARKERS[number % len(_MARKERS)]
            axes.errorbar(left, values, yerr=errors[label], fmt=marker, color=colour, capsize=2, markersize=4, label=label)
        axes.axhline(0, color=INK, linewidth=0.8)
        slanted = len(groups) > 7 or max(map(len, groups), default=0) > 10
        turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_xticks(place, [shorten(group, 22) for group in groups], **turned)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        legend(axes, list(series))

    return draw_svg(draw, rows=legend_rows(list(series)))


def stacked(rows: Sequence[str], parts: Mapping[str, Sequence[float]], *, x: str) -> str:
    """One horizontal bar per row, made of its parts."""

    def draw(axes: Axes) -> None:
        place, begin = np.arange(len(rows))[::-1], np.zeros(len(rows))
        for number, (label, values) in enumerate(parts.items()):
            hatch = "////" if number >= len(SERIES) else None
            style: dict[str, Any] = {"color": SERIES[number % len(SERIES)], "edgecolor": PAPER, "linewidth": 0.8}
            axes.barh(place, values, 0.6, left=begin, label=label, hatch=hatch, **style)
            begin = begin + np.asarray(values)
        axes.set_yticks(place, [shorten(row, 18) for row in rows])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x)
        legend(axes, list(parts))

    return draw_svg(draw, rows=legend_rows(list(parts)), height=1.3 + 0.34 * len(rows))


def intervals(rows: Sequence[str], mean: Sequence[float], low: Sequence[float], high: Sequence[float], *, x: str, base: float | None) -> str:  # noqa: E501  # fmt: skip
    """Means with intervals, one row each, from the top; base: a value to hold them against."""

    def draw(axes: Axes) -> None:
        place = np.arange(len(rows))[::-1]
        reach = np.array([np.subtract(mean, low), np.subtract(high, mean)])
        axes.errorbar(mean, place, xerr=reach, fmt="o", color=SERIES[0], ecolor=SERIES[0], capsize=3, markersize=5)
        if base is not None:
            axes.axvline(base, color=SOFT, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(place, [shorten(row, 26) for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x)

    return draw_svg(draw, height=1.0 + 0.3 * len(rows))


def heat(
    rows: Sequence[str], columns: Sequence[str], values: np.ndarray, *, y: str, x: str, best: tuple[int, int] | None
) -> str:
    """A map of values, float (rows, columns), NaN where there is none; best: the cell to mark."""

    def draw(axes: Axes) -> None:
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        scale = matplotlib.colormaps["YlGnBu"]
        for (row, column), value in np.ndenumerate(values):
            share = 0.15 + 0.75 * ((value - low) / (high - low) if high > low else 0.5)
            fill = scale(share) if np.isfinite(value) else LINE
            axes.add_patch(matplotlib.patches.Rectangle((column, row), 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=1.5))
            text = f"{value:.4f}" if np.isfinite(value) else "–"
            dark = np.isfinite(value) and share > 0.55
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else "#1d2129", size=8.5)
        if best is not None:
            frame: dict[str, Any] = {"fill": False, "edgecolor": SERIES[1], "linewidth": 2.6, "zorder": 5}
            axes.add_patch(matplotlib.patches.Rectangle((best[1], best[0]), 1, 1, **frame))
        axes.set_xlim(0, len(columns))
        axes.set_ylim(0, len(rows))
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return draw_svg(draw, height=1.1 + 0.42 * len(rows))


def points(groups: Mapping[str, np.ndarray], *, x: str, y: str, dots: float = 3.0) -> str:
    """Clouds of points, float (n, 2) each, in one picture inside the chart: there may be thousands."""

    def draw(axes: Axes) -> None:
        for number, (label, places) in enumerate(groups.items()):
            colour = _MIDDLE[number % len(_MIDDLE)]
            axes.scatter(
                places[:, 0], places[:, 1], s=dots, color=colour, alpha=0.75, linewidths=0, rasterized=True, label=label
            )
        _bare(axes, x, y)
        legend(axes, list(groups), dots=True)

    return draw_svg(draw, rows=legend_rows(list(groups)), height=3.4)


def shaded_points(places: np.ndarray, values: np.ndarray, *, x: str, y: str, scale: str) -> str:
    """A cloud of points, float (n, 2), coloured by values (n,); scale: what they are."""

    def draw(axes: Axes) -> None:
        drawn = axes.scatter(places[:, 0], places[:, 1], s=3, c=values, cmap="plasma", linewidths=0, rasterized=True)
        _bare(axes, x, y)
        bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
        bar.set_label(scale)
        bar.outline.set_visible(False)

    return draw_svg(draw, height=3.2)


def scatter(
    x_values: Sequence[Any],
    y_values: Sequence[float],
    *,
    x: str,
    y: str,
    log: bool,
    best: int,
    line: Sequence[float] | None = None,
) -> str:
    """Few points, x numbers or words; best: the one to mark. line: heights of a line through all x."""
    labels = ["best", *(["best so far"] if line is not None else [])]

    def draw(axes: Axes) -> None:
        axes.plot(x_values, y_values, "o", color=SERIES[0], alpha=0.75, markersize=5)
        axes.plot([x_values[best]], [y_values[best]], "D", color=SERIES[1], markersize=8, label="best")
        if line is not None:
            axes.step(x_values, line, where="post", color=SOFT, linewidth=1.2, label="best so far")
        legend(axes, labels)
        if all(isinstance(value, (int, float)) and value == int(value) for value in x_values):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return draw_svg(draw, rows=legend_rows(labels))


def _tick_every(axes: Axes, values: Sequence[float]) -> None:
    """A tick at each setting; on a logarithmic axis where they spread over more than a hundredfold."""
    if values and values[0] > 0 and values[-1] / values[0] > 100:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _bare(axes: Axes, x: str, y: str) -> None:
    """Directions without units: no numbers, no grid."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
