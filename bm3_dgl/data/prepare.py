"""The dataset of a config: opened where it is there already, otherwise read from its source and written.

In: the sections `data`, `tables`, `encode` and `shop`. Out: a Dataset that is what the config asks for. A dataset made from
something else is never used in silence, and never overwritten.
"""

from __future__ import annotations

from pathlib import Path

from bm3_dgl.config.schema import DataConfig, DataFormat, JobConfig
from bm3_dgl.data import mmrec, shop
from bm3_dgl.data.dataset import MANIFEST, Dataset, RawDataset, open_dataset, write_dataset
from bm3_dgl.data.prepare_raw import RAW_FORMATS, difference, find_source, make_dataset, modalities_of
from bm3_dgl.data.work import clear_published
from bm3_dgl.errors import ConfigError, DataError
from bm3_dgl.log import logger


def prepare(config: JobConfig) -> Dataset:
    """Open the dataset in data.dir, or make it there; whole or not at all. For one process at a time.

    Raises ConfigError for keys that contradict each other; DataError for a bad source, for a data.dir that holds
    something else (another dataset or other files), and for a selected modality that the dataset lacks.
    """
    data = config.data
    if data.format is DataFormat.shop and data.source:
        raise ConfigError(f"data.source={data.source}: data.format=shop makes its data up; set data.format=mmrec to read it")
    directory = Path(data.dir)
    if is_there := _holds_dataset(directory):
        dataset = open_dataset(directory)
        clear_published(directory)
        _check_origin(dataset, config)
        _check_modalities(data, dataset.modalities, str(directory))
    elif data.format in RAW_FORMATS:
        source = find_source(config)
        _check_modalities(data, modalities_of(config, source), f"data.format={data.format.name}")
        _vacate(directory)
        dataset = make_dataset(config, source, directory)
    else:
        raw = _read(config)
        _check_modalities(data, list(raw.features), f"data.format={data.format.name}")
        _vacate(directory)
        dataset = write_dataset(raw, directory)
    _report(dataset, "nothing to prepare, opened" if is_there else "prepared")
    return dataset


def _holds_dataset(directory: Path) -> bool:
    """Whether a dataset is there; False where one can be put. Raises DataError where neither is so."""
    try:
        if directory.is_symlink() and not directory.exists():
            raise DataError(f"{directory}: a link to nowhere; choose another data.dir")
        if not directory.exists() or not any(directory.iterdir()):
            return False
    except OSError as error:
        raise DataError(f"{directory}: cannot be opened as a directory ({error.strerror}); choose another data.dir") from None
    if not (directory / MANIFEST).exists():
        raise DataError(f"{directory}: holds other files and no dataset ({MANIFEST} is missing); choose another data.dir")
    return True


def _read(config: JobConfig) -> RawDataset:
    if config.data.format is DataFormat.shop:
        return shop.make_shop(config.shop)
    return mmrec.read_mmrec(config.data)


def _check_origin(dataset: Dataset, config: JobConfig) -> None:
    """Refuse a dataset that the config's source would not give. Without a source, what is there is taken."""
    origin, data = dataset.manifest["origin"], config.data
    made_by, source = origin["reader"], origin.get("source")
    if made_by != data.format.name:
        asked: str | None = f"data.format={data.format.name}"
    elif data.format is DataFormat.shop:
        asked = shop.difference(origin, config.shop)
    elif not data.source:
        asked = None
    elif data.format in RAW_FORMATS:
        asked = difference(origin, config, find_source(config))
    else:
        asked = mmrec.difference(origin, data)
    if asked:
        holds = f"made by {made_by}" + (f" from {source}" if source else "")
        raise DataError(f"{dataset.directory}: holds a dataset {holds}; asked is {asked}; choose another data.dir or remove it")


def _check_modalities(data: DataConfig, have: list[str], where: str) -> None:
    missing = [modality for modality in data.modalities or [] if modality not in have]
    if missing:
        raise DataError(
            f"data.modalities: {', '.join(missing)} not in {where} (it has: {', '.join(have) or 'none'}); "
            "select others, or prepare another data.dir with a file for each in data.features"
        )


def _vacate(directory: Path) -> None:
    """Take away an empty directory, so that the finished one can be renamed to its place."""
    try:
        if directory.exists():
            directory.rmdir()
    except OSError as error:
        raise DataError(f"{directory}: cannot be replaced ({error.strerror}); choose a data.dir inside of it") from None


def _report(dataset: Dataset, verb: str) -> None:
    counts = dataset.manifest["counts"]
    features = [f"{name} {entry['shape'][1]}" for name, entry in dataset.manifest["features"].items()]
    logger.info(
        "%s %s: %d users, %d items, %d interactions (train %d, valid %d, test %d); feature widths: %s; hash %s",
        verb,
        dataset.directory,
        *(counts[name] for name in ("users", "items", "interactions", "train", "valid", "test")),
        ", ".join(features) or "no features",
        dataset.hash[:12],
    )
    for warning in dataset.manifest["warnings"]:
        logger.warning("warning: %s", warning)
