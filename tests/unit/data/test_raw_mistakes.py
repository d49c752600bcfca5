"""What every mistake in raw files comes to: one line with file, place and reason, and nothing under a final name."""

# ruff: noqa: E501 (a table is read line by line)
from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from bm3_dgl.config.load import load_config
from bm3_dgl.data import blocks, interactions
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import UserError
from tests.unit.data.dumps import (
    image_features,
    make_dump,
    meta_2014,
    meta_2018,
    meta_2023,
    ratings_2014,
    reviews,
    reviews_2023,
    write_2014,
)  # fmt: skip

DUMP = make_dump(1, users=60, items=20)
LINES = ratings_2014(DUMP).splitlines()
META = meta_2014(DUMP).splitlines()
ITEM = DUMP.rows[0][1]
RECORD = 10 + 4 * 4096


@dataclass
class Case:
    """files: name -> content, put over a good source. match: of the message."""

    name: str
    match: str
    files: dict[str, bytes] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def lines(*rows: bytes) -> bytes:
    return b"".join(row + b"\n" for row in rows)


def with_line(rows: list[bytes], number: int, row: bytes) -> bytes:
    """The rows with another one in place of line `number`."""
    return lines(*rows[: number - 1], row, *rows[number:])


def objects(*records: object) -> bytes:
    return lines(*(json.dumps(record).encode() for record in records))


