"""Bar charts as inline SVG: no library, no script, readable in light and dark, with the numbers on the bars.

Colours come from the page's style sheet: the classes `bar`, `axis` and `label`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

_WIDTH, _HEIGHT = 560, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 22, 40  # margins: values stand on the bars, so there is no axis of them
_LABEL_WIDTH = 40  # pixels that a label below the bars needs
_CHARACTER = 6.2  # pixels of one, at the labels' size


def bar_chart(labels: Sequence[str], values: Sequence[float], *, axis: str, names: str) -> str:
    """One bar per label. axis: what the labels are; names: what the values count, for the text at the pointer.

    Labels that would overlap are left out; the text at the pointer has them all.
    """
    assert len(labels) == len(values), f"{len(labels)} labels of {len(values)} bars"
    top = max(values, default=0) or 1
    pitch = (_WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    ground = _HEIGHT - _BOTTOM
    widest = max([_LABEL_WIDTH, *(len(label) * _CHARACTER + 6 for label in labels)])
    every = max(1, int(np.ceil(widest / pitch)))
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(names)} by {_text(axis)}">']
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        left, height = _LEFT + place * pitch, (ground - _TOP) * value / top
        middle = left + pitch / 2
        parts.append(
            f'<g><title>{_text(label)}: {value:,} {_text(names)}</title><rect class="hover" x="{left:.1f}" y="{_TOP}" '
            f'width="{pitch:.1f}" height="{ground - _TOP}"/><rect class="bar" x="{left + 1:.1f}" y="{ground - height:.1f}" '
            f'width="{max(1.0, pitch - 2):.1f}" height="{height:.1f}" rx="2"/></g>'
        )
        if pitch >= len(short(value)) * _CHARACTER:
            parts.append(_label(middle, ground - height - 5, short(value)))
        if place % every == 0:
            parts.append(_label(middle, ground + 15, label))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{ground}" y2="{ground}"/>')
    parts.append(_label(_WIDTH / 2, _HEIGHT - 6, axis))
    return "".join(parts) + "</svg>"


def doubling_bins(counts: np.ndarray) -> tuple[list[str], list[int]]:
    """How many of `counts`, int (n,) >= 0, are 0, 1, 2, 3-4, 5-8, ...; labels and numbers, from the first used bin on."""
    if not len(counts):
        return [], []
    edges = [0, 1, 2, *(2**power + 1 for power in range(1, int(counts.max()).bit_length() + 1))]
    used = [edge for edge in edges if edge <= counts.max()]
    numbers = np.histogram(counts, bins=[*used, int(counts.max()) + 1])[0]
    ends = [following - 1 for following in edges[1:]]
    labels = [str(begin) if begin == end else f"{begin}–{end}" for begin, end in zip(edges, ends, strict=False)]
    first = int(np.argmax(numbers > 0))
    return labels[first : len(used)], [int(number) for number in numbers[first:]]


def short(value: float) -> str:
    """A number in few characters: 950, 12k, 3.4M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def _label(x: float, y: float, text: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{_text(text)}</text>'


def _text(text: str) -> str:
    return html.escape(text)
