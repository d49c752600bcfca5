"""A report as Markdown: the page's twin, for where a page cannot be shown. Figures and CSV files stand beside it."""

from __future__ import annotations

import html
import re
from urllib.parse import quote

from bm3_dgl.report.document import Block, Cell, Figure, Listing, Points, Report, Table, Text

_SPECIAL = re.compile(r"([\\*_\[\]|#~])")


def render(report: Report, folder: str) -> str:
    """folder: name of the directory with the figures and CSV files, beside the Markdown file."""
    parts = [f"# {escape(report.title)}"]
    for section in report.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text in which nothing is Markdown's or HTML's but `code`, in one line."""
    pieces = " ".join(text.split()).split("`")
    if len(pieces) % 2 == 0:  # an odd backtick out is no code
        pieces = ["'".join(pieces)]
    plain = [_SPECIAL.sub(r"\\\1", html.escape(piece, quote=False)) for piece in pieces[::2]]
    code = [f"`{piece}`".replace("|", "\\|") for piece in pieces[1::2]]
    return "".join(text for pair in zip(plain, [*code, ""], strict=True) for text in pair)


def _block(block: Block, folder: str) -> str:
    match block:
        case Text(text):
            return escape(text)
        case Points(lines, warning):
            return "\n".join(f"- {'**Note:** ' if warning else ''}{escape(line)}" for line in lines)
        case Figure():
            caption = f"\n\n{escape(block.caption)}" if block.caption else ""
            return f"![{escape(block.alt)}]({quote(folder)}/{block.name}.svg){caption}"
        case Table():
            return _table(block, folder)
        case Listing(title, text):
            fence = "`" * (3 + max((len(run) for run in re.findall("`+", text)), default=0))
            return f"{escape(title)}\n\n{fence}\n{text}\n{fence}"


def _table(table: Table, folder: str) -> str:
    head = "| " + " | ".join(escape(head) or " " for head in table.heads) + " |"
    line = "|---|" + "---:|" * (len(table.heads) - 1)
    rows = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows]
    note = f"{escape(table.caption)} ([CSV]({quote(folder)}/{table.name}.csv))".strip()
    return "\n".join([note, "", head, line, *rows])


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return {"best": f"**{text}**", "second": f"<u>{text}</u>", "": text}[cell.mark]