def parquet(**columns: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def npy(rows: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, rows)
    return sink.getvalue()


def entry(**fields: object) -> bytes:
    return repr({"asin": ITEM, **fields}).encode()


RATINGS, JSON, META_FILE, IMAGES = "ratings_Baby.csv", "reviews_Baby_5.json", "meta_Baby.json", "image_features_Baby.b"
REVIEWS = reviews(DUMP).splitlines()


def review(**fields: object) -> bytes:
    return json.dumps({"reviewerID": "A1", "asin": ITEM, "overall": 5.0, "unixReviewTime": 7, **fields}).encode()


def image(value: float) -> bytes:
    return ITEM.encode() + np.full(4096, value, "<f4").tobytes()


AMAZON_2014 = [
    Case("empty file", r"ratings_Baby\.csv: the file is empty", {RATINGS: b""}),
    Case("blank lines only", r"ratings_Baby\.csv: has no interaction; expected reviewerID, asin", {RATINGS: b"\n\n\n"}),
    Case("too few columns", r"ratings_Baby\.csv, line 3: 2 columns; expected 4: reviewerID", {RATINGS: with_line(LINES, 3, b"A1,B1")}),
    Case("too many columns", r"line 7: 5 columns; expected 4", {RATINGS: with_line(LINES, 7, LINES[0] + b",1")}),
    Case("other delimiter", r"line 1: 1 columns; expected 4", {RATINGS: ratings_2014(DUMP).replace(b",", b";")}),
    Case("a header", r"line 1: unixReviewTime is 'timestamp': not a time", {RATINGS: b"user,item,4,timestamp\n" + lines(*LINES)}),
    Case("time in words", r"line 9: unixReviewTime is 'noon': not a time", {RATINGS: with_line(LINES, 9, b"A1,B1,5.0,noon")}),
    Case("time too large", r"line 9: unixReviewTime is '9{18}'", {RATINGS: with_line(LINES, 9, b"A1,B1,5.0," + b"9" * 18)}),
    Case("rating in words", r"line 2: overall is 'five'; expected a number", {RATINGS: with_line(LINES, 2, b"A1,B1,five,7")}),
    Case("not UTF-8", r"ratings_Baby\.csv, line 4: not valid UTF-8", {RATINGS: with_line(LINES, 4, b"A\xff,B1,5.0,7")}),
    Case("always missing", r"has 2 rows, each with a missing field", {RATINGS: b",B1,5.0,7\nA1,,5.0,7\n"}),
    Case("below the core", r"nothing is left of \d+ interactions of 60 users and 20 items: .*data\.k_core=50", keys=("data.k_core=50",)),
    Case("cut gzip", r"Baby\.csv\.gz, after line \d+: the gzip stream ends in its middle", {RATINGS + ".gz": gzip.compress(lines(*LINES))[:-200]}, without=(RATINGS,)),
    Case("only a gzip header", r"Baby\.csv\.gz, after line 0: the gzip stream ends", {RATINGS + ".gz": gzip.compress(b"x")[:12]}, without=(RATINGS,)),
    Case("damaged gzip", r"Baby\.csv\.gz, after line \d+: not valid gzip", {RATINGS + ".gz": gzip.compress(lines(*LINES))[:-8] + b"\0" * 8}, without=(RATINGS,)),
    Case("two kinds of interactions", r"several files with interactions \(ratings_Baby\.csv, reviews_Baby_5\.json\)", {JSON: reviews(DUMP)}),
    Case("two categories", r"several categories \(Baby, Toys\); choose one with data\.category", {"ratings_Toys.csv": lines(*LINES)}),
    Case("other category", r"no interactions of Toys here; expected ratings_Toys\.csv", keys=("data.category=Toys",)),
    Case("no interactions", r"source: no interactions here; expected ratings_X\.csv", without=(RATINGS,)),
    Case("no such interactions", r"other\.csv: no such file; data\.interactions", keys=("data.interactions=other.csv",)),
    Case("no such source", r"data\.source=/nowhere: no such directory", keys=("data.source=/nowhere",)),
    Case("no source", r"data\.source is empty: data\.format=amazon2014 needs", keys=("data.source=",)),
    Case("other release", r"no interactions here; expected X\.csv, X_5\.json, X\.json", keys=("data.format=amazon2018",), without=(RATINGS, META_FILE)),
    Case("modality that is not there", r"data\.modalities: audio not in data\.format=amazon2014 \(it has: visual\)", keys=("data.modalities=[visual,audio]",)),
    Case("broken literal", r"meta_Baby\.json, line 5: not a Python dict of plain values: '\{.*asin", {META_FILE: with_line(META, 5, META[4][:-9])}),
    Case("a call", r"line 2: not a Python dict of plain values: \"__import__", {META_FILE: with_line(META, 2, b"__import__('os').system('true')")}),
    Case("a call inside", r"line 2: not a Python dict", {META_FILE: with_line(META, 2, b"{'asin': '%s', 'title': str(1)}" % ITEM.encode())}),
    Case("deeply nested", r"line 2: not a Python dict", {META_FILE: with_line(META, 2, b"[" * 20000)}),
    Case("many signs", r"line 2: not a Python dict", {META_FILE: with_line(META, 2, b"-" * 200000 + b"1")}),
    Case("huge number", r"line 2: not a Python dict", {META_FILE: with_line(META, 2, entry(salesRank=0)[:-2] + b"9" * 9000 + b"}")}),
    Case("a list", r"line 2: a list; expected one dict a line", {META_FILE: with_line(META, 2, b"['asin']")}),
    Case("long literal", r"line 2: \d+ bytes; a line of at most 1048576 is taken", {META_FILE: with_line(META, 2, entry(description="x" * 2**20))}),
    Case("literal not UTF-8", r"line 2: not valid UTF-8", {META_FILE: with_line(META, 2, b"{'asin': '%s', 'title': '\xff'}" % ITEM.encode())}),
    Case("no asin", r"line 2: asin is None; expected text", {META_FILE: with_line(META, 2, b"{'title': 'x'}")}),
    Case("asin a number", r"line 2: asin is 5; expected text", {META_FILE: with_line(META, 2, b"{'asin': 5}")}),
    Case("title a number", r"title is 7; expected text", {META_FILE: entry(title=7) + b"\n"}),
    Case("flat categories", r"categories is \['Baby'\]; expected a list of lists", {META_FILE: entry(categories=["Baby"]) + b"\n"}),
    Case("brand a list", r"brand is \['x'\]; expected text", {META_FILE: entry(brand=["x"]) + b"\n"}),
    Case("two records", rf"meta_Baby\.json, line 2: '{ITEM}' has another record before", {META_FILE: lines(entry(title="a"), entry(title="b"))}),
    Case("other items", r"meta_Baby\.json: has a record of none of the \d+ items", {META_FILE: b"{'asin': 'B000000000'}\n"}),
    Case("two metas", r"source: both meta_Baby\.json and meta_Baby\.json\.gz; take one of them away", {META_FILE + ".gz": gzip.compress(meta_2014(DUMP))}),
    Case("empty meta", r"meta_Baby\.json: the file is empty", {META_FILE: b""}),
    Case("cut meta", r"meta_Baby\.json\.gz, after line \d+: the gzip stream ends", {META_FILE + ".gz": gzip.compress(meta_2014(DUMP))[:-99]}, without=(META_FILE,)),
    Case("cut record", rf"image_features_Baby\.b: \d+ bytes are not whole records of {RECORD}.*; record 18 is cut short", {IMAGES: image_features(DUMP)[:-5]}),
    Case("image not a number", r"image_features_Baby\.b, record 2: a value that is not finite", {IMAGES: image_features(DUMP)[:RECORD] + image(np.nan)}),
    Case("image infinite", r"record 1: a value that is not finite", {IMAGES: image(np.inf)}),
    Case("image beyond float16", r"record 1: a value that is too large for float16; set data\.feature_dtype=float32", {IMAGES: image(1e30)}, ("data.feature_dtype=float16",)),
    Case("two images", r"record 2: its item has a record before", {IMAGES: image(1) + image(2)}),
    Case("images of others", r"image_features_Baby\.b: has features of none of the \d+ items", {IMAGES: b"B000000000" + image(1)[10:]}),
    Case("empty images", r"image_features_Baby\.b: the file is empty", {IMAGES: b""}),
]  # fmt: skip

REVIEW_FILE = [
    Case("broken object", r"reviews_Baby_5\.json, line 4: not valid JSON: '\{\"reviewerID", {JSON: with_line(REVIEWS, 4, REVIEWS[3][:-9])}),
    Case("an array", r"line 4: a list; expected one object a line", {JSON: with_line(REVIEWS, 4, b"[]")}),
    Case("two in a line", r"line 4: not valid JSON", {JSON: with_line(REVIEWS, 4, REVIEWS[3] + REVIEWS[4])}),
    Case("one in two lines", r"line 4: not valid JSON", {JSON: with_line(REVIEWS, 4, REVIEWS[3].replace(b", ", b",\n", 1))}),
    Case("id of another type", r"line 4: asin is 5, a int; ids of another type stand before it", {JSON: with_line(REVIEWS, 4, review(asin=5))}),
    Case("id a list", r"line 4: reviewerID is \['A'\]; expected text or a whole number", {JSON: with_line(REVIEWS, 4, review(reviewerID=["A"]))}),
    Case("id a truth value", r"line 4: reviewerID is True; expected text", {JSON: with_line(REVIEWS, 4, review(reviewerID=True))}),
    Case("review time in words", r"line 4: unixReviewTime is 'noon': not a time", {JSON: with_line(REVIEWS, 4, review(unixReviewTime="noon"))}),
    Case("review time an object", r"line 4: unixReviewTime is \{\}; expected a time", {JSON: with_line(REVIEWS, 4, review(unixReviewTime={}))}),
    Case("review time infinite", r"line 4: unixReviewTime is inf: ", {JSON: with_line(REVIEWS, 4, review(unixReviewTime=float("inf")))}),
    Case("rating a list", r"line 4: overall is \[5\]; expected a number", {JSON: with_line(REVIEWS, 4, review(overall=[5]))}),
    Case("review not UTF-8", r"line 4: not valid UTF-8", {JSON: with_line(REVIEWS, 4, review(reviewerID="A@").replace(b"@", b"\xff"))}),
    Case("deep review", r"line 4: not valid JSON", {JSON: with_line(REVIEWS, 4, b"[" * 100000)}),
    Case("fields of another release", r"each with a missing field; expected reviewerID, asin", {JSON: reviews_2023(DUMP)}),
    Case("binary", r"line 1: not valid", {JSON: bytes(range(256))}),
]  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_2014(tmp_path / "source", DUMP, packed=False)


def keys_of(source: Path, case: Case) -> list[str]:
    """Put the case's files over the source; the configuration to read it with."""
    for name in case.without:
        (source / name).unlink()
    for name, content in case.files.items():
        (source / name).write_bytes(content)
    return [f"data.source={source}", f"data.dir={source.parent / 'made' / 'dataset'}", *case.keys]


def refused(keys: list[str], match: str) -> None:
    """Preparing fails with one line that matches, and there is no dataset."""
    config = load_config(None, keys)
    with pytest.raises(UserError, match=match) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)
    assert not Path(config.data.dir).exists()


