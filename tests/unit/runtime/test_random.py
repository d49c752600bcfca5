"""Numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import pytest
import torch

from bm3_dgl.runtime.random import derive, dropout_multiplier, hash_rows, uniform_rows


def reference_mix(state: int) -> int:
    """SplitMix64's finaliser in unbounded integers."""
    mask = 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_hash_against_plain_integers() -> None:
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    ids = torch.tensor([0, 1, 7, 2**40])
    found = hash_rows(12345, ids, 3)
    for r, node in enumerate(ids.tolist()):
        row = reference_mix(12345 ^ ((node + 1) * golden & mask))
        for c in range(3):
            assert int(found[r, c]) == reference_mix((row + (c + 1) * golden) & mask)


def test_a_row_does_not_depend_on_its_company() -> None:
    ids = torch.arange(100)
    whole = dropout_multiplier(5, ids, 64, 0.5)
    chosen = torch.tensor([3, 97, 3])
    assert torch.equal(dropout_multiplier(5, chosen, 64, 0.5), whole[chosen])
    assert torch.equal(uniform_rows(5, chosen, 10), uniform_rows(5, ids, 10)[chosen])


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("width", [1, 3, 64])
def test_dropout_keeps_the_mean(probability: float, width: int) -> None:
    rows = 60000 // width
    values = dropout_multiplier(1, torch.arange(rows), width, probability)
    assert values.shape == (rows, width) and set(values.unique().tolist()) <= {0.0, float(values.max())}
    dropped = float((values == 0).double().mean())
    assert dropped == pytest.approx(probability, abs=5 * (0.25 / values.numel()) ** 0.5)
    assert float(values.max()) == pytest.approx(1 / (1 - probability), rel=1e-4)


def test_columns_and_purposes_are_independent() -> None:
    first = dropout_multiplier(derive(1, "dropout", 0, "user"), torch.arange(4000), 8, 0.5) > 0
    other = dropout_multiplier(derive(1, "dropout", 0, "item"), torch.arange(4000), 8, 0.5) > 0
    later = dropout_multiplier(derive(1, "dropout", 1, "user"), torch.arange(4000), 8, 0.5) > 0
    for pair in (other, later):
        assert float((first == pair).double().mean()) == pytest.approx(0.5, abs=0.015)
    correlation = torch.corrcoef(first.double().T) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.08


def test_uniform_rows_fill_their_range() -> None:
    values = uniform_rows(3, torch.arange(5000), 20).double()
    assert float(values.min()) >= -1 and float(values.max()) < 1
    assert float(values.mean()) == pytest.approx(0, abs=0.01) and float(values.var()) == pytest.approx(1 / 3, rel=0.02)
