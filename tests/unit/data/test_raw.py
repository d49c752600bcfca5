"""Raw formats: the same interactions out of every release and table, the published preparation, and passes done once."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from bm3_dgl.config.load import load_config
from bm3_dgl.config.schema import EncodeConfig
from bm3_dgl.data import blocks, prepare_raw
from bm3_dgl.data.items import ItemTable
from bm3_dgl.data.prepare import prepare
from bm3_dgl.data.splits import held_out
from bm3_dgl.errors import DataError
from bm3_dgl.log import logger
from bm3_dgl.types import Split
from tests.unit.data.dumps import (
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
from tests.unit.data.published import assert_is_published, made, published, published_split, table

DUMP = make_dump(3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_2014(tmp_path / "source", DUMP)


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
