"""A shop's own tables: every kind gives the same dataset; items, features, ids and splits out of columns and files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from bm3_dgl.config.load import load_config
from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.prepare import prepare
from bm3_dgl.data.tables import find_tables
from tests.unit.data.dumps import (
    Dump,
    make_dump,
)  # fmt: skip
from tests.unit.data.published import assert_is_published, made, published, table

DUMP = make_dump(3)


KEEP = "data.repeats=keep"


@pytest.mark.parametrize("words", [("train", "valid", "test"), ("Train", "validation", "TEST"), ("0", "1", "2")])
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_split_as_the_source_says(tmp_path: Path, words: tuple[str, ...], ending: str) -> None:
    label = {(user, item): place % 7 % 3 for place, (user, item, _) in enumerate(published(DUMP.rows))}
    rows = [(user, item, words[split]) for (user, item), split in label.items()]
    source = tmp_path / "source"
    source.mkdir()
    if ending == "csv":
        text = "".join(f"{user},{item},{split}\n" for user, item, split in [("user_id", "item_id", "part"), *rows])
    else:
        number = words[0] == "0"  # numbers and not text
        records = ({"user_id": u, "item_id": i, "part": int(split) if number else split} for u, i, split in rows)
        text = "".join(json.dumps(record) + "\n" for record in records)
    (source / f"log.{ending}").write_text(text, encoding="utf-8")
    keys = ["data.format=tables", f"data.interactions=log.{ending}", "tables.split=part", "data.split=given"]
    dataset = made(source, *keys)
    users, items = dataset.raw_user_ids(), dataset.raw_item_ids()
    columns = pq.read_table(dataset.directory / "interactions.parquet").to_pydict()
    rows = zip(columns["user"], columns["item"], columns["split"], strict=True)
    found = {(users[user], items[item]): split for user, item, split in rows}
    assert found == label


def columns_of(dump: Dump) -> dict[str, list]:
    users, items, ratings, times = (list(column) for column in zip(*dump.rows, strict=True))
    return {"who": users, "what": items, "when": times, "stars": ratings}


COLUMNS = ("tables.user=who", "tables.item=what", "tables.time=when", "tables.weight=stars")


def as_csv(columns: dict[str, list], delimiter: str = ",") -> bytes:
    lines = [delimiter.join(columns)] + [delimiter.join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    return "\r\n".join(lines).encode() + b"\r\n"


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "several", "dates", "timestamps", "milliseconds"])
def test_tables_of_every_kind_give_the_same(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    columns, keys = columns_of(DUMP), list(COLUMNS)
    pattern = f"log.{kind}"
    if kind == "csv.gz":
        (source / pattern).write_bytes(gzip.compress(as_csv(columns)))
    elif kind in ("csv", "tsv"):
        (source / pattern).write_bytes(as_csv(columns, "\t" if kind == "tsv" else ","))
    elif kind == "jsonl":
        pa.table(columns).to_pandas().to_json(source / pattern, orient="records", lines=True)
    elif kind == "dates":
        columns["when"] = [str(np.datetime64(time, "s")) for time in columns["when"]]
        pattern = "log.csv"
        (source / pattern).write_bytes(as_csv(columns))
    elif kind == "several":
        pattern = "parts/*.parquet"
        (source / "parts").mkdir()
        for number in range(3):
            begin, end = number * 300, (number + 1) * 300 if number < 2 else None
            pq.write_table(pa.table(columns).slice(begin, end and end - begin), source / "parts" / f"{number}.parquet")
    else:
        pattern = "log.parquet"
        if kind == "timestamps":
            columns["when"] = pa.array(columns["when"], pa.int64()).cast(pa.timestamp("s"))
        if kind == "milliseconds":
            columns["when"] = [time * 1000 for time in columns["when"]]
            keys.append("tables.time_unit=ms")
        pq.write_table(pa.table(columns), source / pattern)
    dataset = made(source, "data.format=tables", f"data.interactions={pattern}", KEEP, *keys)
    assert_is_published(dataset, DUMP)
    stars = {(user, item, time): rating for user, item, rating, time in DUMP.rows}
    weights = pq.read_table(dataset.directory / "interactions.parquet")["weight"].to_pylist()
    users, items = dataset.raw_user_ids(), dataset.raw_item_ids()
    assert weights == [stars[users[user], items[item], time] for user, item, _, time in table(dataset)]


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    columns = {"user_id": [2**60 + row // 6 for row in range(36)], "item_id": [float(row % 6) for row in range(36)]}
    pq.write_table(pa.table(columns), source / "log.parquet")
    dataset = made(source, "data.format=tables", "data.interactions=log.parquet")
    assert dataset.raw_user_ids() == [str(2**60 + user) for user in range(6)]
    assert dataset.raw_item_ids() == ["0", "1", "2", "3", "4", "5"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """6 users x 6 items; an item table in another order, with quoted line ends and an item that nobody bought."""
    source = tmp_path / "source"
    source.mkdir()
    rows = [{"user_id": f"u{user}", "item_id": f"i{item}"} for user in range(6) for item in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), source / "log.parquet")
    things = ["item_id,name,about,kind,f_1,f_2"]
    things += [f'i{item},"Thing, ""{item}""","two\nlines &amp; more",{item % 2},{item},{-item}' for item in (5, 9, 4, 3, 1, 0)]
    (source / "items.csv").write_text("\n".join(things))
    return source


