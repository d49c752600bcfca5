"""What the reader of the authors' directory format says of every mistake in a file: what, and in which place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bm3_dgl.config.schema import DataConfig
from bm3_dgl.data import features as features_module
from bm3_dgl.data.mmrec import read_mmrec
from bm3_dgl.errors import DataError
from tests.unit.data.sources import HEADER, ROWS, features, write_lines, write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def config(source: Path) -> DataConfig:
    return write_source(source)


def refused(config: DataConfig, message: str) -> None:
    """Reading fails with one line that matches."""
    with pytest.raises(DataError, match=message) as caught:
        read_mmrec(config)
    assert "\n" not in str(caught.value)


# --- mistakes in the interactions

GOOD = "0\t3\t0"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"tiny\.inter: the file is empty; expected a header"),
        (["", HEADER, GOOD], r"tiny\.inter: line 1 is blank"),
        ([HEADER], r"tiny\.inter: has a header but no rows"),
        (["userid\titemID\tx_label", GOOD], r"line 1: no column userID; the nearest is 'userid'"),
        (["userID\titemID\tlabel", GOOD], r"line 1: no column x_label; the nearest is 'label'"),
        (["userID,itemID,x_label", "0,1,0"], r"line 1: no column userID.*separated by tabs"),
        ([GOOD, "1\t1\t0"], r"line 1: no column userID \(the header has '0', '3', '0'"),
        (["userID\titemID\tx_label\titemID", "0\t1\t0\t1"], r"line 1: column itemID stands in the header twice"),
        ([HEADER, GOOD, "1\t1"], r"tiny\.inter, line 3: 2 columns, the header has 3"),
        ([HEADER, GOOD, "1\t1\t0\t7"], r"tiny\.inter, line 3: 4 columns, the header has 3"),
        ([HEADER, GOOD, "", "x1\t1\t0"], r"tiny\.inter, line 4: userID is 'x1'; expected an integer from 0"),
        ([HEADER, GOOD, "1\t2.5\t0"], r"tiny\.inter, line 3: itemID is '2\.5'"),
        ([HEADER, GOOD, "1\t\t0"], r"tiny\.inter, line 3: itemID is ''"),
        ([HEADER, GOOD, "1\tNA\t0"], r"tiny\.inter, line 3: itemID is 'NA'"),
        ([HEADER, GOOD, "", "1\t-2\t0"], r"tiny\.inter, line 4: itemID is -2; expected an integer from 0"),
        ([HEADER, GOOD, "2147483647\t1\t0"], r"line 3: userID is 2147483647; expected an integer from 0 to 2147483646"),
        ([HEADER, GOOD, "9999999999\t1\t0"], r"line 3: userID is 9999999999; expected 0 to 2147483646"),
        ([HEADER, GOOD, "9" * 5000 + "\t1\t0"], r"line 3: userID is '9+'; expected an integer"),
        ([HEADER, GOOD, "1\t1\t3"], r"tiny\.inter, line 3: x_label is 3; expected one of 0 \(train\), 1 \(valid\), 2 \(test\)"),
        ([HEADER, GOOD, "1\t1\ttrain"], r"tiny\.inter, line 3: x_label is 'train'"),
        ([HEADER, GOOD, "1\t1\t-1"], r"tiny\.inter, line 3: x_label is -1"),
        ([HEADER, GOOD, "1\t1\t0", "", "0\t3\t2", GOOD], r"line 5: user 0 and item 3 are in line 2 already"),
        ([HEADER, "0\t3\t1", "1\t1\t2"], r"tiny\.inter: no row has x_label 0, so there is nothing to train on"),
        ([HEADER, GOOD, "200000000\t1\t0"], r"userID goes up to 200000000, but only 2 ids occur; number them from 0"),
    ],
)
def test_interaction_mistakes(config: DataConfig, source: Path, lines: list[str], message: str) -> None:
    write_lines(source, *lines)
    refused(config, message)


def test_of_several_duplicates_the_first_repeat_is_named(config: DataConfig, source: Path) -> None:
    write_lines(source, HEADER, "0\t0\t0", "2\t3\t0", "2\t3\t0", "0\t0\t0", "2\t3\t0")
    refused(config, "line 4: user 2 and item 3 are in line 3 already")


def test_among_many_duplicates_too_the_first_repeat_is_named(config: DataConfig, source: Path) -> None:
    """Long enough for a sort that does not keep equal pairs in file order to mix them up."""
    pairs = [f"{row}\t0\t0" for row in range(300)]
    write_lines(source, HEADER, *pairs, *pairs[::-1], *pairs, *pairs)
    refused(config, "line 302: user 299 and item 0 are in line 301 already")


def test_no_or_several_interaction_files(config: DataConfig, source: Path) -> None:
    (source / "tiny.inter").rename(source / "other.inter")
    write_lines(source, HEADER, GOOD, name="more.inter")
    refused(config, r"several \*\.inter files \(more\.inter, other\.inter\); choose one with data\.interactions")
    config.interactions = "other.inter"
    assert len(read_mmrec(config).users) == len(ROWS)
    config.interactions = "tiny.inter"
    refused(config, r"tiny\.inter: no such file; data\.interactions=tiny\.inter is looked up in data\.source")
    config.interactions = ""
    for path in source.glob("*.inter"):
        path.unlink()
    refused(config, r"source: no \*\.inter file here")


def test_unreadable_interactions(config: DataConfig, source: Path) -> None:
    (source / "tiny.inter").unlink()
    (source / "tiny.inter").mkdir()
    refused(config, r"tiny\.inter: cannot be read \(Is a directory\)")
    (source / "tiny.inter").rmdir()
    (source / "tiny.inter").write_bytes(b"user\xff\xfeID\titemID\n")
    refused(config, r"tiny\.inter: cannot be read \(.*utf-8")


# --- mistakes in the features


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (features(3, items=3), r"visual\.npy: has 3 rows, but tiny\.inter, line 6 has item 3 \(4 items in all\)"),
        (features(3, items=6), r"visual\.npy: has 6 rows, but tiny\.inter has 4 items \(highest id 3\)"),
        (features(3, items=0), r"visual\.npy: has 0 rows"),
        (np.zeros((4, 3), np.int64), r"visual\.npy: holds int64; expected float32 \(float16 and float64 are converted\)"),
        (np.zeros((4, 3), np.complex64), r"visual\.npy: holds complex64"),
        (np.zeros((4, 3), np.bool_), r"visual\.npy: holds bool"),
        (np.zeros((4, 3), "U2"), r"visual\.npy: holds <U2"),
        (np.zeros(4, np.float32), r"visual\.npy: has shape \(4,\); expected \(items, width\)"),
        (np.zeros((4, 3, 1), np.float32), r"visual\.npy: has shape \(4, 3, 1\)"),
        (np.zeros((4, 0), np.float32), r"visual\.npy: has shape \(4, 0\)"),
        (np.array([[{}]] * 4, dtype=object), r"visual\.npy: holds pickled Python objects, which are never loaded"),
    ],
)
def test_feature_files_of_the_wrong_kind(config: DataConfig, source: Path, rows: np.ndarray, message: str) -> None:
    np.save(source / "visual.npy", rows)
    refused(config, message)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [("float32", np.nan, "nan"), ("float32", -np.inf, "-inf"), ("float16", np.inf, "inf"), ("float64", 1e300, r"1e\+300")],
)
@pytest.mark.parametrize("block_bytes", [12, 1 << 24])  # one row a block, and all in one
def test_values_that_are_not_finite(
    config: DataConfig, source: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, value: float, shown: str, block_bytes: int
) -> None:
    monkeypatch.setattr(features_module, "_BLOCK_BYTES", block_bytes)
    rows = features(3).astype(dtype)
    rows[2, 1] = value
    rows[3, 0] = value
    np.save(source / "visual.npy", rows)
    refused(config, rf"visual\.npy, row 2, column 1 \(from 0\): holds {shown}; expected a finite float32")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (-1, r"visual\.npy: is cut short: 175 bytes, its header promises 176"),
        (60, r"visual\.npy: cannot be read \(EOF: .*expected a \.npy file"),
        (0, r"visual\.npy: cannot be read \(EOF: .*expected a \.npy file"),
    ],
)
def test_truncated_features(config: DataConfig, source: Path, keep: int, message: str) -> None:
    content = (source / "visual.npy").read_bytes()
    (source / "visual.npy").write_bytes(content[:keep])
    refused(config, message)


@pytest.mark.parametrize("content", [b"PK\x03\x04 an archive", b"\x80\x04\x95 a pickle", b"\x93NUMPY\x09\x00 a later version"])
def test_files_that_are_no_arrays(config: DataConfig, source: Path, content: bytes) -> None:
    (source / "visual.npy").write_bytes(content)
    refused(config, r"visual\.npy: cannot be read \((the magic string|format version 9\.0)")


def test_a_pickle_in_a_feature_file_is_not_run(config: DataConfig, source: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.save(source / "visual.npy", np.array([[Bomb()]] * 4, dtype=object), allow_pickle=True)
    refused(config, "holds pickled Python objects")
    assert not (tmp_path / "exploded").exists()


def test_missing_and_unreadable_features(config: DataConfig, source: Path) -> None:
    (source / "visual.npy").unlink()
    refused(config, r"visual\.npy: no such file; data\.features\.visual=visual\.npy is looked up in data\.source")
    (source / "visual.npy").mkdir()
    refused(config, r"visual\.npy: cannot be read \(Is a directory\)")


# --- mistakes in ids and titles


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"line 1: the header is ''; expected itemID and a column of raw ids"),
        (["asin\titemId", "a\t0"], r"line 1: the header is .*; expected itemID"),
        (["asin\titemID\tmore", "a\t0\t1"], r"line 1: the header is"),
        (["asin\titemID", "a\t0", "b"], r"i_id_mapping\.csv, line 3: expected itemID and a raw id, got 'b'"),
        (["asin\titemID", "a\t0", "\t1"], r"i_id_mapping\.csv, line 3: expected itemID and a raw id"),
        (["asin\titemID", "", "a\tx"], r"i_id_mapping\.csv, line 3: itemID is 'x'; expected an integer from 0"),
        (["asin\titemID", "a\t-1"], r"i_id_mapping\.csv, line 2: itemID is '-1'"),
        (["asin\titemID", "a\t0", "b\t1", "c\t0"], r"i_id_mapping\.csv, line 4: itemID 0 is in line 2 already"),
        (["asin\titemID", "a\t0", "b\t1", "a\t3"], r"raw id 'a' stands for itemID 0 and 3"),
        (["asin\titemID", "1\t0"], r"raw id '1' stands for itemID 0 and 1"),
        (["asin,itemID", '"a,0'], r"i_id_mapping\.csv, line 2: cannot be read \(unexpected end of data\)"),
    ],
)
def test_mapping_mistakes(config: DataConfig, source: Path, lines: list[str], message: str) -> None:
    write_lines(source, *lines, name="i_id_mapping.csv")
    refused(config, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"itemID": 1, "title": ', r"items\.jsonl, line 2: not valid JSON; expected one object a line"),
        ("[" * 100_000, r"items\.jsonl, line 2: not valid JSON"),
        ("[1]", r"items\.jsonl, line 2: itemID is None; expected an object with an integer itemID"),
        ('{"title": "cup"}', r"items\.jsonl, line 2: itemID is None"),
        ('{"itemID": "1"}', r"items\.jsonl, line 2: itemID is '1'"),
        ('{"itemID": true}', r"items\.jsonl, line 2: itemID is True"),
        ('{"itemID": -1}', r"items\.jsonl, line 2: itemID is -1"),
        ('{"itemID": 1, "title": 5}', r"items\.jsonl, line 2: title is of type int; expected a string or null"),
        ('{"itemID": 0}', r"items\.jsonl, line 2: itemID 0 is in line 1 already"),
    ],
)
def test_title_mistakes(config: DataConfig, source: Path, line: str, message: str) -> None:
    config.titles = "items.jsonl"
    write_lines(source, '{"itemID": 0, "title": "saucer"}', line, name="items.jsonl")
    refused(config, message)


def test_unreadable_titles(config: DataConfig, source: Path) -> None:
    config.titles = "items.jsonl"
    refused(config, r"items\.jsonl: no such file; data\.titles=items\.jsonl")
    (source / "items.jsonl").write_bytes(b'{"itemID": 0}\n{"itemID": 1, "title": "\xff"}\n')
    refused(config, r"items\.jsonl.*: not valid UTF-8")
