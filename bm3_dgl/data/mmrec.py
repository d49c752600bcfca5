"""Reader of the directory format of the authors' framework (MMRec).

    data.source/
        NAME.inter          tab-separated: userID itemID x_label, in any order, other columns allowed (see inter.py)
        <features>.npy      one row per item, the files that data.features names (see features.py)
        u_id_mapping.csv    optional: userID and the raw id; i_id_mapping.csv: itemID and the raw id (see ids.py)
        <titles>            optional JSON lines with itemID and title, the file that data.titles names

Users and items are numbered from 0; their counts are the highest id + 1. Out: a checked RawDataset. Every mistake in
a file is a DataError of one line with the file and the place in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from bm3_dgl.config.schema import DataConfig
from bm3_dgl.data.dataset import RawDataset
from bm3_dgl.data.features import checked_float32, map_features
from bm3_dgl.data.ids import numbered_ids, read_raw_ids, read_titles
from bm3_dgl.data.inter import ITEM_COLUMN, USER_COLUMN, line_of, read_interactions
from bm3_dgl.data.origin import describe_file, file_difference
from bm3_dgl.errors import ConfigError, DataError
from bm3_dgl.types import Split

READER = "mmrec"
_INTERACTIONS, _TITLES, _FEATURES = "interactions", "titles", "features."  # roles of source files
_ID_FILES = {"user ids": "u_id_mapping.csv", "item ids": "i_id_mapping.csv"}
_MODALITY = re.compile(r"[A-Za-z0-9_-]+")  # a modality names a file of the dataset
# Gaps cost rows of embeddings, so few are fine. Ids of which not 1 in 100 is used are raw ids that nobody renumbered.
_GAPS_FROM, _LEAST_USE = 1_000_000, 100


def read_mmrec(config: DataConfig) -> RawDataset:
    """Read and check `config.source`; only the modalities that `config.modalities` selects (null: all named).

    Raises ConfigError for keys that contradict each other, DataError for a missing or damaged file.
    """
    files = source_files(config)
    inter = files[_INTERACTIONS]
    users, items, split = read_interactions(inter)
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    warnings = _gap_warnings(inter, USER_COLUMN, users) + _gap_warnings(inter, ITEM_COLUMN, items)
    warnings += _trainless_warnings(inter, users, split)
    mapped = {role.removeprefix(_FEATURES): map_features(path) for role, path in files.items() if role.startswith(_FEATURES)}
    for modality, rows in mapped.items():  # all shapes before any content: the cheap checks first
        _check_rows(files[_FEATURES + modality], len(rows), inter, items)
    raw_user_ids, user_warnings = _raw_ids(files.get("user ids"), USER_COLUMN, num_users)
    raw_item_ids, item_warnings = _raw_ids(files.get("item ids"), ITEM_COLUMN, num_items)
    titles, title_warnings = read_titles(files[_TITLES], num_items) if _TITLES in files else ([None] * num_items, [])
    warnings += user_warnings + item_warnings + title_warnings
    return RawDataset(
        users=users,
        items=items,
        split=split,
        raw_user_ids=raw_user_ids,
        raw_item_ids=raw_item_ids,
        titles=titles,
        features={modality: checked_float32(files[_FEATURES + modality], rows) for modality, rows in mapped.items()},
        origin={
            "reader": READER,
            "source": str(Path(config.source).resolve()),
            "files": {role: describe_file(path) for role, path in files.items()},
        },
        warnings=warnings,
    )


def source_files(config: DataConfig) -> dict[str, Path]:
    """Role -> file, of every file that the reader would read now: interactions, ids, titles, features.<modality>.

    Raises ConfigError for an empty data.source and for a modality without a file, DataError for what is not there.
    """
    if not config.source:
        raise ConfigError("data.source is empty: data.format=mmrec needs the directory with the .inter and feature files")
    source = Path(config.source)
    if not source.is_dir():
        raise DataError(
            f"data.source={config.source}: no such directory; give the one with the .inter file, "
            "or leave it empty to use a dataset that is prepared already"
        )
    files = {_INTERACTIONS: _find_interactions(source, config.interactions)}
    files |= {role: source / name for role, name in _ID_FILES.items() if (source / name).exists()}
    if config.titles:
        files[_TITLES] = _existing(source / config.titles, "data.titles", config.titles)
    for modality in _selected(config):
        name = config.features[modality]
        files[_FEATURES + modality] = _existing(source / name, f"data.features.{modality}", name)
    return files


def difference(origin: dict[str, Any], config: DataConfig) -> str | None:
    """What the config asks for that a dataset of this origin is not made from; None where it would come out the same.

    A dataset with more modalities than selected will do, unless all of the dataset's are to be used (null).
    """
    files, made = source_files(config), origin["files"]
    surplus = {role for role in made if role.startswith(_FEATURES)} if config.modalities is not None else set()
    return file_difference(files, made, set(made) - surplus | set(files))


def _selected(config: DataConfig) -> list[str]:
    """The modalities to read, each of which has a file in data.features."""
    named = ", ".join(config.features) or "none"
    for modality in config.modalities or []:
        if modality not in config.features:
            raise ConfigError(
                f"data.modalities: {modality!r} has no entry in data.features ({named}); set data.features.{modality}=FILE"
            )
    chosen = list(config.features) if config.modalities is None else config.modalities
    for modality in chosen:
        if not _MODALITY.fullmatch(modality):
            raise ConfigError(f"data.features: {modality!r} cannot name a modality; use letters, digits, - and _")
    return chosen


def _find_interactions(source: Path, name: str) -> Path:
    if name:
        return _existing(source / name, "data.interactions", name)
    found = sorted(source.glob("*.inter"))
    if not found:
        raise DataError(f"{source}: no *.inter file here; put it there or name it with data.interactions")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{source}: several *.inter files ({names}); choose one with data.interactions")
    return found[0]


def _existing(path: Path, key: str, value: str) -> Path:
    if not path.exists():
        raise DataError(f"{path}: no such file; {key}={value} is looked up in data.source unless it begins with /")
    return path


def _check_rows(path: Path, rows: int, inter: Path, items: np.ndarray) -> None:
    """One feature row per item, no more and no fewer. items: int32 (n,)."""
    num_items = int(items.max()) + 1
    if rows > num_items:
        raise DataError(f"{path}: has {rows} rows, but {inter.name} has {num_items} items (highest id {num_items - 1})")
    if rows < num_items:
        row = int(np.argmax(items >= rows))
        raise DataError(
            f"{path}: has {rows} rows, but {inter.name}, line {line_of(inter, row)} has item {items[row]} "
            f"({num_items} items in all); expected one row per item"
        )


def _raw_ids(path: Path | None, column: str, count: int) -> tuple[list[str], list[str]]:
    return read_raw_ids(path, column=column, count=count) if path else (numbered_ids(count), [])


def _gap_warnings(inter: Path, column: str, ids: np.ndarray) -> list[str]:
    """Count the ids below the highest that do not occur. Raises DataError where nearly all are missing."""
    count, used = int(ids.max()) + 1, len(np.unique(ids))
    if count > _GAPS_FROM and used * _LEAST_USE < count:
        raise DataError(f"{inter}: {column} goes up to {count - 1}, but only {used} ids occur; number them from 0 without gaps")
    return [f"{inter}: {count - used} of {count} ids of {column} do not occur"] if used < count else []


def _trainless_warnings(inter: Path, users: np.ndarray, split: np.ndarray) -> list[str]:
    """Count the users all of whose interactions are held out."""
    trainless = len(np.setdiff1d(users, users[split == Split.train]))
    return [f"{inter}: users without a train interaction: {trainless}; left out of evaluation"] if trainless else []
