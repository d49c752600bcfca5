"""Preparing: a dataset is made once, opened afterwards, and never mistaken for another one."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bm3_dgl.config.load import load_config
from bm3_dgl.config.schema import DataConfig, DataFormat, JobConfig, ShopConfig
from bm3_dgl.data import mmrec, origin
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import ConfigError, DataError, UserError
from bm3_dgl.jobs.prepare import main
from bm3_dgl.log import logger
from bm3_dgl.types import Split
from tests.unit.data.sources import HEADER, ROWS, features, write_lines, write_source

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture
def shop_config(tmp_path: Path) -> JobConfig:
    return JobConfig(data=DataConfig(dir=str(tmp_path / "shop")), shop=ShopConfig(users=30, items=20))


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    data = write_source(tmp_path / "source")
    data.format = DataFormat.mmrec
    return JobConfig(data=data)


def refused(config: JobConfig, message: str, kind: type[UserError] = DataError) -> None:
    """Preparing fails with one line that matches, and leaves data.dir and its surroundings as they were."""
    around = Path(config.data.dir).parent
    before = sorted(around.rglob("*"))
    with pytest.raises(kind, match=message) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)
    assert sorted(around.rglob("*")) == before


def touch(path: Path) -> None:
    """Another time of last change, the same content."""
    os.utime(path, ns=(1, 1))


def test_makes_the_shop_and_opens_it_again(shop_config: JobConfig) -> None:
    made = prepare(shop_config)
    assert (made.num_users, made.num_items) == (30, 20)
    assert made.modalities == ["visual", "text"]
    written = made.directory.stat().st_mtime_ns
    opened = prepare(shop_config)
    assert opened.hash == made.hash
    assert opened.directory.stat().st_mtime_ns == written


def test_makes_an_mmrec_dataset(config: JobConfig) -> None:
    dataset = prepare(config)
    users, items = dataset.interactions(Split.train)
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == [(u, i) for u, i, label in ROWS if label == 0]
    np.testing.assert_array_equal(dataset.feature("text"), features(2))
    assert dataset.manifest["counts"]["valid"] == 1


def test_job_makes_the_dataset(shop_config: JobConfig) -> None:
    main(shop_config)
    assert (Path(shop_config.data.dir) / "dataset.json").is_file()


def test_an_empty_directory_is_used(shop_config: JobConfig) -> None:
    Path(shop_config.data.dir).mkdir()
    assert prepare(shop_config).num_users == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, r"holds a dataset made by shop; asked is shop\.seed=8, it has 7; choose another data\.dir or remove it"),
        ({"users": 31}, r"asked is shop\.users=31, it has 30"),
        ({"text_width": 3}, r"asked is shop\.text_width=3, it has 48"),
    ],
)
def test_another_shop(shop_config: JobConfig, change: dict[str, int], message: str) -> None:
    prepare(shop_config)
    for key, value in change.items():
        setattr(shop_config.shop, key, value)
    refused(shop_config, message)


def test_another_version_of_the_shop(shop_config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(shop_config)
    monkeypatch.setattr("bm3_dgl.data.shop.VERSION", 99)
    refused(shop_config, r"asked is version 99 of the shop, it has version 1")


def test_another_reader(config: JobConfig, shop_config: JobConfig) -> None:
    prepare(config)
    prepare(shop_config)
    shop_config.data.dir, config.data.dir = config.data.dir, shop_config.data.dir
    refused(shop_config, r"holds a dataset made by mmrec from .*source; asked is data\.format=shop")
    refused(config, r"holds a dataset made by shop; asked is data\.format=mmrec")
    config.data.source = ""
    refused(config, r"holds a dataset made by shop; asked is data\.format=mmrec")


def test_changed_source_is_noticed_by_its_content(config: JobConfig) -> None:
    prepare(config)
    source = Path(config.data.source)
    rows = features(3)
    rows[0, 0] = 9
    np.save(source / "visual.npy", rows)  # of the same size
    touch(source / "visual.npy")
    refused(config, r"asked is features\.visual from .*visual\.npy, which differs from the .*visual\.npy it was made from")


def test_changed_size_is_noticed(config: JobConfig) -> None:
    prepare(config)
    write_lines(Path(config.data.source), HEADER, "0\t3\t0")
    refused(config, r"asked is interactions from .*tiny\.inter, which differs")


def test_untouched_files_are_not_read_again(config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(config)
    hashed: list[str] = []
    monkeypatch.setattr(origin, "file_hash", lambda path: hashed.append(path.name) or "another")
    prepare(config)
    assert hashed == []
    touch(Path(config.data.source) / "text.npy")
    refused(config, r"asked is features\.text")
    assert hashed == ["text.npy"]


def test_a_copied_source_is_the_same(config: JobConfig, tmp_path: Path) -> None:
    made = prepare(config)
    shutil.copytree(config.data.source, tmp_path / "copy", copy_function=shutil.copyfile)
    config.data.source = str(tmp_path / "copy")
    assert prepare(config).hash == made.hash


def test_another_source_of_equal_size_and_time_is_not(config: JobConfig, tmp_path: Path) -> None:
    prepare(config)
    source, other = Path(config.data.source), tmp_path / "other"
    shutil.copytree(source, other)
    np.save(other / "text.npy", features(2) + 1)
    shutil.copystat(source / "text.npy", other / "text.npy")
    config.data.source = str(other)
    refused(config, r"asked is features\.text from .*other/text\.npy, which differs from the .*source/text\.npy")


def test_without_source_the_dataset_is_opened(config: JobConfig) -> None:
    made = prepare(config)
    config.data.source = ""
    assert prepare(config).hash == made.hash


def test_source_that_is_gone(config: JobConfig) -> None:
    prepare(config)
    shutil.rmtree(config.data.source)
    refused(config, r"data\.source=.*: no such directory; .*leave it empty to use a dataset that is prepared already")


def test_more_and_fewer_files_than_it_was_made_from(config: JobConfig) -> None:
    prepare(config)
    mapping = Path(config.data.source) / "i_id_mapping.csv"
    write_lines(mapping.parent, "asin\titemID", "B1\t0", name=mapping.name)
    refused(config, r"asked is item ids from .*i_id_mapping\.csv, which it was made without")
    shutil.rmtree(config.data.dir)
    prepare(config)
    mapping.unlink()
    refused(config, r"asked is no item ids, which it has from .*i_id_mapping\.csv")


def test_modalities_of_a_dataset(config: JobConfig) -> None:
    config.data.modalities = ["text"]
    assert prepare(config).modalities == ["text"]
    config.data.modalities = None
    refused(config, r"asked is features\.visual from .*visual\.npy, which it was made without")
    config.data.modalities = ["visual"]
    refused(config, r"asked is features\.visual")
    config.data.source = ""
    refused(config, r"data\.modalities: visual not in .*dataset \(it has: text\)")
    config.data.modalities = []
    assert prepare(config).modalities == ["text"]  # it may have more than is used


def test_null_modalities_mean_those_of_the_config(config: JobConfig) -> None:
    prepare(config)
    config.data.features = {"text": "text.npy"}
    refused(config, r"asked is no features\.visual, which it has from")
    config.data.modalities = ["text"]
    assert prepare(config).modalities == ["visual", "text"]


def test_modality_that_the_shop_has_not(shop_config: JobConfig) -> None:
    shop_config.data.modalities = ["text", "audio"]
    message = r"data\.modalities: audio not in {} \(it has: visual, text\)"
    refused(shop_config, message.format(r"data\.format=shop"))
    shop_config.data.modalities = None
    prepare(shop_config)
    shop_config.data.modalities = ["audio"]
    refused(shop_config, message.format(r".*shop"))


def test_shop_with_a_source(shop_config: JobConfig) -> None:
    shop_config.data.source = "somewhere"
    refused(shop_config, r"data\.source=somewhere: data\.format=shop makes its data up; set data\.format=mmrec", ConfigError)


def test_no_dataset_and_no_source(config: JobConfig) -> None:
    config.data.source = ""
    refused(config, r"data\.source is empty: data\.format=mmrec needs the directory", ConfigError)


def test_directory_with_other_files(shop_config: JobConfig) -> None:
    Path(shop_config.data.dir).mkdir()
    (Path(shop_config.data.dir) / "letter.txt").write_text("dear all")
    refused(shop_config, r"shop: holds other files and no dataset \(dataset\.json is missing\); choose another data\.dir")


def test_directory_that_is_a_file(shop_config: JobConfig) -> None:
    Path(shop_config.data.dir).write_text("not a directory")
    refused(shop_config, r"shop: cannot be opened as a directory \(Not a directory\)")


def test_bad_source_leaves_nothing_behind(config: JobConfig) -> None:
    write_lines(Path(config.data.source), HEADER, "0\t3\t9")
    refused(config, r"line 2: x_label is 9")


def test_failure_while_writing_leaves_nothing_behind(config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    refused(config, r"dataset: cannot be written \(No space left on device\)")


def test_counts_and_warnings_are_logged(
    config: JobConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    write_lines(Path(config.data.source), HEADER, "0\t3\t0", "1\t2\t2")
    for verb in ("prepared", "opened"):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="bm3_dgl"):
            prepare(config)
        assert f"{verb} {config.data.dir}: 2 users, 4 items, 2 interactions (train 1, valid 0, test 1)" in caplog.text
        assert "feature widths: visual 3, text 2" in caplog.text
        warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warned) == 2
        assert "users without a train interaction: 1" in warned[1]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("amazon_baby", (1, 0.5, 0.1)),
        ("amazon_baby_standin", (1, 0.5, 0.1)),
        ("amazon_sports", (1, 0.5, 0.01)),
        ("amazon_electronics", (2, 0.3, 0.1)),
    ],
)
def test_amazon_configs_hold_the_published_settings(name: str, model: tuple[int, float, float]) -> None:
    config = load_config(str(CONFIGS / f"{name}.yaml"), ["data.source=somewhere"])
    assert (config.model.layers, config.model.dropout, config.model.reg_weight) == model
    assert config.data.format is DataFormat.mmrec
    assert Path(config.data.dir).name == Path(config.run.dir).name == name.removeprefix("amazon_")
    assert config.data.format.name == mmrec.READER
    assert list(config.data.features) == ["visual", "text"]


def test_shop_config_is_the_default_shop() -> None:
    config = load_config(str(CONFIGS / "shop.yaml"))
    assert (config.data, config.shop) == (JobConfig().data, JobConfig().shop)
