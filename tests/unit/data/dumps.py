"""Made-up raw dumps in the true formats of Amazon's releases and as a shop's tables, from a seed.

Users like kinds of items, so that there is something to learn. The dumps hold what real ones do: users and items below the
core, repeated rows, missing fields, HTML entities, items without title, brand, picture or record.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ["Crib", "Stroller", "Bottle", "Blanket", "Monitor", "Car Seat"]
PLACES = ["Nursery", "Travel", "Feeding", "Bedding", "Safety", "Gear"]
WIDTH = 4096


@dataclass
class Dump:
    """What the files say. rows: (user, item, rating, unix time in s); items: asin -> 2014's fields; images: asin -> row."""

    rows: list[tuple[str, str, float, int]]
    items: dict[str, dict[str, Any]]
    images: dict[str, np.ndarray] = field(default_factory=dict)


def make_dump(seed: int = 0, *, users: int = 120, items: int = 60, mean: int = 9) -> Dump:
    """About users x mean interactions; a few users and items have fewer than five."""
    rng = np.random.default_rng(seed)
    asins = [f"B{number:09d}" for number in rng.choice(10**9, items, replace=False)]
    kinds = rng.integers(len(KINDS), size=items)
    rows = []
    for user in range(users):
        liked = rng.integers(len(KINDS))
        weights = np.where(kinds == liked, 8.0, 1.0)
        count = min(items // 2, int(rng.integers(2, 2 * mean - 2)))
        for item in rng.choice(items, count, replace=False, p=weights / weights.sum()):
            rows.append(
                (f"A{user:013d}", asins[item], float(rng.integers(1, 6)), int(rng.integers(1_000_000_000, 1_400_000_000)))
            )
    rng.shuffle(rows)  # type: ignore[arg-type]
    rows += rows[:5]  # the same user, item and time
    lens = rng.standard_normal((len(KINDS), WIDTH)).astype(np.float32)
    described = {asin: _entry(asin, int(kind), rng) for asin, kind in zip(asins, kinds, strict=True)}
    del described[asins[0]]
    images = {
        asin: lens[kind] + rng.standard_normal(WIDTH).astype(np.float32)
        for asin, kind in zip(asins[2:], kinds[2:], strict=True)
    }
    return Dump([(str(u), str(i), float(r), int(t)) for u, i, r, t in rows], described, images)


def _entry(asin: str, kind: int, rng: np.random.Generator) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "asin": asin,
        "categories": [["Baby", PLACES[kind], f"{KINDS[kind]}s"], ["Gifts"]],
        "title": f"{KINDS[kind]} &amp; Co, it's no. {asin[-4:]}",
        "brand": 'Bear "Bros"',
        "description": f"A {KINDS[kind].lower()}\n for every day\u2014and night.",
        "imUrl": f"http://images.example/{asin}.jpg",
        "salesRank": {"Baby": int(rng.integers(1, 99999))},
        "related": {"also_bought": [f"B{number:09d}" for number in rng.integers(10**9, size=3)]},
    }
    for name in ("title", "brand", "description", "imUrl", "categories"):
        if rng.random() < 0.1:
            del entry[name]
    return entry


def ratings_2014(dump: Dump) -> bytes:
    return "".join(f"{user},{item},{rating},{time}\n" for user, item, rating, time in dump.rows).encode()


def reviews(dump: Dump) -> bytes:
    """2014 and 2018: one object a line."""
    return _lines(
        {
            "reviewerID": user, "asin": item, "reviewerName": "J. \u00d6.", "helpful": [0, 0], "reviewText": "Fine,\nreally.",
            "overall": rating, "summary": "ok", "unixReviewTime": time, "reviewTime": "07 1, 2013",
        }
        for user, item, rating, time in dump.rows
    )  # fmt: skip


def meta_2014(dump: Dump) -> bytes:
    """One Python dict a line."""
    return "".join(f"{entry!r}\n" for entry in dump.items.values()).encode()


def meta_2018(dump: Dump) -> bytes:
    def line(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "category": entry.get("categories", [[]])[0],
            "title": entry.get("title", ""),
            "brand": entry.get("brand", ""),
            "description": [entry["description"]] if "description" in entry else [],
            "imageURLHighRes": [entry["imUrl"]] if "imUrl" in entry else [],
            "also_buy": entry["related"]["also_bought"],
            "asin": entry["asin"],
        }

    return _lines(line(entry) for entry in dump.items.values())


def reviews_2023(dump: Dump) -> bytes:
    return _lines(
        {"rating": rating, "title": "ok", "images": [], "asin": "X" + item[1:], "parent_asin": item, "user_id": user,
         "timestamp": time * 1000, "verified_purchase": True}
        for user, item, rating, time in dump.rows
    )  # fmt: skip


def meta_2023(dump: Dump) -> bytes:
    def line(entry: dict[str, Any]) -> dict[str, Any]:
        pictures = [{"thumb": "t", "large": entry["imUrl"], "hi_res": None}] if "imUrl" in entry else []
        return {
            "main_category": "Baby",
            "title": entry.get("title"),
            "description": [entry["description"]] if "description" in entry else [],
            "images": pictures,
            "store": entry.get("brand"),
            "categories": entry.get("categories", [[]])[0],
            "parent_asin": entry["asin"],
        }

    return _lines(line(entry) for entry in dump.items.values())


def image_features(dump: Dump) -> bytes:
    return b"".join(asin.encode() + row.astype("<f4").tobytes() for asin, row in dump.images.items())


def write_2014(directory: Path, dump: Dump, *, packed: bool = True) -> Path:
    """ratings_Baby.csv, meta_Baby.json.gz, image_features_Baby.b."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ratings_Baby.csv").write_bytes(ratings_2014(dump))
    write(directory / "meta_Baby.json", meta_2014(dump), packed=packed)
    (directory / "image_features_Baby.b").write_bytes(image_features(dump))
    return directory


def write(path: Path, content: bytes, *, packed: bool) -> None:
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def _lines(records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