def by_name(cases: list[Case]) -> Callable:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@by_name(AMAZON_2014)
def test_amazon_2014(source: Path, case: Case) -> None:
    refused(["data.format=amazon2014", *keys_of(source, case)], case.match)


@by_name(REVIEW_FILE)
def test_reviews(source: Path, case: Case) -> None:
    (source / RATINGS).unlink()
    refused(["data.format=amazon2014", *keys_of(source, case)], case.match)


RELEASES = [
    Case("2018 meta broken", r"meta_Baby\.json, line 2: not valid JSON", {"meta_Baby.json": with_line(meta_2018(DUMP).splitlines(), 2, b"{'asin': 'B'")}),
    Case("2018 description a number", r"line 1: description is 5; expected text or a list", {"meta_Baby.json": objects({"asin": ITEM, "description": 5})}),
    Case("2018 columns of 2014", r"has a record of none", {"Baby.csv": ratings_2014(DUMP), "meta_Baby.json": meta_2018(DUMP)}, without=("Baby.json",)),
]  # fmt: skip


@by_name(RELEASES)
def test_amazon_2018(tmp_path: Path, case: Case) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "Baby.json").write_bytes(reviews(DUMP))
    refused(["data.format=amazon2018", "data.category=Baby", *keys_of(source, case)], case.match)