ITEMS = ("tables.items=items.csv", "tables.title=name", "tables.text=[name,about]", "tables.category=kind")


SHOP = ("data.format=tables", "data.interactions=log.parquet", *ITEMS)


def test_item_tables(shop: Path) -> None:
    dataset = made(shop, *SHOP, "data.features.text=f_*")
    items = dataset.items().to_pylist()
    assert items[4] | {"image": None} == items[4]
    assert (
        items[4]["title"] == 'Thing, "4"' and items[4]["text"] == 'Thing, "4" two lines & more' and items[4]["category"] == "0"
    )
    assert items[2]["title"] is None and not items[2]["has_text"]
    np.testing.assert_allclose(dataset.feature("text")[:, 0], [0, 1, 13 / 5, 3, 4, 5])
    np.testing.assert_allclose(dataset.feature("text")[:, 1], [0, -1, -13 / 5, -3, -4, -5])


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_features_by_position(shop: Path, kind: str) -> None:
    rows = np.array([[5, 5], [9, 9], [4, 4], [3, 3], [1, 1], [0, 0]], np.float32)
    if kind == "npy":
        np.save(shop / "rows.npy", rows)
    else:
        save_file({"rows": rows}, shop / "rows.safetensors")
    dataset = made(shop, *SHOP, f"data.features.text=rows.{kind}")
    np.testing.assert_allclose(dataset.feature("text")[:, 0], [0, 1, 13 / 5, 3, 4, 5], rtol=1e-6)


def test_features_in_a_column_of_lists(shop: Path) -> None:
    columns = {"item_id": [f"i{item}" for item in (3, 2, 1, 0)], "vector": [[3.0], [2.0], [1.0], [0.0]]}
    pq.write_table(pa.table(columns), shop / "items.parquet")
    keys = ("data.format=tables", "data.interactions=log.parquet", "tables.items=items.parquet", "data.features.v=vector")
    assert made(shop, *keys).feature("v")[:, 0].tolist() == [0, 1, 2, 3, 1.5, 1.5]


def test_feature_files_are_taken_in_order(shop: Path) -> None:
    rows = np.array([[5, 5], [9, 9], [4, 4], [3, 3], [1, 1], [0, 0]], np.float32)
    for number, (begin, end) in enumerate([(0, 1), (1, 5), (5, 6)]):
        np.save(shop / f"rows{number}.npy", rows[begin:end])
    dataset = made(shop, *SHOP, "data.features.text=rows*.npy")
    np.testing.assert_allclose(dataset.feature("text")[:, 0], [0, 1, 13 / 5, 3, 4, 5], rtol=1e-6)
    assert len([role for role in dataset.manifest["origin"]["files"] if role.startswith("features.text")]) == 3


