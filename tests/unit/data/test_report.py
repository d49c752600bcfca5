"""The data report: right numbers, sound HTML whatever the data hold, and warnings where rows belong to other items."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bm3_dgl.config.schema import ShopConfig
from bm3_dgl.data.chart import bar_chart, doubling_bins, short
from bm3_dgl.data.dataset import RawDataset, write_dataset
from bm3_dgl.data.page import escape, table
from bm3_dgl.data.report import is_reported, write_report
from bm3_dgl.data.shop import make_shop
from bm3_dgl.data.survey import agreement, choose_queries, nearest, own_rows, survey_interactions
from bm3_dgl.errors import DataError
from bm3_dgl.types import Split


@pytest.fixture(scope="module")
def shop() -> RawDataset:
    return make_shop(ShopConfig(users=400, items=150, visual_width=8, text_width=6))


def tiny(titles: list[str | None], **changes: object) -> RawDataset:
    """3 users, 4 items; user 2 has no train row, item 3 is in valid and test alone."""
    raw = RawDataset(
        users=np.array([0, 0, 0, 1, 1, 2], np.int32),
        items=np.array([0, 1, 3, 0, 2, 3], np.int32),
        split=np.array([0, 0, 1, 0, 2, 2], np.int8),
        raw_user_ids=["u0", "u1", "u2"],
        raw_item_ids=["i0", "i1", "i2", "i3"],
        titles=titles,
        features={"text": np.array([[1, 0], [0, 0], [3, 4], [0.6, 0.8]], np.float32)},
        origin={"reader": "tiny"},
        warnings=[],
    )
    return dataclasses.replace(raw, **changes)  # type: ignore[arg-type]


def written(raw: RawDataset, directory: Path) -> str:
    write_dataset(raw, directory)
    return write_report(directory).read_text(encoding="utf-8")


def plain(page: str) -> str:
    """The page's text, tags left out."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


