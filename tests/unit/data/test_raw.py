"""Raw formats: the same interactions out of every release and table, the published preparation, and passes done once."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from bm3_dgl.config.load import load_config
from bm3_dgl.config.schema import EncodeConfig
from bm3_dgl.data import blocks, prepare_raw
from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.data.items import ItemTable
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.prepare import prepare
from bm3_dgl.data.splits import held_out
from bm3_dgl.data.tables import find_tables
from bm3_dgl.errors import DataError
from bm3_dgl.log import logger
from bm3_dgl.types import Split
from tests.unit.data.dumps import (
    Dump,
    image_features,
    make_dump,
    meta_2014,
    meta_2018,
    meta_2023,
    ratings_2014,
    reviews,
    reviews_2023,
    write,
    write_2014,
)  # fmt: skip

DUMP = make_dump(3)


def made(source: Path, *keys: str, name: str = "dataset") -> Dataset:
    return prepare(load_config(None, [f"data.source={source}", f"data.dir={source.parent / name}", *keys]))


def published(rows: list[tuple[str, str, float, int]], k: int = 5) -> list[tuple[str, str, int]]:
    """The published preparation up to the k-core, as slowly as it is written down: user, item, time in s, in order."""
    kept, seen = [], set()
    for user, item, _, time in rows:
        if (user, item, time) not in seen:
            seen.add((user, item, time))
            kept.append((user, item, time))
    while True:
        of_user, of_item = Counter(user for user, _, _ in kept), Counter(item for _, item, _ in kept)
        left = [row for row in kept if of_user[row[0]] >= k and of_item[row[1]] >= k]
        if len(left) == len(kept):
            return kept
        kept = left


def published_split(count: int) -> list[int]:
    """Labels of a user's rows, as the published notebook computes them."""
    if count < 10:
        return [0] * (count - 2) + [1] + [2]
    held = int(count * 0.2)
    valid = held // 2
    return [0] * (count - held) + [1] * valid + [2] * (held - valid)


