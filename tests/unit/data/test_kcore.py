"""The loops on int arrays, each against a naive one over lists and dicts; vocabularies against a dict."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bm3_dgl.config.schema import SplitMethod, TimeUnit
from bm3_dgl.data import vocabulary as vocabulary_module
from bm3_dgl.data.kcore import drop_repeats, k_core, renumber
from bm3_dgl.data.mistakes import Mistake
from bm3_dgl.data.splits import split_rows
from bm3_dgl.data.times import milliseconds
from bm3_dgl.data.vocabulary import Vocabulary, load_strings

USERS, ITEMS = 300, 200


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """users, items int32, times int64 and alive bool of 3000 rows, with repeats and some rows dead before."""
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, USERS, 3000).astype(np.int32), (rng.zipf(1.5, 3000) % ITEMS).astype(np.int32)
    return users, items, rng.integers(0, 5, 3000), rng.random(3000) < 0.9


@pytest.mark.parametrize("by_time", [True, False])
def test_repeats(rows: tuple[np.ndarray, ...], by_time: bool) -> None:
    users, items, times, alive = rows
    seen, expected = set(), []
    for row in np.flatnonzero(alive).tolist():
        key = (users[row], items[row], times[row] if by_time else 0)
        if key not in seen:
            seen.add(key)
            expected.append(row)
    drop_repeats(users, items, times if by_time else None, alive)
    assert np.flatnonzero(alive).tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 5, 8, 100])
def test_k_core(rows: tuple[np.ndarray, ...], k: int) -> None:
    users, items, _, alive = rows
    left, rounds = np.flatnonzero(alive).tolist(), 0
    while True:
        of_user, of_item = Counter(users[left].tolist()), Counter(items[left].tolist())
        kept = [row for row in left if of_user[users[row]] >= k and of_item[items[row]] >= k]
        if kept == left:
            break
        left, rounds = kept, rounds + 1
    assert k_core(users, items, alive, k=k, num_users=USERS, num_items=ITEMS) == rounds
    assert np.flatnonzero(alive).tolist() == left


def test_numbers_follow_the_first_appearance(rows: tuple[np.ndarray, ...]) -> None:
    users, _, _, alive = rows
    new, old = renumber(users, alive, USERS)
    assert old.tolist() == list(dict.fromkeys(users[alive].tolist()))
    assert new[old].tolist() == list(range(len(old)))
    assert set(np.flatnonzero(new < 0)) == set(range(USERS)) - set(users[alive].tolist())


def test_split_of_a_few_rows_by_hand() -> None:
    """One user with 2, one with 10 rows and one with 3, interleaved."""
    users = np.array([1, 0, 1, 2, 1, 1, 0, 1, 1, 2, 1, 1, 1, 2, 1], np.int32)
    times = np.arange(15)[::-1].copy()
    order, split = split_rows(users, np.arange(15), times, num_users=3, method=SplitMethod.time, seed=0)
    assert users[order].tolist() == [0] * 2 + [1] * 10 + [2] * 3
    assert order.tolist() == [6, 1, 14, 12, 11, 10, 8, 7, 5, 4, 2, 0, 13, 9, 3]
    assert split.tolist() == [0, 0] + [0] * 8 + [1, 2] + [0, 1, 2]


def test_random_order_of_a_user_is_even() -> None:
    """Of 5000 users with 5 rows each, every place is tested about as often."""
    users = np.repeat(np.arange(5000, dtype=np.int32), 5)
    order, split = split_rows(users, np.arange(25000), None, num_users=5000, method=SplitMethod.random, seed=3)
    counts = np.bincount(order[split == 2] % 5)
    assert counts.sum() == 5000 and np.abs(counts - 1000).max() < 5 * np.sqrt(800)


@pytest.mark.parametrize("hashes", ["its own", "one for all"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_vocabulary_numbers_as_a_dict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType, hashes: str
) -> None:
    scale = 3000
    if hashes == "one for all":  # then only the bytes tell strings apart
        scale = 150  # in one chain, and without a compiler
        monkeypatch.setattr(vocabulary_module, "_add", _with_one_hash())
    rng = np.random.default_rng(2)
    vocabulary, known = Vocabulary(), {}
    for size in (0, 1, scale, 100):
        words = ["" if number == 0 else "\u00e9" * (number % 5) + str(number) for number in rng.integers(0, scale, size)]
        expected = [known.setdefault(word, len(known)) for word in words]
        column = pa.concat_arrays([pa.array(["other", "words"], kind), pa.array(words, kind)]).slice(2)  # has an offset
        assert vocabulary.add(column).tolist() == expected
    assert vocabulary.strings().to_pylist() == list(known) and len(vocabulary) == len(known)
    vocabulary.save(tmp_path / "words.arrow")
    assert load_strings(tmp_path / "words.arrow").to_pylist() == list(known)


def _with_one_hash():  # type: ignore[no-untyped-def]
    """`_add` in plain Python with every string in the same slot's chain."""

    def add(data, offsets, letters, ends, hashes, slots, count, indices):  # type: ignore[no-untyped-def]
        for row in range(len(indices)):
            begin, end = int(offsets[row]), int(offsets[row + 1])
            slot = vocabulary_module._slot_of.py_func(data, begin, end, np.uint64(7), letters, ends, hashes, slots)
            if slots[slot] < 0:
                first = ends[count - 1] if count else 0
                letters[first : first + end - begin] = data[begin:end]
                ends[count], hashes[count], slots[slot] = first + end - begin, 7, count
                count += 1
            indices[row] = slots[slot]
        return count

    return add


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([1, None], TimeUnit.s, [1000, None]),
        ([1_500_000], TimeUnit.us, [1500]),
        ([1_500_000_000], TimeUnit.ns, [1500]),
        ([1.5, None], TimeUnit.s, [1500, None]),
        ([1_400_000_000, 1_400_000_000_123], None, [1_400_000_000_000, 1_400_000_000_123]),
        (["12", None], TimeUnit.ms, [12, None]),
        (["1.5"], TimeUnit.s, [1500]),
        (["1970-01-02", "1970-01-01 00:00:01"], TimeUnit.s, [86_400_000, 1000]),
        (["1970-01-01T00:00:01Z", "1970-01-01T02:00:00+01:00"], TimeUnit.s, [1000, 3_600_000]),
    ],
)
def test_times(values: list, unit: TimeUnit | None, expected: list) -> None:
    assert milliseconds(pa.array(values), unit).to_pylist() == expected


@pytest.mark.parametrize("values", [["noon"], [float("inf")], [2**62], [True], [[1]]])
def test_what_is_no_time(values: list) -> None:
    with pytest.raises((Mistake, pa.ArrowInvalid)):
        milliseconds(pa.array(values), TimeUnit.s)