class Balance(HTMLParser):
    """Fails at a tag that is closed by another one, and collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def sound(page: str) -> Balance:
    reader = Balance()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_counts_worked_out_by_hand(tmp_path: Path) -> None:
    text = plain(written(tiny(["a", "b", "c", None]), tmp_path / "d"))
    assert "3 users 4 items 6 interactions 50.000 % sparsity" in text
    assert "train 3 50.0 % 2 valid 1 16.7 % 1 test 2 33.3 % 2" in text
    assert "interactions of one user 2.00 1 2 3 3 3 50.0 %" in text
    assert "items without a train interaction: 2;" in text  # 2 is in test alone, 3 in valid and test
    assert "text: rows of zeros only: 1;" in text
    assert "text 2 float32 4 (100.0 %) 0 / 1 / 5 1 too few pairs" in text
    assert "i3" in text  # the item without a title, by its id


def test_is_one_file_that_asks_for_nothing(shop: RawDataset, tmp_path: Path) -> None:
    page = written(shop, tmp_path / "d")
    reader = sound(page)
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not reader.attributes & {"src", "href", "style", "onload", "onclick"}
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert sorted(path.name for path in (tmp_path / "d").glob("*report*")) == ["report.html"]


def test_whatever_the_data_hold_is_text(tmp_path: Path) -> None:
    nasty = '<script>alert("1")</script>&amp;</td></table>'
    raw = tiny(
        [nasty] * 4,
        raw_item_ids=[f"{nasty}{index}" for index in range(4)],
        origin={"reader": nasty, "settings": {nasty: [nasty]}, "files": {nasty: {"path": nasty, "bytes": 1, "sha256": nasty}}},
        warnings=[nasty],
        features={},
    )
    page = written(raw, tmp_path / nasty.replace("/", "|"))
    assert "script" not in sound(page).tags
    assert page.count(escape(nasty)) >= 4 + 4 + 3


def test_rows_of_other_items_are_warned_of(shop: RawDataset, tmp_path: Path) -> None:
    warning = "items bought together are no more alike than items paired by chance"
    assert warning not in written(shop, tmp_path / "right")
    wrong = {"text": np.roll(shop.features["text"], 1, axis=0), "visual": shop.features["visual"]}
    text = plain(written(dataclasses.replace(shop, features=wrong), tmp_path / "wrong"))
    assert text.count(warning) == 1 and f"text: {warning}" in text


def test_rows_that_were_filled_in_are_warned_of_and_not_shown(shop: RawDataset, tmp_path: Path) -> None:
    rows = np.array(shop.features["text"])
    rows[50:] = rows[:50].mean(axis=0)
    page = written(dataclasses.replace(shop, features={"text": rows}), tmp_path / "d")
    assert "text: items that share one row, as if it was filled in: 100;" in plain(page)
    near = page[page.index("Nearest neighbours") : page.index("Origin")]
    assert near.count("<h3>") == 6
    titles = {escape(title, 120) for title in shop.titles[:50] if title}
    assert {line for line in re.findall(r"<h3>(.*?)</h3>", near)} <= titles
    assert {line for line in re.findall(r"<li>(.*?) <span", near)} <= titles


def test_features_that_the_manifest_calls_filled_in_are_no_warning(shop: RawDataset, tmp_path: Path) -> None:
    rows = np.array(shop.features["text"])
    rows[50:] = rows[:50].mean(axis=0)
    write_dataset(dataclasses.replace(shop, features={"text": rows}), tmp_path / "d")
    manifest = json.loads((tmp_path / "d/dataset.json").read_text())
    manifest["features"]["text"]["found"] = 50
    (tmp_path / "d/dataset.json").write_text(json.dumps(manifest))
    text = plain(write_report(tmp_path / "d").read_text())
    assert "as if it was filled in" not in text
    assert "50 (33.3 %)" in text


def test_steps_show_what_each_dropped(tmp_path: Path) -> None:
    write_dataset(tiny(["a"] * 4), tmp_path / "d")
    manifest = json.loads((tmp_path / "d/dataset.json").read_text())
    manifest["steps"] = [
        {"step": "read", "interactions": 1000},
        {"step": "missing fields", "users": 50, "items": 40, "interactions": 900},
        {"step": "k-core", "users": 3, "items": 4, "interactions": 6, "rounds": 2},
    ]
    (tmp_path / "d/dataset.json").write_text(json.dumps(manifest))
    text = plain(write_report(tmp_path / "d").read_text())
    assert "read 1,000 missing fields 50 40 900 100 k-core 3 4 6 894 rounds: 2" in text


def test_times_and_flags(tmp_path: Path) -> None:
    write_dataset(tiny(["a"] * 4), tmp_path / "d")
    day = 86_400_000
    interactions = pq.read_table(tmp_path / "d/interactions.parquet")
    times = pa.array([0, 0, day, 40 * day, 40 * day, 40 * day], pa.int64())
    replace_table(tmp_path / "d/interactions.parquet", interactions.append_column("time", times))
    items = pq.read_table(tmp_path / "d/items.parquet").drop_columns(["has_text", "has_image"])
    flags = pa.array([True, True, True, False])
    replace_table(tmp_path / "d/items.parquet", items.append_column("has_text", flags))
    page = write_report(tmp_path / "d").read_text()
    assert "75.0 % of items with text" in plain(page)
    assert "<title>1970-01-01: 2 interactions</title>" in page
    assert "<title>1970-02-09: 3 interactions</title>" in page


def replace_table(path: Path, content: pa.Table) -> None:
    """Write another table in place of one of the dataset's, and its size in the manifest."""
    pq.write_table(content, path)
    manifest = json.loads((path.parent / "dataset.json").read_text())
    manifest["files"][path.name]["bytes"] = path.stat().st_size
    (path.parent / "dataset.json").write_text(json.dumps(manifest))


def test_is_made_once_and_again_for_another_dataset(tmp_path: Path) -> None:
    write_dataset(tiny(["a"] * 4), tmp_path / "d")
    assert not is_reported(tmp_path / "d")
    write_report(tmp_path / "d")
    assert is_reported(tmp_path / "d")
    later = (tmp_path / "d/report.html").stat().st_mtime_ns + 1
    os.utime(tmp_path / "d/dataset.json", ns=(later, later))
    assert not is_reported(tmp_path / "d")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    write_dataset(tiny(["a"] * 4), tmp_path / "d")
    (tmp_path / "d/report.html").mkdir()
    with pytest.raises(DataError, match=r"d/report.html: cannot be written \(Is a directory\)"):
        write_report(tmp_path / "d")
    assert list((tmp_path / "d").glob(".*")) == []


def test_survey_of_interactions(shop: RawDataset, tmp_path: Path) -> None:
    dataset = write_dataset(shop, tmp_path / "d")
    found = survey_interactions(dataset)
    train = shop.split == Split.train
    assert found.user_degrees.tolist() == [int((shop.users == user).sum()) for user in range(400)]
    assert found.trained_items.tolist() == [int((shop.items[train] == item).sum()) for item in range(150)]
    assert found.split_users[Split.valid] == len(set(shop.users[shop.split == Split.valid].tolist()))
    baskets = [set(shop.items[train & (shop.users == user)].tolist()) for user in range(400)]
    assert len(found.together) > 1000
    assert all(left != right and any({left, right} <= basket for basket in baskets) for left, right in found.together.tolist())


