"""Records out of text: the fast parser and the slow one take the same, and a record ends where both say it does."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bm3_dgl.config.schema import TimeUnit
from bm3_dgl.data.blocks import Block, SourceReader, line_end
from bm3_dgl.data.columns import InteractionColumns, id_column
from bm3_dgl.data.mistakes import Mistake, Mistakes
from bm3_dgl.data.rows import CsvRows, JsonRows
from bm3_dgl.data.times import milliseconds
from bm3_dgl.errors import DataError

SHAPE = InteractionColumns("user", "item", "when", "much", TimeUnit.s)


def read(path: Path, *, skip: bool = False) -> tuple[list[dict[str, Any]], Mistakes]:
    mistakes = Mistakes(skip)
    rows = JsonRows(SHAPE, mistakes) if path.suffix == ".jsonl" else CsvRows(SHAPE, mistakes, names=None)
    reader = SourceReader(lambda _: None)
    tables = [table for block in reader.blocks(path, quoted=rows.quoted) for table in rows.read(block)]
    return pa.concat_tables(tables).to_pylist(), mistakes


def json_lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = {
    "id_whole_float.jsonl": json_lines(
        {"user": 1.0, "item": "i", "when": 5, "much": 2.5}, {"user": 2.0, "item": "j", "when": 6, "much": 1}
    ),
    "blank_lines.jsonl": json_lines({"user": 1, "item": "i", "when": 5, "much": 1})
    + "\n\n"
    + json_lines({"user": 2, "item": "j", "when": 6, "much": 1}),
    "weight_nan.csv": "user,item,when,much\n1,i,5,NaN\n2,j,6,1\n",
    "inch_mark.csv": 'user,item,when,much,name\n1,i,5,1,27" monitor\n2,j,6,1,"a ""b"" c"\n',
    "quoted_line_end.csv": 'user,item,when,much,name\n1,i,5,1,"two\nlines"\n2,j,6,1,x\n',
    "long_cell.csv": "user,item,when,much,name\n1,i,5,1," + "x" * 200_000 + "\n2,j,6,1,x\n",
    "micro.csv": "user,item,when,much\n1,i,2020-01-01 10:00:00.123456,1\n2,j,2020-01-02 10:00:00.5,1\n",
    "semicolon.csv": "user;item;when;much\n1;i;5;1\n2;j;6;2\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_both_parsers_take_the_same(tmp_path: Path, name: str) -> None:
    """A bad line sends its neighbours through the slow parser, which has to read them as the fast one does."""
    good, bad = tmp_path / name, tmp_path / f"bad_{name}"
    good.write_text(GOOD[name], encoding="utf-8")
    broken = "[]\n" if name.endswith("jsonl") else "only\n"
    bad.write_text(GOOD[name] + broken, encoding="utf-8")
    fast, _ = read(good)
    slow, mistakes = read(bad, skip=True)
    assert fast == slow and len(fast) == 2 and mistakes.count == 1
    with pytest.raises(DataError, match="line"):
        read(bad)


def test_marks_and_headers_of_joined_files(tmp_path: Path) -> None:
    part = b"\xef\xbb\xbfuser,item,when,much\n1,i,5,1\n"
    (tmp_path / "log.csv").write_bytes(part * 3)
    rows, _ = read(tmp_path / "log.csv")
    assert [row["user"] for row in rows] == ["1"] * 3


@pytest.mark.parametrize("skip", [False, True])
def test_a_quote_that_is_never_closed(tmp_path: Path, skip: bool) -> None:
    lines = ["user,item,when,much,name", *(f"{n},i,5,1,x" for n in range(50))]
    lines[6] = '5,i,5,1,"x'
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"log\.csv, line 7: a quote is opened and never closed"):
        read(tmp_path / "log.csv", skip=skip)


def test_a_header_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"user,it\rem\n1,2\n")
    with pytest.raises(DataError, match="line 1: not the header of a table"):
        read(tmp_path / "log.csv")


@pytest.mark.parametrize(
    "text",
    [r'{"user": "\ud83d", "item": "i", "when": 1, "much": 1}', r'{"user": "u", "item": "i\ud83d", "when": 1, "much": 1}'],
)
def test_half_a_letter(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(GOOD["blank_lines.jsonl"] + text + "\n", encoding="utf-8")
    rows, mistakes = read(tmp_path / "log.jsonl", skip=True)
    assert len(rows) == 2 and "lone surrogate" in mistakes.listed[0]["reason"]


@pytest.mark.parametrize("values", [{"when": 10**30}, {"much": int("1" + "0" * 400)}, {"much": 1e300}, {"when": 1.6e12}])
def test_numbers_beyond_all_bounds(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "log.jsonl").write_text(json_lines({"user": "u", "item": "i", "when": 1, "much": 1} | values), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: "):
        read(tmp_path / "log.jsonl")


def test_weights_beyond_float32() -> None:
    table = pa.table({"user": ["u"], "item": ["i"], "when": [1], "much": [1e300]})
    with pytest.raises(Mistake, match="too large for float32"):
        SHAPE.table(table)


def test_a_time_in_another_unit_is_refused() -> None:
    with pytest.raises(Mistake, match=r"1400000000000 is not of the years 1900 to 2199.*tables\.time_unit"):
        milliseconds(pa.array([1_400_000_000, 1_400_000_000_000]), TimeUnit.s)


def test_missing_times() -> None:
    nan = pa.array([np.nan, 1.5, None], pa.float64())
    assert milliseconds(nan, TimeUnit.s).to_pylist() == [None, 1500, None]
    for kind in (pa.null(), pa.float64(), pa.int64(), pa.string()):
        assert milliseconds(pa.nulls(2, kind), TimeUnit.s).to_pylist() == [None, None]
    assert milliseconds(pa.array(["5", "6", "5"]).dictionary_encode(), TimeUnit.s).to_pylist() == [5000, 6000, 5000]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_an_empty_id_is_missing(kind: pa.DataType) -> None:
    table = pa.table({"user": pa.array(["a", "", None, "b"]).cast(kind)})
    assert id_column(table, "user").to_pylist() == ["a", None, None, "b"]


def test_ids_with_gaps_as_floats() -> None:
    assert id_column(pa.table({"user": [1.0, np.nan, 3.0]}), "user").to_pylist() == ["1", None, "3"]


def test_records_end_where_the_library_says(tmp_path: Path) -> None:
    """Against Python's csv module, on texts of the letters that matter."""
    chance = random.Random(5)
    for _ in range(3000):
        text = "".join(chance.choice('ab,"\n') for _ in range(chance.randint(1, 14))) + "\n"
        ends = []
        for cut in (place + 1 for place, letter in enumerate(text) if letter == "\n"):
            rows = list(csv.reader(io.StringIO(text[:cut] + "MARK\n", newline="")))
            if rows[-1] == ["MARK"]:
                ends.append(cut)
        assert line_end(text.encode(), ",") == (ends[-1] if ends else 0), text


def test_halves_are_cut_between_records() -> None:
    record = b'1,"two\nlines",3\n'
    block = Block(Path("x"), 10, record * 9000, ",")
    halves = block.halves()
    assert halves is not None
    first, second = halves
    assert first.text + second.text == block.text and first.text.endswith(record)
    assert second.first_line == 10 + first.text.count(b"\n")
