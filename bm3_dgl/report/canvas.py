"""What every chart stands on: size, style, legend below, and the SVG that comes out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from bm3_dgl.report.palette import INK, LINE, PAPER, SOFT

WIDTH, HEIGHT = 4.6, 3.0  # inches
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same chart is the same text
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "text.color": INK,
    "text.parse_math": False,  # names may hold $
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw_svg(draw: Callable[[Axes], None], *, rows: int = 0, height: float = HEIGHT) -> str:
    with matplotlib.rc_context(_rc()):
        canvas = Canvas(figsize=(WIDTH, height + 0.17 * rows), layout="constrained", dpi=160)
        draw(canvas.add_subplot())
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"""(font(?:-family)?:[^;"]*?)'DejaVu Sans'[^;"]*""", r"\1system-ui, sans-serif", svg)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)


def _rc() -> Any:
    """Our style over matplotlib's own defaults: a user's settings do not matter."""
    return {**matplotlib.rcParamsDefault, **_STYLE}


def legend(axes: Axes, labels: Sequence[str], *, dots: bool = False) -> None:
    """Below the chart, in as many columns as their lengths allow; a single series needs none."""
    if len(labels) < 2:
        return
    handles, names = axes.get_legend_handles_labels()
    short = [shorten(name, 34) for name in names]
    size = {"markerscale": 2.5} if dots else {}
    axes.figure.legend(handles, short, loc="outside lower center", ncols=_legend_columns(labels), **size)


def _legend_columns(labels: Sequence[str]) -> int:
    longest = max((min(len(label), 34) for label in labels), default=1)
    return max(1, min(len(labels), 46 // (longest + 6)))


def legend_rows(labels: Sequence[str]) -> int:
    return -(-len(labels) // _legend_columns(labels)) if len(labels) > 1 else 0


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