@by_name([
    Case("2023 images", r"meta_Baby\.jsonl, line 1: images is \['a'\]; expected a list of objects", {"meta_Baby.jsonl": objects({"parent_asin": ITEM, "images": ["a"]})}),
    Case("2023 no key", r"line 1: parent_asin is None; expected text", {"meta_Baby.jsonl": objects({"asin": ITEM})}),
    Case("2023 no header", r"Baby\.csv: no column 'user_id'", {"Baby.csv": ratings_2014(DUMP)}, ("data.interactions=Baby.csv",)),
    Case("2023 near header", r"no column 'parent_asin'; the nearest is 'parent-asin'", {"Baby.csv": b"user_id,parent-asin,rating,timestamp\n"}, ("data.interactions=Baby.csv",)),
])  # fmt: skip
def test_amazon_2023(tmp_path: Path, case: Case) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "Baby.jsonl").write_bytes(reviews_2023(DUMP))
    (source / "meta_Baby.jsonl").write_bytes(meta_2023(DUMP))
    refused(["data.format=amazon2023", "data.category=Baby", *keys_of(source, case)], case.match)


# --- a shop's own tables: log.csv user_id,item_id,when ; items.csv item_id,name,f_1,f_2

LOG = [b"user_id,item_id,when"] + [b"u%d,i%d,2020-01-%02d" % (user, item, 1 + item) for user in range(6) for item in range(6)]
ITEMS = [b"item_id,name,f_1,f_2"] + [b"i%d,Thing %d,%d,0.5" % (item, item, item) for item in range(6)]
ITEM_KEYS = ("tables.items=items.csv", "tables.title=name")
VECTORS = {"item_id": [f"i{item}" for item in range(6)], "vector": [[1.0, 2.0]] * 6}
LIST = ("tables.items=items.parquet", "data.features.text=vector")

