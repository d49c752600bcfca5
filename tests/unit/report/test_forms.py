"""Cells, charts, Markdown and files: what is foreign stays text, what is written is whole."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bm3_dgl.errors import DataError
from bm3_dgl.report import figures, html_page, markdown
from bm3_dgl.report.document import Cell, Figure, Listing, Points, Report, Section, Table, Text, number, ranked, unique_names
from bm3_dgl.report.embedding import principal_components
from bm3_dgl.report.files import write_report
from bm3_dgl.report.palette import for_file, for_page

NASTY = '<script>alert("x")</script> | *a* [b](c) `d` $x$ & </svg>'


def report() -> Report:
    svg = figures.lines([figures.Line(NASTY, [1, 2], [0.1, 0.2]), figures.Line("b", [1, 2], [1, 2])], x=NASTY, y="y")
    table = Table(
        "t", NASTY, [NASTY, "n"], [[Cell(NASTY, NASTY), number(0.123456, mark="best")], [Cell("x", "x"), number(None)]]
    )
    blocks = [
        Text(NASTY),
        Points([NASTY], warning=True),
        table,
        Figure("f", NASTY, NASTY, svg),
        Listing(NASTY, NASTY + "\n```\n"),
    ]
    return Report(NASTY, [NASTY], [Section(NASTY, blocks)])


def test_foreign_text_is_never_markup() -> None:
    page = html_page.render(report(), "files")
    assert "<script" not in page and "alert(&quot;x&quot;)" in page
    twin = markdown.render(report(), "files")
    outside = re.sub(r"````\n.*?\n````", "", twin, flags=re.DOTALL)
    assert "````" in twin and "<script" not in outside and "[b](c)" not in outside
    row = next(line for line in outside.splitlines() if line.startswith("| &lt;script"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3, "a bar in a cell does not end it"


def test_numbers_in_csv_are_unrounded(tmp_path: Path) -> None:
    page, twin, folder = write_report(report(), tmp_path / "r.html")
    rows = list(csv.reader((folder / "t.csv").open(encoding="utf-8")))
    assert rows == [[NASTY, "n"], [NASTY, "0.123456"], ["x", ""]]
    assert "<b>0.1235</b>" in page.read_text() and "**0.1235**" in twin.read_text() and "–" in twin.read_text()
    ElementTree.parse(folder / "f.svg")


def test_a_report_replaces_its_own_and_nothing_else(tmp_path: Path) -> None:
    write_report(report(), tmp_path / "r.html")
    (tmp_path / "r_files" / "old.csv").write_text("")
    write_report(report(), tmp_path / "r.html")
    assert not (tmp_path / "r_files" / "old.csv").exists()
    (tmp_path / "s_files").mkdir()
    (tmp_path / "s_files" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="s_files: exists and is not of a report; remove it or choose another --out"):
        write_report(report(), tmp_path / "s.html")
    assert (tmp_path / "s_files" / "mine.txt").read_text() == "kept" and not (tmp_path / "s.html").exists()


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.md").mkdir()  # a directory where the twin would go
    with pytest.raises(DataError, match=r"r.html: the report cannot be written"):
        write_report(report(), tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_marks_go_to_the_best_numbers_only() -> None:
    assert ranked([0.1, 0.3, None, 0.2, 0.3, float("nan")]) == ["", "best", "", "second", "best", ""]
    assert ranked([3.0, 1.0, 2.0], smaller=True) == ["", "best", "second"]
    assert ranked([0.1, None]) == ["", ""]
    assert number(float("nan")).text == "not a number" and number(float("nan"), mark="best").mark == ""
    assert unique_names(["a", "b", "a"]) == ["a", "b", "a (2)"]


CHARTS = {
    "lines": figures.lines([figures.Line("a", [1, 2], [0.1, float("nan")], marked=1)], x="x", y="y", chosen=2),
    "log": figures.lines([figures.Line("a", [1, 2], [0.1, 10.0]), figures.Line("b", [1], [1.0])], x="x", y="y", log=True),
    "no positive value": figures.lines([figures.Line("a", [1, 2], [0.0, 0.0])], x="x", y="y", log=True),
    "settings": figures.lines([figures.Line("a", [0.0001, 0.1], [1, 2], band=([0, 1], [2, 3]))], x="x", y="y", epochs=False),
    "bars": figures.bars(["a", "b"], {"r": [1, 2], "s": [2, 1]}, x="x", y="y", errors={"r": [0.1, 0.1]}),
    "stacked": figures.stacked(["a"], {str(n): [1.0] for n in range(10)}, x="ms"),
    "intervals": figures.intervals(["a"], [1.0], [0.9], [1.1], x="x", base=1.0),
    "heat": figures.heat(["a"], ["b", "c"], np.array([[0.1, np.nan]]), y="y", x="x", best=(0, 0)),
    "empty heat": figures.heat(["a"], ["b"], np.array([[np.nan]]), y="y", x="x", best=None),
    "points": figures.points({"a": np.zeros((3, 2)), "b": np.ones((2, 2))}, x="x", y="y"),
    "shaded": figures.shaded_points(np.zeros((3, 2)), np.arange(3.0), x="x", y="y", scale="s"),
    "scatter": figures.scatter(["a", "b"], [1.0, 2.0], x="x", y="y", log=False, best=1, line=[1.0, 2.0]),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_take_the_colours_of_their_place(name: str) -> None:
    alone = ElementTree.fromstring(for_file(CHARTS[name]))
    assert alone.tag.endswith("svg") and "var(--" not in for_file(CHARTS[name])
    page = for_page(CHARTS[name], "here")
    assert ("http" not in page and "var(--ink)" in page) or "var(--soft)" in page
    assert not re.search(r"#(0[1-4]){3}\b|#a1000\d", page), "a placeholder was left"
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert all(one.startswith("here-") for one in ids)
    assert {one for one in re.findall(r'(?:href="#|url\(#)([^")]*)', page)} <= set(ids)


def test_the_same_chart_is_the_same_text() -> None:
    draw = lambda: figures.bars(["a"], {"r": [1.0]}, x="x", y="y")  # noqa: E731
    assert draw() == draw()


def test_principal_components_are_those_of_the_singular_values() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 8)) @ np.diag([9, 5, 3, 1, 1, 1, 1, 1]) + 4.0
    places, shares = principal_components(rows.astype(np.float32))
    centred = rows - rows.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    for k in range(2):
        expected = centred @ directions[k]
        assert min(np.abs(places[:, k] - expected).max(), np.abs(places[:, k] + expected).max()) < 1e-4
    assert shares == pytest.approx(singular[:2] ** 2 / (singular**2).sum(), rel=1e-6)
