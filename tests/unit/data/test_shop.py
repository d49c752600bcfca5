"""The made-up shop: shapes, split, determinism, and that there is something to learn which popularity does not tell."""

from __future__ import annotations

import numpy as np
import pytest

from bm3_dgl.config.schema import ShopConfig
from bm3_dgl.data import shop
from bm3_dgl.data.dataset import RawDataset
from bm3_dgl.data.shop import affinity, make_shop, plant
from bm3_dgl.types import Split

SMALL = ShopConfig(users=300, items=120)


@pytest.fixture(scope="module")
def default_shop() -> RawDataset:
    return make_shop(ShopConfig())


def recall_at_20(raw: RawDataset, score_UI: np.ndarray, items_I: np.ndarray | None = None) -> float:
    """Mean test recall over users, train items masked; of the items in the mask only, where one is given."""
    score_UI = score_UI.copy()
    train, test = raw.split == Split.train, raw.split == Split.test
    score_UI[raw.users[train], raw.items[train]] = -np.inf
    top = np.argsort(-score_UI, axis=1, kind="stable")[:, :20]
    hit_UI = np.zeros(score_UI.shape, bool)
    np.put_along_axis(hit_UI, top, True, axis=1)
    if items_I is not None:
        test = test & items_I[raw.items]
    held = np.bincount(raw.users[test], minlength=len(score_UI))
    hits = np.bincount(raw.users[test], hit_UI[raw.users[test], raw.items[test]], minlength=len(score_UI))
    return float((hits[held > 0] / held[held > 0]).mean())


def train_counts(raw: RawDataset) -> np.ndarray:
    return np.bincount(raw.items[raw.split == Split.train], minlength=len(raw.raw_item_ids))


def content_scores(raw: RawDataset, modality: str) -> np.ndarray:
    """Cosine of every item with the mean features of the user's train items, (U, I)."""
    features = raw.features[modality]
    train = raw.split == Split.train
    profile = np.zeros((len(raw.raw_user_ids), features.shape[1]))
    np.add.at(profile, raw.users[train], features[raw.items[train]])
    return profile @ (features / np.linalg.norm(features, axis=1, keepdims=True)).T


def test_shapes_and_types(default_shop: RawDataset) -> None:
    raw, config = default_shop, ShopConfig()
    assert len(raw.users) == len(raw.items) == len(raw.split)
    assert (raw.users.dtype, raw.items.dtype, raw.split.dtype) == (np.int32, np.int32, np.int8)
    assert raw.features["visual"].shape == (config.items, config.visual_width)
    assert raw.features["text"].shape == (config.items, config.text_width)
    assert all(rows.dtype == np.float32 and np.isfinite(rows).all() for rows in raw.features.values())
    assert raw.raw_user_ids[42] == "U00042"
    assert raw.raw_item_ids[17] == "B00017"
    assert len(raw.raw_user_ids) == config.users
    assert len(raw.titles) == len(raw.raw_item_ids) == config.items
    assert raw.items.min() >= 0
    assert raw.items.max() < config.items


def test_no_pair_twice(default_shop: RawDataset) -> None:
    pairs = default_shop.users.astype(np.int64) * 800 + default_shop.items
    assert len(np.unique(pairs)) == len(pairs)


def test_degrees_have_a_floor_a_mean_and_a_tail(default_shop: RawDataset) -> None:
    degrees = np.bincount(default_shop.users, minlength=2000)
    assert degrees.min() >= 5
    assert degrees.mean() == pytest.approx(12, rel=0.08)
    assert degrees.max() > 6 * np.median(degrees)


def test_split_of_each_user(default_shop: RawDataset) -> None:
    for user in range(0, 2000, 7):
        split = default_shop.split[default_shop.users == user]
        held = max(1, int(len(split) / 10 + 0.5))
        assert (split == Split.valid).sum() == (split == Split.test).sum() == held
        if len(split) < 10:
            assert held == 1