def table(dataset: Dataset) -> list[tuple[int, int, int, int]]:
    """user, item, split, time in s, in file order."""
    columns = pq.read_table(dataset.directory / "interactions.parquet").to_pydict()
    return list(
        zip(columns["user"], columns["item"], columns["split"], [time // 1000 for time in columns["time"]], strict=True)
    )


def assert_is_published(dataset: Dataset, dump: Dump) -> None:
    expected = published(dump.rows)
    assert 0 < len(expected) < len(dump.rows)
    users, items = (list(dict.fromkeys(column)) for column in list(zip(*expected, strict=True))[:2])
    assert dataset.raw_user_ids() == users and dataset.raw_item_ids() == items  # in order of first appearance
    rows = table(dataset)
    assert sorted((users[user], items[item], time) for user, item, _, time in rows) == sorted(expected)
    assert [user for user, *_ in rows] == sorted(user for user, *_ in rows)
    for user in range(len(users)):
        labels = [split for owner, _, split, _ in rows if owner == user]
        assert labels == published_split(len(labels))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_2014(tmp_path / "source", DUMP)


KEEP = "data.repeats=keep"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("release", "files"),
    [
        ("2014", {"ratings_Baby.csv": ratings_2014}),
        ("2014", {"reviews_Baby_5.json": reviews}),
        ("2014", {"reviews_Baby.json": reviews}),
        ("2018", {"Baby_5.json": reviews}),
        ("2023", {"Baby.jsonl": reviews_2023}),
    ],
)
def test_every_release_gives_the_published_preparation(tmp_path: Path, release: str, files: dict, packed: bool) -> None:
    metas = {
        "2014": ("meta_Baby.json", meta_2014),
        "2018": ("meta_Baby.json", meta_2018),
        "2023": ("meta_Baby.jsonl", meta_2023),
    }
    (tmp_path / "source").mkdir()
    for name, content in [*files.items(), metas[release]]:
        write(tmp_path / "source" / name, content(DUMP), packed=packed)
    dataset = made(tmp_path / "source", f"data.format=amazon{release}")
    assert_is_published(dataset, DUMP)
    asin = next(asin for asin in dataset.raw_item_ids() if len(DUMP.items.get(asin, {})) == 8)
    item = dataset.items().to_pylist()[dataset.raw_item_ids().index(asin)]
    kind = item["title"].partition(" & ")[0]
    assert item["title"] == f"{kind} & Co, it's no. {asin[-4:]}"
    place = item["category"].split(" > ")[1]
    expected = f'{item["title"]} Bear "Bros" Baby {place} {kind}s A {kind.lower()} for every day\u2014and night.'
    assert item["text"] == expected
    assert item["image"] == f"http://images.example/{asin}.jpg"
    assert item["has_text"] and not item["has_image"]


def test_columns_of_2018_ratings_are_item_user(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    rows = "".join(f"{item},{user},{rating},{time}\n" for user, item, rating, time in DUMP.rows)
    (tmp_path / "source" / "Baby.csv").write_text(rows)
    assert_is_published(made(tmp_path / "source", "data.format=amazon2018"), DUMP)


def test_split_of_every_count() -> None:
    for count in range(3, 20_000):
        labels = published_split(count)
        assert held_out(count) == (labels.count(1), labels.count(2)), count
    assert [held_out(count) for count in (1, 2)] == [(0, 0), (0, 0)]


def test_random_split_follows_its_seed(source: Path) -> None:
    first = made(source, "data.format=amazon2014", name="first")
    again = made(source, "data.format=amazon2014", name="again")
    other = made(source, "data.format=amazon2014", "data.split_seed=1", name="other")
    assert first.hash == again.hash
    assert table(first) != table(other) and sorted(row[:2] for row in table(first)) == sorted(row[:2] for row in table(other))
    place = {row: index for index, row in enumerate((user, item) for user, item, _ in published(DUMP.rows))}
    users, items = first.raw_user_ids(), first.raw_item_ids()
    tested = [place[users[user], items[item]] for user, item, split, _ in table(first) if split == Split.test]
    assert 0.4 < np.mean(tested) / len(place) < 0.6  # not the last ones of the file


def test_split_by_time(source: Path) -> None:
    rows = table(made(source, "data.format=amazon2014", "data.split=time"))
    for user in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == user]
        assert [time for *_, time in own] == sorted(time for *_, time in own)
        assert [split for _, _, split, _ in own] == published_split(len(own))


def test_split_by_global_time(source: Path) -> None:
    rows = table(made(source, "data.format=amazon2014", "data.split=global_time"))
    times = {split: [time for _, _, label, time in rows if label == split] for split in Split}
    assert max(times[Split.train]) < min(times[Split.valid]) and max(times[Split.valid]) < min(times[Split.test])
    assert len(times[Split.train]) == pytest.approx(0.8 * len(rows), abs=1)
    assert len(times[Split.test]) == pytest.approx(0.1 * len(rows), abs=1)


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


def test_repeats_at_other_times(tmp_path: Path) -> None:
    rows = [*DUMP.rows, *((user, item, rating, time + 1) for user, item, rating, time in DUMP.rows[:50])]
    source = write_2014(tmp_path / "source", dataclasses.replace(DUMP, rows=rows))
    pairs = [row[:2] for row in table(made(source, "data.format=amazon2014", "data.repeats=first"))]
    assert len(pairs) == len(set(pairs))
    kept = made(source, "data.format=amazon2014", name="kept")  # as was published
    assert_is_published(kept, dataclasses.replace(DUMP, rows=rows))
    assert len(table(kept)) > len(pairs)


def test_steps_are_counted(source: Path) -> None:
    with open(source / "ratings_Baby.csv", "a") as file:
        file.write(",B1,5.0,7\nA1,,5.0,7\nA1,B1,5.0,\n")
    manifest = made(source, "data.format=amazon2014", "data.repeats=first").manifest
    steps = {step["step"]: step for step in manifest["steps"]}
    assert list(steps) == ["read", "missing fields", "duplicates", "repeats", "k-core", "split"]
    counts = [step["interactions"] for step in manifest["steps"]]
    assert counts[0] == len(DUMP.rows) + 3 and counts[1] == len(DUMP.rows) and counts[2] == len(DUMP.rows) - 5
    assert counts[4] == len(published(DUMP.rows)) and steps["k-core"]["rounds"] >= 1
    assert steps["read"]["users"] == len({user for user, *_ in DUMP.rows})
    assert "interactions with a missing field: 3 of" in manifest["warnings"][0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_image_features(source: Path, dtype: str) -> None:
    dataset = made(source, "data.format=amazon2014", f"data.feature_dtype={dtype}")
    rows, asins = dataset.feature("visual"), dataset.raw_item_ids()
    assert rows.dtype == dtype
    mean = np.mean([DUMP.images[asin] for asin in asins if asin in DUMP.images], axis=0, dtype=np.float64)
    for index, (asin, item) in enumerate(zip(asins, dataset.items("has_image").to_pylist(), strict=True)):
        assert item["has_image"] == (asin in DUMP.images)
        np.testing.assert_allclose(
            rows[index], DUMP.images.get(asin, mean), rtol=1e-3, atol=1e-3 if dtype == "float16" else 1e-6
        )
    assert dataset.manifest["features"]["visual"]["found"] == sum(asin in DUMP.images for asin in asins) < len(asins)


def test_modalities_choose_what_is_read(source: Path) -> None:
    assert made(source, "data.format=amazon2014", "data.modalities=[]").modalities == []


def test_encoded_texts_are_a_modality(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder gets the texts in order of the items; its rows and flags go into the dataset."""

    def encode(items: ItemTable, target: Path, config: EncodeConfig, dtype: np.dtype) -> np.ndarray:
        texts = [text for batch in items.batches("text", size=7) for text in batch]
        rows = [[len(text or ""), config.text == "lengths"] for text in texts]
        np.save(target, np.array(rows, dtype))
        return np.array([text is not None for text in texts])

    monkeypatch.setattr("bm3_dgl.data.encode_text.encode_text", encode)
    monkeypatch.setattr("bm3_dgl.data.encode_text.text_settings", lambda config: {"encode.text": config.text})
    dataset = made(source, "data.format=amazon2014", "encode.text=lengths")
    assert dataset.modalities == ["visual", "text"]
    items = dataset.items().to_pylist()
    assert dataset.feature("text").tolist() == [[len(item["text"] or ""), 1] for item in items]
    without = sum(item["text"] is None for item in items)
    assert without > 0 and dataset.manifest["features"]["text"]["found"] == len(items) - without
    assert f"items without text: {without} of {len(items)}" in dataset.manifest["warnings"]
    with pytest.raises(DataError, match=r"asked is encode\.text=others, it has lengths"):
        made(source, "data.format=amazon2014", "encode.text=others")


# --- a shop's own tables


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


# --- mistakes that are skipped


def test_skipped_lines_are_counted_and_listed(source: Path) -> None:
    lines = ratings_2014(DUMP).splitlines(keepends=True)
    broken = [b"A1,B1\n", *lines[:400], b"A1,B1,x,7\n", *lines[400:], b"A\xff,B1,5.0,7\n"]
    (source / "ratings_Baby.csv").write_bytes(b"".join(broken))
    write(source / "meta_Baby.json", meta_2014(DUMP) + b"{'asin'\n", packed=True)
    dataset = made(source, "data.format=amazon2014", "data.on_error=skip")
    assert_is_published(dataset, DUMP)
    assert dataset.manifest["skipped"] == {"interactions": 3, "items": 1}
    listed = (dataset.directory / "skipped.jsonl").read_text()
    assert [f'"line": {line}' in listed for line in (1, 402, 403, len(lines) + 3)] == [True, True, False, True]
    assert any(
        "bad lines or records skipped: 3; listed in skipped.jsonl" in warning for warning in dataset.manifest["warnings"]
    )


@pytest.mark.parametrize("piece", [16, 100, 5000])
def test_blocks_of_any_size_give_the_same(source: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    expected = made(source, "data.format=amazon2014", name="whole")
    monkeypatch.setattr(blocks, "PIECE_BYTES", piece)
    if piece == 16:  # a feature record at a time would take for ever
        (source / "image_features_Baby.b").unlink()
    assert table(made(source, "data.format=amazon2014", name="pieces")) == table(expected)


def test_a_record_that_is_repeated_word_for_word_is_read_once(source: Path) -> None:
    write(source / "meta_Baby.json", meta_2014(DUMP) * 2, packed=True)
    manifest = made(source, "data.format=amazon2014").manifest
    assert any("records that repeat another one word for word" in warning for warning in manifest["warnings"])


# --- passes are done once


def test_second_call_does_nothing_and_says_so(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = made(source, "data.format=amazon2014")
    monkeypatch.setattr(prepare_raw, "read_interactions", None)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger="bm3_dgl"):
        assert made(source, "data.format=amazon2014").hash == first.hash
    assert "nothing to prepare, opened" in caplog.text
    assert sorted(path.name for path in source.parent.iterdir()) == ["dataset", "source"]


@pytest.mark.parametrize("broken", ["filter_interactions", "read_items", "write_features", "write_items", "write_manifest"])
def test_what_was_done_is_not_done_again(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    expected = made(source, "data.format=amazon2014", name="expected")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_raw, broken, interrupt)
        with pytest.raises(KeyboardInterrupt):
            made(source, "data.format=amazon2014")
    assert not (source.parent / "dataset").exists()
    monkeypatch.setattr(prepare_raw, "read_interactions", None)  # would fail if it were called
    assert made(source, "data.format=amazon2014").hash == expected.hash
    assert sorted(path.name for path in source.parent.iterdir()) == ["dataset", "expected", "source"]


def test_half_done_work_on_something_else_is_not_used(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made(source, "data.format=amazon2014", "data.k_core=6", name="expected")
    with monkeypatch.context() as patch:
        patch.setattr(prepare_raw, "read_items", None)
        with pytest.raises(TypeError):
            made(source, "data.format=amazon2014")
    assert made(source, "data.format=amazon2014", "data.k_core=6").hash == expected.hash


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.k_core=6"], r"asked is data\.k_core=6, it has 5"),
        (["data.split=time"], r"asked is data\.split=time, it has random"),
        (["data.feature_dtype=float16"], r"asked is data\.feature_dtype=float16, it has float32"),
        (["data.modalities=[]"], r"asked is modalities=\[\], it has \['visual'\]"),
        (["data.format=mmrec"], r"holds a dataset made by amazon2014 .*asked is data\.format=mmrec"),
    ],
)
def test_other_settings_are_refused(source: Path, keys: list[str], message: str) -> None:
    made(source, "data.format=amazon2014")
    with pytest.raises(DataError, match=message):
        made(source, "data.format=amazon2014", *keys)


def test_another_source_is_refused_and_none_is_needed(source: Path) -> None:
    first = made(source, "data.format=amazon2014")
    assert prepare(load_config(None, [f"data.dir={first.directory}", "data.format=amazon2014"])).hash == first.hash
    (source / "image_features_Baby.b").write_bytes(image_features(DUMP)[::-1])
    with pytest.raises(DataError, match=r"asked is features\.visual from .*, which differs from the"):
        made(source, "data.format=amazon2014")


# --- features in many files, or with mistakes


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