TABLES = [
    Case("nothing named", r"data\.interactions is empty: data\.format=tables needs", keys=("data.interactions=",)),
    Case("no such pattern", r"log/\*\.csv: no such file; data\.interactions=log/\*\.csv is looked up", keys=("data.interactions=log/*.csv",)),
    Case("unknown ending", r"log\.xls: the name does not say what it is; expected one of \.parquet", {"log.xls": b"x"}, ("data.interactions=log.xls",)),
    Case("wrong column", r"log\.csv: no column 'item_id'; the nearest is 'itemId' \(it has 'user_id', 'itemId'", {"log.csv": with_line(LOG, 1, b"user_id,itemId,when")}),
    Case("column twice", r"log\.csv: the column item_id is there twice", {"log.csv": with_line(LOG, 1, b"user_id,item_id,item_id")}),
    Case("header only", r"log\.csv: has no interaction", {"log.csv": LOG[0] + b"\n"}),
    Case("ragged", r"log\.csv, line 5: 2 columns; expected 3: user_id, item_id, when", {"log.csv": with_line(LOG, 5, b"u1,i1")}),
    Case("open quote", r"log\.csv, line 5: a quote is opened and never closed", {"log.csv": with_line(LOG, 5, b'"u1,i1,2020-01-01')}),
    Case("bad date", r"log\.csv, line 5: when is '2020-13-01': not a time", {"log.csv": with_line(LOG, 5, b"u1,i1,2020-13-01")}, ("tables.time=when",)),
    Case("weight in words", r"line 5: when is 'much'; expected a number", {"log.csv": lines(LOG[0], *[b"u,i,1"] * 3, b"u,i,much")}, ("tables.weight=when",)),
    Case("split by no time", r"data\.split=time: the interactions have no time", keys=("data.split=time",)),
    Case("given split without column", r"data\.split=given: the interactions have no split; set tables\.split", keys=("data.split=given",)),
    Case("split column and random split", r"tables\.split=when: used with data\.split=given only", keys=("tables.split=when",)),
    Case("a split that is none", r"line 3: when is 'late'; expected train, valid or test", {"log.csv": lines(LOG[0], b"u,i,test", b"u,i,late")}, ("tables.split=when", "data.split=given")),
    Case("no train", r"none of the 2 interactions is in train", {"log.csv": lines(LOG[0], b"u,i,test", b"u,j,2")}, ("tables.split=when", "data.split=given", "data.k_core=1")),
    Case("global split by no time", r"data\.split=global_time: the interactions have no time", keys=("data.split=global_time",)),
    Case("cut Parquet", r"log\.parquet: cannot be read as Parquet", {"log.parquet": parquet(user_id=["u"], item_id=["i"])[:-20]}, ("data.interactions=log.parquet",)),
    Case("Parquet column", r"log\.parquet: no column 'user_id'; the nearest is 'userid'", {"log.parquet": parquet(userid=["u"], item_id=["i"])}, ("data.interactions=log.parquet",)),
    Case("Parquet ids with fractions", r"log\.parquet, row 1: user_id is 1\.5; expected text or a whole number", {"log.parquet": parquet(user_id=[1.5], item_id=["i"])}, ("data.interactions=log.parquet",)),
    Case("Parquet ids of lists", r"log\.parquet: ids of type list", {"log.parquet": parquet(user_id=[["u"]], item_id=["i"])}, ("data.interactions=log.parquet",)),
    Case("Parquet weight infinite", r"log\.parquet, row 1: w is inf; expected a number", {"log.parquet": parquet(user_id=["u"], item_id=["i"], w=[np.inf])}, ("data.interactions=log.parquet", "tables.weight=w")),
    Case("Parquet time a truth value", r"a time of type bool", {"log.parquet": parquet(user_id=["u"], item_id=["i"], t=[True])}, ("data.interactions=log.parquet", "tables.time=t")),
    Case("mixed ids", r"log\.jsonl, line 2: user_id is 7, a int; ids of another type", {"log.jsonl": objects({"user_id": "u", "item_id": "i"}, {"user_id": 7, "item_id": "i"})}, ("data.interactions=log.jsonl",)),
    Case("JSON without the fields", r"log\.jsonl: has 1 rows, each with a missing field; expected user_id, item_id", {"log.jsonl": objects({"user": "u"})}, ("data.interactions=log.jsonl",)),
    Case("titles of no table", r"tables\.items is empty: titles, texts and features need", keys=("tables.title=name",)),
    Case("no such items", r"stock\.csv: no such file; tables\.items=stock\.csv", keys=("tables.items=stock.csv",)),
    Case("title column", r"items\.csv: no column 'title'; the nearest is", {"items.csv": with_line(ITEMS, 1, b"item_id,Titel,f_1,f_2")}, ("tables.items=items.csv", "tables.title=title")),
    Case("item without id", r"items\.csv, record 2: item_id is missing", {"items.csv": with_line(ITEMS, 3, b",Thing,1,1")}, ITEM_KEYS),
    Case("item twice", r"items\.csv, record 7: 'i0' has another record before", {"items.csv": lines(*ITEMS, b"i0,Other,1,1")}, ITEM_KEYS),
    Case("items of another shop", r"items\.csv: has a record of none of the 6 items", {"items.csv": lines(ITEMS[0], b"x,Thing,1,1")}, ITEM_KEYS),
    Case("no such feature", r"items\.csv: no column 'f_3'; the nearest is 'f_2'", keys=(*ITEM_KEYS, "data.features.text=f_3")),
    Case("feature in words", r"items\.csv, record 3: f_1 is 'x'; expected a number", {"items.csv": with_line(ITEMS, 4, b"i2,Thing,x,1")}, (*ITEM_KEYS, "data.features.text=f_*")),
    Case("feature missing", r"items\.csv, record 3: a value that is not finite", {"items.csv": with_line(ITEMS, 4, b"i2,Thing,,1")}, (*ITEM_KEYS, "data.features.text=f_*")),
    Case("features not listed", r"items\.parquet: vector is of type string; expected lists", {"items.parquet": parquet(**VECTORS | {"vector": ["a"] * 6})}, LIST),
    Case("ragged features", r"items\.parquet, record 4: 1 features; the first item has 2", {"items.parquet": parquet(**VECTORS | {"vector": [[1.0, 2.0]] * 3 + [[1.0]] * 3})}, LIST),
    Case("feature not a number", r"items\.parquet, record 6: a value that is not finite", {"items.parquet": parquet(**VECTORS | {"vector": [[1.0, 2.0]] * 5 + [[1.0, np.nan]]})}, LIST),
    Case("rows too few", r"rows\.npy: has 5 rows, the item tables have 6 records", {"rows.npy": npy(np.ones((5, 2), np.float32))}, (*ITEM_KEYS, "data.features.text=rows.npy")),
    Case("rows of words", r"rows\.npy: holds <U1; expected float32", {"rows.npy": npy(np.array([["a"]]))}, (*ITEM_KEYS, "data.features.text=rows.npy")),
    Case("rows pickled", r"rows\.npy: holds pickled Python objects, which are never loaded", {"rows.npy": npy(np.array([[{}]], object))}, (*ITEM_KEYS, "data.features.text=rows.npy")),
    Case("no tensors", r"rows\.safetensors: cannot be read as safetensors", {"rows.safetensors": b"\0" * 40}, (*ITEM_KEYS, "data.features.text=rows.safetensors")),
    Case("no such rows", r"rows\.npy: no such file; data\.features\.text=rows\.npy", keys=(*ITEM_KEYS, "data.features.text=rows.npy")),
]  # fmt: skip