def test_an_item_is_not_bought_together_with_itself(tmp_path: Path) -> None:
    users, items = np.repeat(np.arange(3), 4).astype(np.int32), np.array([0, 0, 0, 1] * 3, np.int32)
    dataset = write_dataset(tiny(["a"] * 4, users=users, items=items, split=np.zeros(12, np.int8)), tmp_path / "d")
    together = survey_interactions(dataset).together
    assert len(together) >= 3
    assert (together[:, 0] != together[:, 1]).all()


def test_nearest_neighbours_against_a_naive_loop() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(60, 4)).astype(np.float16)
    own = random.random(60) < 0.7
    queries = np.flatnonzero(own)[:3]
    best = nearest(rows, np.linalg.norm(rows.astype(np.float32), axis=1), own, queries, count=4)
    exact = rows.astype(np.float64)
    for query in queries.tolist():
        cosines = [
            (exact[query] @ exact[item] / np.linalg.norm(exact[query]) / np.linalg.norm(exact[item]), -item)
            for item in np.flatnonzero(own).tolist()
            if item != query
        ]
        expected = sorted(cosines, reverse=True)[:4]
        assert [item for item, _ in best[query]] == [-item for _, item in expected]
        np.testing.assert_allclose([cosine for _, cosine in best[query]], [cosine for cosine, _ in expected], atol=1e-5)


def test_agreement_of_rows_that_tell_all_nothing_and_the_opposite() -> None:
    random = np.random.default_rng(2)
    kinds = np.arange(100) % 2  # pairs bought together are of one kind
    pairs = np.array(
        [(left, right) for left, right in random.integers(0, 100, (9000, 2)) if kinds[left] == kinds[right] and left != right]
    )
    told = np.stack([kinds, 1 - kinds], axis=1).astype(np.float32)
    all_told = agreement(told, pairs)
    assert all_told is not None and all_told.area == pytest.approx(0.75, abs=0.02)  # half of the chance pairs tie
    noise = agreement(random.normal(size=(100, 8)).astype(np.float32), pairs)
    assert noise is not None and abs(noise.area - 0.5) < 4 * noise.error
    assert agreement(told, pairs[:99]) is None


def test_own_rows() -> None:
    rows = np.arange(200, dtype=np.float32).reshape(100, 2)
    assert own_rows(rows).all()
    rows[80:90] = 7  # ten alike: as variants of one product are
    assert own_rows(rows).all()
    rows[79] = 7
    assert own_rows(rows).tolist() == [True] * 79 + [False] * 11 + [True] * 10


def test_queries_are_half_popular_and_have_what_can_be_had() -> None:
    popularity = np.arange(40)
    titled, pictured = popularity % 2 == 0, popularity < 0
    chosen = choose_queries(popularity, [titled, pictured])
    assert chosen[:3].tolist() == [38, 36, 34]
    assert len(set(chosen.tolist())) == 6 and titled[chosen].all()
    assert choose_queries(np.zeros(2, np.int64), []).tolist() == [0, 1]


def test_bins_double() -> None:
    labels, numbers = doubling_bins(np.array([1, 2, 2, 3, 4, 5, 8, 9, 17]))
    assert labels == ["1", "2", "3–4", "5–8", "9–16", "17–32"]
    assert numbers == [1, 2, 2, 2, 1, 1]
    assert doubling_bins(np.array([0, 0, 3])) == (["0", "1", "2", "3–4"], [2, 0, 0, 1])
    assert doubling_bins(np.array([6, 7])) == (["5–8"], [2])
    assert doubling_bins(np.array([], np.int64)) == ([], [])


def test_bars_are_as_high_as_their_values() -> None:
    svg = bar_chart(["a", "<b>"], [50, 100], axis="x", names="things")
    heights = [float(height) for height in re.findall(r'class="bar".*?height="([0-9.]+)"', svg)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.1)
    assert "<title>&lt;b&gt;: 100 things</title>" in svg
    sound(svg)
    sound(bar_chart([], [], axis="x", names="things"))


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (950, "950"), (1234, "1.2k"), (45_678, "46k"), (3_400_000, "3.4M"), (5e9, "5.0G")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_tables_mark_columns_of_numbers() -> None:
    assert '<td class="number">1</td>' in table(["a", "#b"], [["x", "1"]])
    with pytest.raises(ValueError):
        table(["a"], [["x", "y"]])