def test_split_does_not_favour_good_matches() -> None:
    """Train and test items of a user suit equally well: the best matches, which are drawn first, are not all train."""
    raw, score_UI = make_shop(ShopConfig()), affinity(plant(ShopConfig()), 0, 2000)
    match = score_UI[raw.users, raw.items]
    assert match[raw.split == Split.test].mean() == pytest.approx(match[raw.split == Split.train].mean(), abs=0.15)


def test_taste_beats_popularity(default_shop: RawDataset) -> None:
    """Measured with seed 7: popularity 0.063, the planted affinity 0.496."""
    popularity = recall_at_20(default_shop, np.tile(train_counts(default_shop).astype(float), (2000, 1)))
    oracle = recall_at_20(default_shop, affinity(plant(ShopConfig()), 0, 2000))
    assert 0.05 < popularity < 0.10
    assert oracle > 4 * popularity


@pytest.mark.parametrize("modality", ["visual", "text"])
def test_features_tell_rare_items_apart(default_shop: RawDataset, modality: str) -> None:
    """On the tenth of the items with the fewest train interactions too, content beats the share a random list has."""
    counts = train_counts(default_shop)
    rare = counts <= np.quantile(counts, 0.1)
    assert recall_at_20(default_shop, content_scores(default_shop, modality), rare) > 5 * 20 / 800


def test_same_seed_same_shop_and_another_seed_another() -> None:
    one, two, other = make_shop(SMALL), make_shop(SMALL), make_shop(ShopConfig(users=300, items=120, seed=8))
    for name in ("users", "items", "split"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for name in one.features:
        np.testing.assert_array_equal(one.features[name], two.features[name])
    assert (one.titles, one.origin) == (two.titles, two.origin)
    assert one.items.tolist() != other.items.tolist()
    assert one.titles != other.titles


def test_blocks_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_shop(SMALL)
    monkeypatch.setattr(shop, "_BLOCK_CELLS", 120 * 7)
    blocks = make_shop(SMALL)
    np.testing.assert_array_equal(whole.items, blocks.items)
    np.testing.assert_array_equal(whole.users, blocks.users)


def test_feature_width_leaves_purchases_alone() -> None:
    wide = make_shop(ShopConfig(users=300, items=120, visual_width=5))
    np.testing.assert_array_equal(wide.items, make_shop(SMALL).items)
    assert wide.features["visual"].shape == (120, 5)


def test_views_differ_even_in_equal_width() -> None:
    views = make_shop(ShopConfig(users=300, items=120, visual_width=9, text_width=9)).features
    assert abs(np.corrcoef(views["visual"].ravel(), views["text"].ravel())[0, 1]) < 0.5


@pytest.mark.parametrize(
    "config",
    [
        ShopConfig(users=10, items=10, interactions=5, tastes=1, visual_width=1, text_width=1),
        ShopConfig(users=10, items=11, interactions=1000, tastes=64),
    ],
)
def test_smallest_and_fullest(config: ShopConfig) -> None:
    raw = make_shop(config)
    assert np.bincount(raw.users).tolist() == [5] * 10  # the least a user has, and half of the items
    assert [int((raw.split == split).sum()) for split in Split] == [30, 10, 10]


def test_titles_read_well_and_say_what_suits(default_shop: RawDataset) -> None:
    """A title names material, kind, colour and number; two of one kind are nearer in features than two of different kinds."""
    titles = [title for title in default_shop.titles if title]
    assert len(set(titles)) == 800
    assert titles[3].endswith(" #3")
    kinds = np.array([title.split(" ", 1)[1].split(",")[0] for title in titles])
    rows = default_shop.features["text"]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine, same = rows @ rows.T, kinds[:, None] == kinds[None, :]
    np.fill_diagonal(same, False)
    assert cosine[same].mean() > cosine[~same].mean() + 0.3