@by_name(TABLES)
def test_tables(tmp_path: Path, case: Case) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "log.csv").write_bytes(lines(*LOG))
    (source / "items.csv").write_bytes(lines(*ITEMS))
    refused(["data.format=tables", "data.interactions=log.csv", *keys_of(source, case)], case.match)


def test_tensors_of_the_wrong_kind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "log.csv").write_bytes(lines(*LOG))
    (source / "items.csv").write_bytes(lines(*ITEMS))
    keys = ["data.format=tables", "data.interactions=log.csv", *ITEM_KEYS, "data.features.text=rows.safetensors"]
    keys += keys_of(source, Case("", ""))
    save_file({"a": np.ones((6, 2), np.float32), "b": np.ones((6, 2), np.float32)}, source / "rows.safetensors")
    refused(keys, r"its tensors are a, b; expected one, or one called text")
    save_file({"a": np.ones((6, 2), np.int32)}, source / "rows.safetensors")
    refused(keys, r"rows\.safetensors: holds I32 \[6, 2\]; expected F16, F32 or F64")


# --- the place where it is written

GOOD = ["data.format=amazon2014"]


def test_target_that_cannot_be_written(source: Path) -> None:
    (source.parent / "made").write_text("a file")
    refused(GOOD + keys_of(source, Case("", "")), r"made.*(Not a directory|File exists)")


