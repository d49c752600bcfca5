"""A made-up shop with planted tastes, so that training has something to find and needs no download.

Every item belongs to a department (what it is made of: linen, oak, steel) and there to a kind (summer dress) and a
material, and has a colour; each of these has a direction in taste space, and an item's taste is their sum plus noise.
A user likes a few kinds. Whom an item suits decides most of what is bought, popularity some of it. Visual and text
features are two noisy linear views of the item's taste: they tell what an item is that hardly anyone has bought yet.

Everything follows from shop.seed. Shapes: U users, I items, T tastes, N interactions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from bm3_dgl.config.schema import ShopConfig
from bm3_dgl.data.dataset import RawDataset
from bm3_dgl.types import Split

READER = "shop"
VERSION = 1  # raise it when the same settings make another shop
MIN_INTERACTIONS = 5

# department -> materials, kinds
CATALOGUE: list[tuple[list[str], list[str]]] = [
    (["Linen", "Cotton", "Wool"], ["summer dress", "shirt", "cardigan", "scarf"]),
    (["Leather", "Canvas", "Suede"], ["ankle boots", "sneakers", "shoulder bag", "belt"]),
    (["Oak", "Walnut", "Bamboo"], ["bookshelf", "side table", "bed frame", "stool"]),
    (["Steel", "Copper", "Enamel"], ["saucepan", "kettle", "milk jug", "baking tray"]),
    (["Plush", "Wooden", "Felt"], ["teddy bear", "building blocks", "baby rattle", "puzzle"]),
    (["Waterproof", "Ultralight", "Reflective"], ["trail jacket", "backpack", "tent", "running vest"]),
]
COLOURS = ["navy", "cream", "olive", "rust", "charcoal", "rose", "mustard", "sky blue"]

# Lengths of the directions that make up a taste, before it is scaled to length 1.
_DEPARTMENT, _KIND, _MATERIAL, _COLOUR, _OWN = 0.6, 1.0, 0.4, 0.3, 0.3
_FAVOURITES = 3  # kinds a user likes
_SHARPNESS = 7.0  # of choice: odds of a perfect match against an indifferent item are e^7
_POPULARITY = 0.5  # standard deviation of an item's log popularity
_VIEW_NOISE = 0.5  # of a feature, in standard deviations of its signal
_BLOCK_CELLS = 1 << 22  # user-item pairs scored at once: 16 MB of float32


@dataclass(frozen=True)
class Planted:
    """The truth behind the shop. user_UT, item_IT: float32 of length 1; popularity_I: float32 log weights."""

    user_UT: np.ndarray
    item_IT: np.ndarray
    popularity_I: np.ndarray
    titles: list[str]


def make_shop(config: ShopConfig) -> RawDataset:
    """The shop of these settings. Every user has at least 5 interactions, of which at least 3 are train."""
    planted = plant(config)
    degrees_U = _degrees(config)
    users_N, items_N = _purchases(config, planted, degrees_U)
    return RawDataset(
        users=users_N,
        items=items_N,
        split=_split(degrees_U),
        raw_user_ids=_raw_ids("U", config.users),
        raw_item_ids=_raw_ids("B", config.items),
        titles=list(planted.titles),
        features={
            "visual": _view(planted.item_IT, config.visual_width, _generator(config, 4)),
            "text": _view(planted.item_IT, config.text_width, _generator(config, 5)),
        },
        origin=_origin(config),
        warnings=[],
    )


def difference(origin: dict[str, Any], config: ShopConfig) -> str | None:
    """What the config asks for that a shop of this origin is not; None where it would come out the same."""
    wanted = _origin(config)
    if origin.get("version") != VERSION:
        return f"version {VERSION} of the shop, it has version {origin.get('version')}"
    for key, value in wanted["settings"].items():
        if origin["settings"].get(key) != value:
            return f"shop.{key}={value}, it has {origin['settings'].get(key)}"
    return None


def plant(config: ShopConfig) -> Planted:
    """Tastes of users and items, popularity and titles."""
    rng = _generator(config, 0)
    kinds_KT, kind_I, item_IT, titles = _stock(config, rng)
    # A user likes only kinds that are in stock, or would have nothing to buy.
    stocked = np.unique(kind_I)
    favourites = rng.choice(stocked, size=(config.users, _FAVOURITES))
    weights = rng.dirichlet(np.ones(_FAVOURITES), size=config.users).astype(np.float32)
    liked_UT = np.einsum("uf,uft->ut", weights, kinds_KT[favourites])
    user_UT = _unit(_unit(liked_UT) + 0.5 * _directions(rng, config.users, config.tastes))
    popularity_I = _POPULARITY * rng.standard_normal(config.items, dtype=np.float32)
    return Planted(user_UT, item_IT, popularity_I, titles)


def _generator(config: ShopConfig, stream: int) -> np.random.Generator:
    """One stream per purpose: another feature width then leaves the purchases as they are."""
    return np.random.default_rng([config.seed, stream])


def _stock(config: ShopConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Taste of every kind (K, T) float32, kind of every item (I,) int, taste of every item (I, T), titles."""
    per_department = len(CATALOGUE[0][1])
    num_kinds, num_materials = len(CATALOGUE) * per_department, len(CATALOGUE[0][0])
    departments_T = _directions(rng, len(CATALOGUE), config.tastes)
    department_K = np.arange(num_kinds) // per_department
    kinds_KT = _DEPARTMENT * departments_T[department_K] + _KIND * _directions(rng, num_kinds, config.tastes)
    materials = _directions(rng, len(CATALOGUE) * num_materials, config.tastes)
    colours = _directions(rng, len(COLOURS), config.tastes)
    kind_I = rng.integers(num_kinds, size=config.items)
    material_I = rng.integers(num_materials, size=config.items)
    colour_I = rng.integers(len(COLOURS), size=config.items)
    item_IT = _unit(
        kinds_KT[kind_I]
        + _MATERIAL * materials[department_K[kind_I] * num_materials + material_I]
        + _COLOUR * colours[colour_I]
        + _OWN * _directions(rng, config.items, config.tastes)
    )
    titles = []
    for number, (kind, material, colour) in enumerate(zip(kind_I, material_I, colour_I, strict=True)):
        names, kinds = CATALOGUE[kind // per_department]
        titles.append(f"{names[material]} {kinds[kind % per_department]}, {COLOURS[colour]} #{number}")
    return _unit(kinds_KT), kind_I, item_IT, titles


def _degrees(config: ShopConfig) -> np.ndarray:
    """Interactions of every user, int64 (U,): 5 plus a log-normal tail, at most half of the items."""
    rng = _generator(config, 1)
    surplus = config.interactions - MIN_INTERACTIONS
    # exp(normal(-1/2, 1)) has mean 1; adding a uniform number before rounding down keeps the mean.
    tail_U = surplus * np.exp(rng.standard_normal(config.users) - 0.5) + rng.random(config.users)
    return np.minimum(MIN_INTERACTIONS + tail_U.astype(np.int64), config.items // 2)


def _purchases(config: ShopConfig, planted: Planted, degrees_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Users and items int32 (N,) each, user by user; a user's items in random order.

    Items are drawn without replacement with weights w = exp(sharpness x taste match + log popularity): the k smallest
    of E / w, E exponential, are such a draw. All users x items at once would be too much, so it goes by blocks of users.
    """
    rng = _generator(config, 2)
    step = max(1, _BLOCK_CELLS // config.items)
    parts = []
    for begin in range(0, config.users, step):
        degrees_B = degrees_U[begin : begin + step]
        keys_BI = rng.standard_exponential((len(degrees_B), config.items), dtype=np.float32)
        keys_BI *= np.exp(-affinity(planted, begin, begin + step))
        most = int(degrees_B.max())
        nearest = np.argpartition(keys_BI, most - 1, axis=1)[:, :most]
        by_key = np.argsort(np.take_along_axis(keys_BI, nearest, axis=1), axis=1)
        drawn = np.take_along_axis(nearest, by_key, axis=1)
        parts.append(drawn[np.arange(most) < degrees_B[:, None]])
    users_N = np.repeat(np.arange(config.users, dtype=np.int32), degrees_U)
    items_N = np.concatenate(parts).astype(np.int32)
    # The best matches are drawn first. In random order the split, which goes by position, does not favour them.
    shuffled = np.lexsort((_generator(config, 3).random(len(items_N)), users_N))
    return users_N, items_N[shuffled]


def affinity(planted: Planted, begin: int, end: int) -> np.ndarray:
    """Log weight of every item for users begin..end-1, float32 (users, I): what a perfect model would rank by."""
    return _SHARPNESS * (planted.user_UT[begin:end] @ planted.item_IT.T) + planted.popularity_I


def _split(degrees_U: np.ndarray) -> np.ndarray:
    """Split of every interaction, int8 (N,): of each user's n, round(n / 10) but at least 1 test, as many valid."""
    held_N = np.repeat(np.maximum(1, (degrees_U + 5) // 10), degrees_U)
    first_N = np.repeat(np.cumsum(degrees_U) - degrees_U, degrees_U)
    place_N = np.arange(len(held_N)) - first_N
    split_N = np.full(len(held_N), Split.train, np.int8)
    split_N[place_N < 2 * held_N] = Split.valid
    split_N[place_N < held_N] = Split.test
    return split_N


def _view(item_IT: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noisy linear view of the items' tastes, float32 (I, width); the signal's variance is about 1 in each column."""
    lens_TV = rng.standard_normal((item_IT.shape[1], width), dtype=np.float32)
    return item_IT @ lens_TV + _VIEW_NOISE * rng.standard_normal((len(item_IT), width), dtype=np.float32)


def _directions(rng: np.random.Generator, count: int, tastes: int) -> np.ndarray:
    """Random vectors of length 1, float32 (count, tastes)."""
    return _unit(rng.standard_normal((count, tastes), dtype=np.float32))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _raw_ids(letter: str, count: int) -> list[str]:
    return [f"{letter}{index:05d}" for index in range(count)]


def _origin(config: ShopConfig) -> dict[str, Any]:
    return {"reader": READER, "version": VERSION, "settings": dataclasses.asdict(config)}
