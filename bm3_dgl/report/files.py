"""Writing a report, whole or not at all: the page, its Markdown twin, and a directory of figures and CSV files.

NAME.html          the page, self-contained
NAME.md            the same as Markdown, with the figures of NAME_files/
NAME_files/        report.json (what it is of), <table>.csv, <figure>.svg
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

from bm3_dgl.errors import DataError
from bm3_dgl.report import html_page, markdown
from bm3_dgl.report.document import Report, Table
from bm3_dgl.report.palette import for_file

_INDEX = "report.json"  # by which a directory is known as ours, to be replaced


def write_report(report: Report, out: Path) -> list[Path]:
    """Write everything for `out`, a path that ends in .html; returns the three paths.

    Raises DataError where that cannot be done; what was there before is then still there.
    """
    folder, twin = out.with_name(f"{out.stem}_files"), out.with_suffix(".md")
    if folder.exists() and not (folder / _INDEX).is_file():
        raise DataError(f"{folder}: exists and is not of a report; remove it or choose another --out")
    mark = f".{os.getpid()}.tmp"
    new_folder, new_page, new_twin = (path.with_name(f".{path.name}{mark}") for path in (folder, out, twin))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_folder(report, new_folder)
        new_page.write_text(html_page.render(report, folder.name), encoding="utf-8")
        new_twin.write_text(markdown.render(report, folder.name), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new_folder.replace(folder)
        new_twin.replace(twin)
        new_page.replace(out)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{out}: the report cannot be written ({reason}); free space or choose another --out") from None
    finally:
        shutil.rmtree(new_folder, ignore_errors=True)
        for part in (new_page, new_twin):
            part.unlink(missing_ok=True)
    return [out, twin, folder]


def _write_folder(report: Report, folder: Path) -> None:
    folder.mkdir()
    tables, figures = report.tables(), report.figures()
    names = [table.name for table in tables] + [figure.name for figure in figures]
    assert len(set(names)) == len(names), f"two blocks of one name: {sorted(names)}"
    for table in tables:
        (folder / f"{table.name}.csv").write_text(_csv(table), encoding="utf-8")
    for figure in figures:
        (folder / f"{figure.name}.svg").write_text(for_file(figure.svg), encoding="utf-8")
    index = {
        "schema_version": 1,
        "title": report.title,
        "sources": list(report.sources),
        "tables": {table.name: table.caption for table in tables},
        "figures": {figure.name: figure.alt for figure in figures},
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.heads)
    writer.writerows([["" if cell.value is None else cell.value for cell in row] for row in table.rows])
    return text.getvalue()
