"""A page of HTML in one string: style sheet within, no script, no address outside. Light and dark as the reader's system is.

A `cell` and every text below is HTML that is escaped already: whatever comes from data goes through `escape` first.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d2129; --soft: #5b6472; --line: #dde1e8; --paper: #fff; --panel: #f4f6f8; --bar: #3b6fb6; --warn: #9a4a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ef; --soft: #99a2b3; --line: #373d49; --paper: #16191f; --panel: #1f242c; --bar: #6f9fe0; --warn: #f0a860;
  }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1120px; margin: 2em auto; padding: 0 1.2em;
}
h1 { font-size: 1.6em; margin-bottom: 0 }
h2 { font-size: 1.2em; margin: 2em 0 .6em }
h3 { font-size: 1em; margin: 1.2em 0 .3em }
p, .soft { color: var(--soft) }
.warn { color: var(--warn) }
.tiles { display: flex; flex-wrap: wrap; gap: .7em; margin: 1.2em 0 }
.tile { background: var(--panel); border-radius: 8px; padding: .6em 1em; min-width: 6.5em }
.tile b { display: block; font-size: 1.35em; font-variant-numeric: tabular-nums }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1.4em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3em 1em .3em 0; border-bottom: 1px solid var(--line); vertical-align: top }
td { overflow-wrap: anywhere }
td:first-child { white-space: nowrap }
th { color: var(--soft); font-weight: 600; white-space: nowrap }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
ol { margin: .2em 0; padding-left: 1.5em }
code { font-size: .92em }
svg { width: 100%; height: auto }
.bar { fill: var(--bar) }
.hover { fill: transparent }
g:hover .hover { fill: var(--panel) }
.axis { stroke: var(--line) }
.label { fill: var(--soft); font: 11px system-ui, sans-serif }
"""


def document(title: str, sections: Iterable[str], *, style: str = "") -> str:
    """The whole page; empty sections leave no trace. style: rules after the common ones."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}{style}</style></head>"
    )
    return "\n".join([head, "<body>", *filter(None, sections), "</body></html>", ""])


def section(title: str, *parts: str) -> str:
    return f"<h2>{title}</h2>" + "".join(parts)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A head that begins with # makes its column one of numbers; the sign is not shown."""
    classes = [' class="number"' if head.startswith("#") else "" for head in heads]

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(classes, cells, strict=True))
        return f"<tr>{marked}</tr>"

    head = line("th", [head.removeprefix("#") for head in heads]) if any(heads) else ""
    return f'<div class="scroll"><table>{head}{"".join(line("td", row) for row in rows)}</table></div>'


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Large numbers side by side: (number, what it is)."""
    return '<div class="tiles">' + "".join(f'<div class="tile"><b>{value}</b>{name}</div>' for value, name in pairs) + "</div>"


def columns(parts: Iterable[str]) -> str:
    """Side by side where the page is wide enough."""
    return '<div class="columns">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def items(entries: Iterable[str], *, ordered: bool = False, mark: str = "") -> str:
    """A list; mark: a class of the style sheet."""
    tag, kind = "ol" if ordered else "ul", f' class="{mark}"' if mark else ""
    return f"<{tag}{kind}>" + "".join(f"<li>{entry}</li>" for entry in entries) + f"</{tag}>"


def soft(text: str) -> str:
    return f'<span class="soft">{text}</span>'


def code(text: str) -> str:
    return f"<code>{text}</code>"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def escape(value: Any, length: int | None = None) -> str:
    """The value's text with nothing in it that HTML could take for its own; cut to `length` characters."""
    text = str(value)
    return html.escape(text if length is None or len(text) <= length else text[: length - 1] + "…")