def test_full_disk(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(interactions.Vocabulary, "save", full)
    refused(GOOD + keys_of(source, Case("", "")), r"dataset\.work: cannot be written \(No space left on device\)")


def test_two_at_once(source: Path) -> None:
    keys = GOOD + keys_of(source, Case("", ""))
    work = source.parent / "made" / ".dataset.work"
    work.mkdir(parents=True)
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(keys, r"\.dataset\.work: another process is preparing this dataset; wait for it")
    os.close(lock)
    assert prepare(load_config(None, keys)).num_users > 0


def test_line_without_end(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LONGEST_LINE", 1 << 10)
    case = Case("", "", {RATINGS: lines(*LINES[:2]) + b"x" * 5000})
    refused(GOOD + keys_of(source, case), r"ratings_Baby\.csv, line 3: a line of more than \d+ MiB")


def test_there_are_enough_of_them() -> None:
    assert len(AMAZON_2014) + len(REVIEW_FILE) + len(RELEASES) + len(TABLES) >= 60


# --- many files, long files


PARQUET_KEYS = ("data.format=tables", "data.interactions=log.parquet", "data.k_core=1", "tables.weight=w", "tables.time=t")


def parquet_log(source: Path, wrong: dict[int, tuple[str, object]]) -> list[str]:
    """3000 interactions with times and weights, some fields (row -> column, value) put over; the configuration."""
    times = np.datetime64("2020-01-01", "ns") + np.arange(3000).astype("timedelta64[s]")
    columns = {"user_id": [f"u{row // 6}" for row in range(3000)], "item_id": [float(row % 6) for row in range(3000)]}
    columns |= {"t": list(times), "w": [1.0] * 3000}
    for row, (name, value) in wrong.items():
        columns[name][row] = value
    source.mkdir()
    (source / "log.parquet").write_bytes(parquet(**columns | {"t": pa.array(columns["t"], pa.timestamp("ns"))}))
    return [*PARQUET_KEYS, *keys_of(source, Case("", ""))]


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    keys = parquet_log(tmp_path / "source", {2344: ("w", np.inf)})
    refused(keys, r"log\.parquet, row 2345: w is inf; expected a number; mend it, or .*data\.on_error=skip")


def test_bad_rows_of_parquet_are_skipped(tmp_path: Path) -> None:
    wrong = {5: ("w", np.inf), 6: ("item_id", 0.5), 2999: ("t", np.datetime64("1700-01-01", "ns"))}
    dataset = prepare(load_config(None, [*parquet_log(tmp_path / "source", wrong), "data.on_error=skip"]))
    assert dataset.manifest["skipped"] == {"interactions": 3} and dataset.manifest["counts"]["interactions"] == 2997
    listed = [json.loads(line) for line in (dataset.directory / "skipped.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in listed] == [6, 7, 3000]
    assert "w is inf" in listed[0]["reason"] and "item_id is 0.5" in listed[1]["reason"] and "1700" in listed[2]["reason"]


def test_text_of_parquet_that_is_no_text(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"u\xff"))
    pq.write_table(pa.table({"user_id": broken, "item_id": ["i", "i"]}), source / "log.parquet")
    keys = ["data.format=tables", "data.interactions=log.parquet", *keys_of(source, Case("", ""))]
    refused(keys, r"log\.parquet, row 2: not valid UTF-8")


@by_name([
    Case("numbers and text", r"b\.jsonl: user_id is text, in .*a\.jsonl it is a number; expected the same in all files", {"a.jsonl": objects({"user_id": 1, "item_id": "i"}), "b.jsonl": objects({}, {"user_id": "1", "item_id": "i"})}),
    Case("JSON and Parquet", r"b\.parquet: item_id is a number, in .*a\.jsonl it is text", {"a.jsonl": objects({"user_id": 1, "item_id": "i"}), "b.parquet": parquet(user_id=[1], item_id=[2])}),
    Case("Parquet", r"b\.parquet: user_id is text, in .*a\.parquet it is a number", {"a.parquet": parquet(user_id=[1.0], item_id=[2]), "b.parquet": parquet(user_id=["1"], item_id=[2])}),
    Case("packed", r"b\.jsonl\.gz: user_id is text, in .*a\.jsonl it is a number", {"a.jsonl": objects({"user_id": 1, "item_id": "i"}), "b.jsonl.gz": gzip.compress(objects({"user_id": "1", "item_id": "i"}))}),
])  # fmt: skip
def test_ids_of_two_kinds_in_two_files(tmp_path: Path, case: Case) -> None:
    source = tmp_path / "log"
    source.mkdir()
    refused(["data.format=tables", "data.interactions=*", "data.k_core=1", *keys_of(source, case)], case.match)


def test_item_tables_agree_on_the_kind_of_ids(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files = {"log.csv": lines(*LOG), "x1.parquet": parquet(item_id=["i1"]), "x2.parquet": parquet(item_id=[2])}
    keys = ["data.format=tables", "data.interactions=log.csv", "tables.items=x*", *keys_of(source, Case("", "", files))]
    refused(keys, r"x2\.parquet: item_id is a number, in .*x1\.parquet it is text")


@by_name([
    Case("another width", r"rows2\.npy: has rows of 3 numbers, .*rows1\.npy of 2; expected one width", {"rows1.npy": npy(np.ones((3, 2))), "rows2.npy": npy(np.ones((3, 3)))}),
    Case("too few rows", r"rows1\.npy to rows2\.npy: has 5 rows, the item tables have 6 records", {"rows1.npy": npy(np.ones((3, 2))), "rows2.npy": npy(np.ones((2, 2)))}),
    Case("not finite", r"rows2\.npy, record 2: a value that is not finite", {"rows1.npy": npy(np.ones((3, 2))), "rows2.npy": npy(np.array([[1.0], [np.nan], [1.0]]) * np.ones(2))}),
    Case("skipped records", r"rows1\.npy: rows go by position, and records of the item tables are skipped: 1", {"rows1.npy": npy(np.ones((6, 2))), "items.csv": with_line(ITEMS, 3, b"i1")}, ("data.on_error=skip",)),
])  # fmt: skip
def test_feature_files_that_do_not_fit(tmp_path: Path, case: Case) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "log.csv").write_bytes(lines(*LOG))
    (source / "items.csv").write_bytes(lines(*ITEMS))
    keys = ["data.format=tables", "data.interactions=log.csv", *ITEM_KEYS, "data.features.text=rows*.npy"]
    refused(keys + keys_of(source, case), case.match)
