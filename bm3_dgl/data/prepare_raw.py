"""From the files of a raw source to a finished dataset, pass by pass: amazon2014, amazon2018, amazon2023 and tables.

    read -> filter -> items -> features.<modality> (ready-made) -> text, image (by encoders) -> items.parquet, dataset.json

Each pass is done once, also when preparing is interrupted and called again (work.py).
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from bm3_dgl.config.fields import spell
from bm3_dgl.config.schema import DataFormat, JobConfig, OnError, SplitMethod
from bm3_dgl.data.amazon import find_amazon
from bm3_dgl.data.dataset import SKIPPED, Dataset, open_dataset, write_manifest
from bm3_dgl.data.feature_rows import found_file, write_features
from bm3_dgl.data.interactions import ITEM_IDS, filter_interactions, read_interactions, repeats_of
from bm3_dgl.data.items import ItemTable, read_items, write_items
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.origin import file_difference
from bm3_dgl.data.raw import RawSource
from bm3_dgl.data.tables import find_tables
from bm3_dgl.data.vocabulary import load_strings
from bm3_dgl.data.work import Result, Work, publish, work_on
from bm3_dgl.errors import ConfigError, DataError
from bm3_dgl.log import logger
from bm3_dgl.types import Split

RAW_FORMATS = (DataFormat.amazon2014, DataFormat.amazon2018, DataFormat.amazon2023, DataFormat.tables)
VERSION = 1  # raise it when the same source and settings make another dataset
_DECISIVE = ("k_core", "repeats", "split", "split_seed", "on_error", "feature_dtype")  # of data.*
_FEATURES = "features."


def find_source(config: JobConfig) -> RawSource:
    """The files that a raw format reads. Raises ConfigError for an empty data.source, DataError for missing files."""
    data = config.data
    if not data.source:
        raise ConfigError(f"data.source is empty: data.format={data.format.name} needs the directory with the raw files")
    if not Path(data.source).is_dir():
        raise DataError(
            f"data.source={data.source}: no such directory; give the one with the raw files, "
            "or leave it empty to use a dataset that is prepared already"
        )
    source = find_tables(data, config.tables) if data.format is DataFormat.tables else find_amazon(data)
    _check_split(config, source.columns.schema.names)
    for path in source.files().values():
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
    return source


def _check_split(config: JobConfig, columns: list[str]) -> None:
    """Raise ConfigError where the split needs a column that the interactions do not have, or does not use the one named."""
    method = config.data.split
    needed = {SplitMethod.given: "split", SplitMethod.random: None}.get(method, "time")
    if needed is not None and needed not in columns:
        raise ConfigError(
            f"data.split={method.name}: the interactions have no {needed}; set tables.{needed}, or data.split=random"
        )
    if "split" in columns and method is not SplitMethod.given:
        raise ConfigError(f"tables.split={config.tables.split}: used with data.split=given only, and that is {method.name}")


def modalities_of(config: JobConfig, source: RawSource) -> list[str]:
    """The modalities that will be made: ready-made features, and those of encoders unless data.modalities leaves them out."""
    asked = config.data.modalities
    made = list(source.features)
    made += [name for name in ("text", "image") if getattr(config.encode, name) and (asked is None or name in asked)]
    for name in made:
        if made.count(name) > 1:
            raise ConfigError(f"data.features.{name} and encode.{name} both make the modality {name}; leave one out")
    return made


def make_dataset(config: JobConfig, source: RawSource, directory: Path) -> Dataset:
    """Prepare the source under `directory`, which is not there yet; goes on where an earlier call was interrupted."""
    begun = time.monotonic()
    plan = settings_of(config, source)
    files = {role: _stamp(path) for role, path in source.files().items()}
    with work_on(directory, {"settings": plan, "files": files, "version": VERSION}) as work:
        _run_passes(config, source, work, plan)
        publish(work, directory)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    logger.info("made in %.1f s, peak memory %.2f GiB", time.monotonic() - begun, peak_gib)
    return open_dataset(directory)


def difference(origin: dict[str, Any], config: JobConfig, source: RawSource) -> str | None:
    """What the config asks for that a dataset of this origin is not made from; None where it would come out the same."""
    if origin.get("version") != VERSION:
        return f"version {VERSION} of the preparation, it has version {origin.get('version')}"
    for key, value in settings_of(config, source).items():
        if origin["settings"].get(key) != value:
            return f"{key}={value}, it has {origin['settings'].get(key)}"
    files, made = source.files(), origin["files"]
    return file_difference(files, made, set(files) | set(made))


def settings_of(config: JobConfig, source: RawSource) -> dict[str, Any]:
    """Key -> value of everything in the configuration that decides what comes out."""
    settings: dict[str, Any] = {f"data.{name}": spell(getattr(config.data, name)) for name in _DECISIVE}
    settings["data.repeats"] = repeats_of(config.data).name
    settings |= {key: value if isinstance(value, dict) else spell(value) for key, value in source.settings.items()}
    settings["modalities"] = modalities_of(config, source)
    encoded = [name for name in settings["modalities"] if name not in source.features]
    if "text" in encoded:
        from bm3_dgl.data.encode_text import text_settings  # late: see _encode

        settings |= text_settings(config.encode)
    if "image" in encoded:
        from bm3_dgl.data.encode_image import image_settings

        settings |= image_settings(config.encode)
    return settings


def _run_passes(config: JobConfig, source: RawSource, work: Work, settings: dict[str, Any]) -> None:
    data, skip = config.data, config.data.on_error is OnError.skip
    scratch, dataset = work.scratch, work.dataset
    results = {"interactions": work.run("interactions", lambda: read_interactions(source, scratch, skip=skip))}
    kept = work.run("filter", lambda: filter_interactions(results["interactions"], scratch, dataset, data))
    results["items"] = work.run("items", lambda: read_items(source, scratch / ITEM_IDS, scratch, skip=skip))
    features = {}
    for modality in modalities_of(config, source):
        results[_FEATURES + modality] = _make_features(config, source, work, modality)
        rows = np.load(_target(work, modality), mmap_mode="r", allow_pickle=False)
        found = np.load(found_file(_target(work, modality)), allow_pickle=False)
        features[modality] = {"shape": list(rows.shape), "dtype": str(rows.dtype), "found": int(found.sum())}
    founds = {name: np.load(found_file(_target(work, name)), allow_pickle=False) for name in features}
    shares = write_items(ItemTable(scratch / "items.parquet"), dataset / "items.parquet", founds)
    _write_skipped(dataset / SKIPPED, results)
    last = kept["steps"][-1]
    names = ("users", "items", "interactions", *(split.name for split in Split))
    write_manifest(
        dataset,
        counts={name: last[name] for name in names},
        steps=kept["steps"],
        features=features,
        origin=_origin(config, source, settings, results),
        warnings=_warnings(source, kept, results, features, shares),
        skipped={name: result["skipped"] for name, result in results.items() if result.get("skipped")},
    )


def _make_features(config: JobConfig, source: RawSource, work: Work, modality: str) -> Result:
    """The pass of one modality: ready-made rows, or those of an encoder."""
    target, dtype = _target(work, modality), np.dtype(config.data.feature_dtype.value)

    def ready_made() -> Result:
        known = {raw: index for index, raw in enumerate(load_strings(work.scratch / ITEM_IDS).to_pylist())}
        skip = config.data.on_error is OnError.skip
        return write_features(source, modality, known, target, dtype=dtype, skip=skip)

    def encoded() -> Result:
        mistakes = Mistakes(config.data.on_error is OnError.skip)
        found = _encode(modality, ItemTable(work.scratch / "items.parquet"), target, config, dtype, mistakes)
        np.save(found_file(target), found)
        return mistakes.as_result()

    return work.run(_FEATURES + modality, ready_made if modality in source.features else encoded)


def _encode(
    modality: str, items: ItemTable, target: Path, config: JobConfig, dtype: np.dtype, mistakes: Mistakes
) -> np.ndarray:
    """Rows by an encoder; bool (num_items,): which items have one of their own."""
    if modality == "text":
        from bm3_dgl.data.encode_text import encode_text  # late: encoders bring torch and their models

        return encode_text(items, target, config.encode, dtype)
    from bm3_dgl.data.encode_image import encode_image

    return encode_image(items, target, config.encode, dtype, mistakes)


def _target(work: Work, modality: str) -> Path:
    return work.dataset / "features" / f"{modality}.npy"


def _stamp(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _origin(config: JobConfig, source: RawSource, settings: dict[str, Any], results: dict[str, Result]) -> dict[str, Any]:
    """Where the dataset came from: enough to tell later whether it would come out the same."""
    entries = {entry["path"]: entry for result in results.values() for entry in result.get("files", [])}
    return {
        "reader": config.data.format.name,
        "version": VERSION,
        "source": str(Path(config.data.source).resolve()),
        "settings": settings,
        "files": {role: entries[str(path.resolve())] for role, path in source.files().items()},
    }


def _write_skipped(path: Path, results: dict[str, Result]) -> None:
    listed = [entry for result in results.values() for entry in result.get("listed", [])]
    if listed:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in listed), encoding="utf-8")


def _warnings(
    source: RawSource, kept: Result, results: dict[str, Result], features: dict[str, dict], shares: dict[str, int]
) -> list[str]:
    """One sentence for everything that a reader of the report should look at."""
    steps = {step["step"]: step for step in kept["steps"]}
    read, last, items = steps["read"], kept["steps"][-1], results["items"]
    warnings = []
    if missing := read["interactions"] - steps["missing fields"]["interactions"]:
        warnings.append(f"interactions with a missing field: {missing} of {read['interactions']}; left out")
    for name, result in results.items():
        if result.get("skipped"):
            warnings.append(f"{name}: bad lines or records skipped: {result['skipped']}; listed in {SKIPPED}")
    if source.items and items["found"] < last["items"]:
        warnings.append(
            f"items without a record in {source.items[0].name}: {last['items'] - items['found']} of {last['items']}"
        )
    if items["same"]:
        warnings.append(f"{source.items[0].name}: records that repeat another one word for word: {items['same']}; read once")
    if source.items and shares["text"] < last["items"]:
        warnings.append(f"items without text: {last['items'] - shares['text']} of {last['items']}")
    for name, entry in features.items():
        if entry["found"] < last["items"]:
            warnings.append(f"{name}: items without a row of their own: {last['items'] - entry['found']}; they have the mean")
    for split in Split:
        if last[split.name] == 0:
            warnings.append(f"no interaction is in {split.name}")
    if kept["trainless"]:
        warnings.append(f"users without a train interaction: {kept['trainless']}; left out of evaluation")
    return warnings
