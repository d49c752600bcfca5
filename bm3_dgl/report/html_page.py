"""A report as one HTML page: no script, nothing from elsewhere; the data report's look (data/page.py), for phones too."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from bm3_dgl.data import page
from bm3_dgl.data.page import escape
from bm3_dgl.report.document import Block, Cell, Figure, Listing, Points, Report, Table, Text
from bm3_dgl.report.palette import PALETTE_CSS, for_page

_STYLE = (
    PALETTE_CSS
    + """
body { max-width: 1180px; line-height: 1.55 }
h1 { line-height: 1.2; overflow-wrap: anywhere }
h2 { border-top: 1px solid var(--line); padding-top: 1em; margin-top: 1.8em }
p { max-width: 46em }
li { max-width: 46em; margin: .25em 0; overflow-wrap: anywhere }
ul.note { background: var(--panel); border-left: 4px solid var(--warn); padding: .5em 1em .5em 2em; list-style: "! " }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1.2em; margin: 1em 0 }
figure { margin: 0; max-width: 560px; break-inside: avoid }
figcaption, .caption { color: var(--soft); font-size: .92em; text-align: left }
.caption { margin: 1.2em 0 .2em }
.scroll { margin: 0 0 1em; break-inside: avoid }
.scroll:focus-visible { outline: 2px solid var(--s0) }
.scroll table { width: auto; min-width: min(100%, 30em) }
tbody th { text-align: left; font-weight: 400; color: var(--ink); white-space: normal; max-width: 22em;
  overflow-wrap: break-word; position: sticky; left: 0; background: var(--paper); padding-right: .8em }
td { white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; padding: .3em .2em .3em 1.1em }
td.words { text-align: left; white-space: normal; min-width: 8em }
thead th { text-align: right; padding-left: 1.1em; padding-right: .2em; vertical-align: bottom; white-space: normal }
thead th:first-child, thead th.words { text-align: left }
thead th:first-child { padding-left: 0 }
td b { font-weight: 700 }
td u { text-underline-offset: 3px; text-decoration-thickness: 1.5px }
pre { overflow-x: auto; background: var(--panel); padding: .8em 1em; border-radius: 8px; font-size: .85em }
summary { cursor: pointer; color: var(--soft) }
@media (max-width: 500px) { body { margin: 1em auto; padding: 0 1em; font-size: 14.5px } tbody th { max-width: 38vw } }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt }
  .charts { grid-template-columns: 1fr 1fr }
  details { display: none }
}
"""
)


def render(report: Report, folder: str) -> str:
    """folder: name of the directory with the CSV files, said to the reader and not needed by the page."""
    parts = [f"<main><h1>{escape(report.title)}</h1>"]
    for section in report.sections:
        parts.append(page.section(escape(section.title), *_blocks(section.blocks, section.title)))
    end = f"<p>Every number of the tables: CSV files in {page.code(escape(folder))}, beside this page.</p></main>"
    return page.document(escape(report.title), [*parts, end], style=_STYLE)


def _blocks(blocks: Iterable[Block], where: str) -> list[str]:
    """Figures that follow one another stand side by side."""
    parts = []
    for charts, run in groupby(blocks, lambda block: isinstance(block, Figure)):
        rendered = [_block(block) for block in run]
        parts += ['<div class="charts">' + "".join(rendered) + "</div>"] if charts else rendered
    return parts


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{_with_code(text)}</p>"
        case Points(lines, warning):
            return page.items(map(_with_code, lines), mark="note" if warning else "")
        case Figure():
            name = escape(block.name)
            svg = for_page(block.svg, name).replace("<svg", f'<svg role="img" aria-label="{escape(block.alt)}"', 1)
            caption = f"<figcaption>{_with_code(block.caption)}</figcaption>" if block.caption else ""
            return f"<figure>{caption}{svg}</figure>"
        case Table():
            return _table(block)
        case Listing(title, text):
            return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _table(table: Table) -> str:
    kinds = [_kind(column) for column in zip(*table.rows, strict=True)] if table.rows else [""] * len(table.heads)
    heads = "".join(f'<th scope="col"{kind}>{_with_code(head)}</th>' for head, kind in zip(table.heads, kinds, strict=True))
    rows = []
    for first, *rest in table.rows:
        cells = "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        rows.append(f'<tr><th scope="row">{_cell(first)}</th>{cells}</tr>')
    # Outside the part that scrolls, so that a narrow screen shows the whole of it.
    name = f"table-{escape(table.name)}"
    caption = f'<p class="caption" id="{name}">{_with_code(table.caption)}</p>'
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    region = f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}">'
    return f'{caption}{region}<table aria-labelledby="{name}">{body}</table></div>'


def _kind(column: Iterable[Cell]) -> str:
    return ' class="words"' if any(isinstance(cell.value, str) for cell in column) else ""


def _cell(cell: Cell) -> str:
    text = _with_code(cell.text)
    return {"best": f"<b>{text}</b>", "second": f"<u>{text}</u>", "": text}[cell.mark]


def _with_code(text: str) -> str:
    """Escaped, with `code` between backticks."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    return "".join(page.code(escape(piece)) if place % 2 else escape(piece) for place, piece in enumerate(pieces))
