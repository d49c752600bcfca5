"""A made-up dataset with the statistics of Amazon Electronics, and multiples of it.

    python -m benchmarks.electronics --work DIR [--scale 10 --widths 64,32]

192,403 users, 63,001 items and 1,689,188 interactions (times the scale), every user and every item with at least 5,
log-normal tails (largest item several thousand), no pair twice, float32 features of 4096 and 384 columns. Of a user's
interactions every tenth is for validation and every tenth for the test, counted through all users, so that the split is
8:1:1 of the whole too. Pairs and ids are random within the degrees: nothing lies near its neighbours by luck.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from bm3_dgl.data.dataset import MANIFEST, RawDataset, write_dataset
from bm3_dgl.types import Split

USERS, ITEMS, INTERACTIONS = 192_403, 63_001, 1_689_188
WIDTHS = (4096, 384)  # of visual and text features
_LEAST = 5  # interactions of every user and item: the "5-core"
_USER_TAIL, _ITEM_TAIL = 1.0, 1.4  # standard deviation of the logarithm of a degree's surplus over 5
_SEED = 11


def default_work() -> Path:
    """Where datasets and runs of the benchmarks are kept unless --work says otherwise."""
    return Path(tempfile.gettempdir()) / "bm3_dgl_benchmarks"


def dataset_directory(work: Path, scale: float = 1, widths: tuple[int, int] = WIDTHS) -> Path:
    return work / f"electronics-{scale:g}x-{widths[0]}-{widths[1]}"


def ensure_dataset(work: Path, *, scale: float = 1, widths: tuple[int, int] = WIDTHS) -> Path:
    """The dataset's directory under `work`; made unless a whole one with these settings is there."""
    directory = dataset_directory(work, scale, widths)
    # `mmrec` is the reader that takes a dataset directory without its source.
    origin = {"reader": "mmrec", "source": "benchmarks/electronics.py", "scale": scale, "widths": list(widths), "seed": _SEED}
    if (directory / MANIFEST).is_file():
        if json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["origin"] == origin:
            return directory
        shutil.rmtree(directory)
    work.mkdir(parents=True, exist_ok=True)
    write_dataset(make_dataset(scale, widths, origin), directory)
    return directory


def make_dataset(scale: float, widths: tuple[int, int], origin: dict) -> RawDataset:
    """Everything but the files."""
    users, items, interactions = (round(count * scale) for count in (USERS, ITEMS, INTERACTIONS))
    rng = np.random.default_rng(_SEED)
    users_N, items_N = make_pairs(rng, users, items, interactions)
    split_N = np.full(interactions, Split.train, np.int8)
    split_N[4::10], split_N[9::10] = Split.valid, Split.test
    return RawDataset(
        users=users_N,
        items=items_N,
        split=split_N,
        raw_user_ids=[f"U{index:07d}" for index in range(users)],
        raw_item_ids=[f"I{index:07d}" for index in range(items)],
        titles=[None] * items,
        features={
            name: rng.random((items, width), dtype=np.float32) - np.float32(0.5)
            for name, width in zip(("visual", "text"), widths, strict=True)
        },
        origin=origin,
        warnings=[],
    )


def make_pairs(rng: np.random.Generator, users: int, items: int, interactions: int) -> tuple[np.ndarray, np.ndarray]:
    """User and item of every interaction, int32 (N,) each, user by user, no pair twice.

    Every user stands as often as its degree says, the items likewise in random order; of pairs that came twice, one
    changes items with a random other pair, until none is left. So the degrees stay.
    """
    users_N = np.repeat(np.arange(users, dtype=np.int32), make_degrees(rng, users, interactions, _USER_TAIL, items // 2))
    items_N = np.repeat(np.arange(items, dtype=np.int32), make_degrees(rng, items, interactions, _ITEM_TAIL, users // 2))
    rng.shuffle(items_N)
    while len(again := _repeated(users_N, items_N, items)):
        for place, other in zip(again, rng.integers(interactions, size=len(again)), strict=True):
            items_N[place], items_N[other] = items_N[other], items_N[place]
    return users_N, items_N


def make_degrees(rng: np.random.Generator, nodes: int, total: int, tail: float, most: int) -> np.ndarray:
    """Degree of every node, int64 (nodes,): at least 5, a log-normal surplus, up to about `most`, `total` in all."""
    weights = rng.lognormal(sigma=tail, size=nodes)
    surplus = weights * ((total - _LEAST * nodes) / weights.sum())
    degrees = _LEAST + np.minimum(surplus.astype(np.int64), most - _LEAST)
    while (missing := total - int(degrees.sum())) > 0:  # by rounding down, and by `most`
        degrees[rng.choice(nodes, min(missing, nodes), replace=False)] += 1
    return degrees


def _repeated(users_N: np.ndarray, items_N: np.ndarray, items: int) -> np.ndarray:
    """Places of all pairs that have come before, by any order."""
    key_N = users_N.astype(np.int64) * items + items_N
    order = np.argsort(key_N, kind="stable")
    return order[1:][np.diff(key_N[order]) == 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=default_work())
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)), help="columns of the visual and text features")
    arguments = parser.parse_args()
    visual, text = map(int, arguments.widths.split(","))
    began = time.perf_counter()
    print(ensure_dataset(arguments.work, scale=arguments.scale, widths=(visual, text)))
    print(f"{time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
