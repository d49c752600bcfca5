"""The reader of the authors' directory format: what it returns, and the keys it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bm3_dgl.config.schema import DataConfig
from bm3_dgl.data import features as features_module
from bm3_dgl.data.mmrec import read_mmrec
from bm3_dgl.errors import ConfigError, DataError, UserError
from tests.unit.data.sources import HEADER, ROWS, features, write_lines, write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def config(source: Path) -> DataConfig:
    return write_source(source)


def refused(config: DataConfig, message: str, kind: type[UserError] = DataError) -> None:
    """Reading fails with one line that matches."""
    with pytest.raises(kind, match=message) as caught:
        read_mmrec(config)
    assert "\n" not in str(caught.value)


# --- what it returns


def test_reads_interactions_and_features(config: DataConfig) -> None:
    raw = read_mmrec(config)
    assert list(zip(raw.users.tolist(), raw.items.tolist(), raw.split.tolist(), strict=True)) == ROWS
    assert (raw.users.dtype, raw.items.dtype, raw.split.dtype) == (np.int32, np.int32, np.int8)
    assert list(raw.features) == ["visual", "text"]
    np.testing.assert_array_equal(raw.features["visual"], features(3))
    np.testing.assert_array_equal(raw.features["text"], features(2))
    assert raw.raw_user_ids == ["0", "1", "2"]
    assert raw.raw_item_ids == ["0", "1", "2", "3"]
    assert raw.titles == [None] * 4
    assert raw.warnings == []


def test_columns_are_found_by_name(config: DataConfig, source: Path) -> None:
    write_lines(source, "rating\tx_label\titemID\tnote\tuserID", "5\t0\t3\tfine\t0", '1\t2\t0\t"odd\t1', "2\t0\t1\t\t1")
    raw = read_mmrec(config)
    assert raw.users.tolist() == [0, 1, 1]
    assert raw.items.tolist() == [3, 0, 1]
    assert raw.split.tolist() == [0, 2, 0]


def test_blank_lines_windows_ends_and_byte_order_mark(config: DataConfig, source: Path) -> None:
    text = "\ufeff" + "\r\n".join([HEADER, "0\t3\t0", "", "1\t0\t1", "", ""])
    (source / "tiny.inter").write_bytes(text.encode())
    raw = read_mmrec(config)
    assert raw.items.tolist() == [3, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_float_layouts_are_converted(config: DataConfig, source: Path, dtype: str, order: str) -> None:
    np.save(source / "visual.npy", np.asarray(features(3), dtype=dtype, order=order))  # type: ignore[call-overload]
    rows = read_mmrec(config).features["visual"]
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, features(3))


def test_conversion_joins_blocks_in_order(config: DataConfig, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_BLOCK_BYTES", 4 * 3)  # one row a block
    np.save(source / "visual.npy", features(3).astype(np.float64))
    np.testing.assert_array_equal(read_mmrec(config).features["visual"], features(3))


def test_float32_is_mapped_and_not_copied(config: DataConfig) -> None:
    rows = read_mmrec(config).features["visual"]
    assert isinstance(rows, np.memmap)
    assert Path(str(rows.filename)).name == "visual.npy"


def test_only_selected_modalities_are_opened(config: DataConfig, source: Path) -> None:
    config.modalities = ["text"]
    (source / "visual.npy").write_bytes(b"damaged, but not asked for")
    raw = read_mmrec(config)
    assert list(raw.features) == ["text"]
    assert "features.visual" not in raw.origin["files"]
    config.modalities = []
    assert read_mmrec(config).features == {}


def test_features_outside_of_the_source(config: DataConfig, source: Path, tmp_path: Path) -> None:
    (source / "visual.npy").rename(tmp_path / "elsewhere.npy")
    config.features["visual"] = str(tmp_path / "elsewhere.npy")
    np.testing.assert_array_equal(read_mmrec(config).features["visual"], features(3))


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_raw_ids_come_from_the_mapping(config: DataConfig, source: Path, delimiter: str) -> None:
    rows = [("asin", "itemID"), ("B9", "1"), ("B7", "0"), ("B3", "3"), ("B5", "2")]
    write_lines(source, *(delimiter.join(row) for row in rows), name="i_id_mapping.csv")
    write_lines(source, f"userID{delimiter}who", f"0{delimiter}ann", f"2{delimiter}cy", name="u_id_mapping.csv")
    raw = read_mmrec(config)
    assert raw.raw_item_ids == ["B7", "B9", "B5", "B3"]
    assert raw.raw_user_ids == ["ann", "1", "cy"]
    assert [warning.split(": ", 1)[1] for warning in raw.warnings] == ["ids without a raw id: 1 of 3; called by their number"]


def test_raw_id_with_a_comma_in_quotes(config: DataConfig, source: Path) -> None:
    write_lines(source, "itemID,name", '0,"a,b"', "1,c", "2,d", "3,e", name="i_id_mapping.csv")
    assert read_mmrec(config).raw_item_ids == ["a,b", "c", "d", "e"]


def test_titles_are_unescaped(config: DataConfig, source: Path) -> None:
    config.titles = "items.jsonl"
    lines = [
        '{"itemID": 2, "title": "Cup&reg;  &amp; saucer"}',
        '{"itemID": 0, "title": null}',
        "",
        '{"itemID": 1, "title": " "}',
    ]
    write_lines(source, *lines, '{"itemID": 3}', '{"itemID": 9, "title": "gone"}', name="items.jsonl")
    raw = read_mmrec(config)
    assert raw.titles == [None, None, "Cup® & saucer", None]
    assert "items that are not in the interactions: 1 (highest id there: 3)" in raw.warnings[0]


def test_gaps_and_trainless_users_are_warnings(config: DataConfig, source: Path) -> None:
    write_lines(source, HEADER, "0\t3\t0", "2\t3\t1", "2\t1\t2", "5\t1\t2")
    raw = read_mmrec(config)
    assert len(raw.raw_user_ids) == 6
    assert [warning.split(": ", 1)[1] for warning in raw.warnings] == [
        "3 of 6 ids of userID do not occur",
        "2 of 4 ids of itemID do not occur",
        "users without a train interaction: 2; left out of evaluation",
    ]


# --- keys that contradict each other


def test_modality_without_a_file(config: DataConfig) -> None:
    config.modalities = ["visual", "audio"]
    message = re.escape("data.modalities: 'audio' has no entry in data.features (visual, text); set data.features.audio=FILE")
    refused(config, message, ConfigError)


def test_modality_that_cannot_name_a_file(config: DataConfig) -> None:
    config.features["../up"] = "visual.npy"
    refused(config, r"data\.features: '\.\./up' cannot name a modality", ConfigError)


def test_source_that_is_empty_or_missing(config: DataConfig, tmp_path: Path) -> None:
    config.source = str(tmp_path / "nowhere")
    refused(config, r"data\.source=.*nowhere: no such directory")
    config.source = ""
    refused(config, r"data\.source is empty", ConfigError)