def test_a_bad_line_of_items_is_counted_once(shop: Path) -> None:
    with open(shop / "items.csv", "a") as file:
        file.write("\ni2,Thing\ni2,Thing 2,,1,x,-2")
    dataset = made(shop, *SHOP, "data.features.text=f_*", "data.features.more=f_[2]", "data.on_error=skip")
    listed = [json.loads(line) for line in (dataset.directory / "skipped.jsonl").read_text().splitlines()]
    reasons = [entry["reason"] for entry in listed]
    assert dataset.manifest["skipped"] == {"items": 1, "features.text": 1}
    assert "columns; expected 6" in reasons[0] and "f_1 is 'x'; expected a number" in reasons[1]
    np.testing.assert_allclose(dataset.feature("text")[2], [13 / 5, -13 / 5])
    assert dataset.feature("more")[2].tolist() == [-2]


def test_a_good_record_behind_a_bad_one_counts(shop: Path) -> None:
    ids, rows = [f"i{item}" for item in (2, 2, 0, 1, 2)], [[np.nan], [2.0], [0.0], [1.0], [7.0]]
    pq.write_table(pa.table({"item_id": ids, "v": rows}), shop / "items.parquet")
    keys = ("data.format=tables", "data.interactions=log.parquet", "tables.items=items.parquet", "data.features.v=v")
    dataset = made(shop, *keys, "data.on_error=skip")
    assert dataset.feature("v")[:3, 0].tolist() == [0, 1, 2]
    assert dataset.manifest["skipped"] == {"features.v": 2}


def test_brackets_in_the_name_of_a_directory(tmp_path: Path) -> None:
    source = tmp_path / "p3[1]"
    source.mkdir()
    (source / "log[1].csv").write_bytes(as_csv(columns_of(DUMP)))
    for number, pattern in enumerate(("log[1].csv", "log*.csv")):
        dataset = made(source, "data.format=tables", f"data.interactions={pattern}", KEEP, *COLUMNS, name=str(number))
        assert_is_published(dataset, DUMP)


@pytest.mark.parametrize("kind", ["lists", "fixed", "columns", "npy"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_wide_features_are_read_in_small_blocks(tmp_path: Path, kind: str, dtype: type) -> None:
    """24 MiB and more of numbers, of which no block takes more than 32 MiB, and none becomes wider than it was."""
    rows_RW: np.ndarray = np.repeat((np.arange(12_000) % 1000).astype(dtype), 1024).reshape(-1, 1024)
    columns: dict[str, object] = {"item_id": [str(number) for number in range(12_000)]}
    values = pa.array(rows_RW.ravel())
    named = {"lists": "v", "fixed": "v", "columns": "f_*", "npy": "rows.npy"}[kind]
    if kind == "lists":
        columns["v"] = pa.ListArray.from_arrays(np.arange(12_001, dtype=np.int32) * 1024, values)
    elif kind == "fixed":
        columns["v"] = pa.FixedSizeListArray.from_arrays(values, 1024)
    elif kind == "columns":
        columns |= {f"f_{place}": rows_RW[:, place] for place in range(1024)}
    np.save(tmp_path / "rows.npy", rows_RW)
    pq.write_table(pa.table(columns), tmp_path / "items.parquet", use_dictionary=False)
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["1"]}), tmp_path / "log.parquet")
    keys = ["data.interactions=log.parquet", "tables.items=items.parquet", f"data.features.v={named}"]
    config = load_config(None, ["data.format=tables", f"data.source={tmp_path}", *keys])
    source = find_tables(config.data, config.tables)
    known = {str(number): number for number in range(0, 12_000, 2)}
    begin = 0
    for some in source.feature_rows("v", SourceReader(lambda _: None), Mistakes(skip=False), known):
        assert some.rows.dtype == dtype and some.rows.nbytes <= 1 << 24 and len(some.rows)
        assert (some.rows == rows_RW[::2][begin : begin + len(some.rows)]).all()
        assert some.numbers.tolist() == [2 * place + 1 for place in range(begin, begin + len(some.rows))]
        begin += len(some.rows)
    assert begin == 6000


def test_a_dataset_below_its_own_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "log").mkdir(parents=True)
    pq.write_table(pa.table({"user_id": ["u", "u", "v", "v"], "item_id": ["i", "j", "i", "j"]}), source / "log" / "a.parquet")
    keys = ["data.format=tables", "data.interactions=**/*.parquet", "data.k_core=1", f"data.source={source}"]
    config = load_config(None, [*keys, f"data.dir={source / 'made'}"])
    assert prepare(config).hash == prepare(config).hash
