"""The order of an epoch is a permutation, the same for everybody, another one each epoch."""

from __future__ import annotations

import pytest
import torch

from bm3_dgl.train.order import EpochOrder, batches_per_epoch


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
@pytest.mark.parametrize("batch", [1, 7, 256, 5000])
def test_every_interaction_once(size: int, batch: int) -> None:
    order = EpochOrder(size, seed=3, epoch=2)
    batches = [order.batch(number, batch) for number in range(batches_per_epoch(size, batch))]
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(size))
    assert all(len(ids) == batch for ids in batches[:-1])


def test_batch_size_does_not_change_the_order() -> None:
    order = EpochOrder(1000, seed=3, epoch=2)
    whole = order.batch(0, 1000)
    assert torch.equal(torch.cat([order.batch(k, 300) for k in range(4)]), whole)


def test_seed_and_epoch_change_the_order() -> None:
    orders = [EpochOrder(1000, seed=seed, epoch=epoch).batch(0, 1000) for seed, epoch in ((1, 1), (1, 2), (2, 1))]
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_positions_are_uniform() -> None:
    """Where interaction 0 stands, over many epochs: chi-square over ten bins, 9 degrees of freedom, p = 1e-4 at 33.7."""
    size, epochs = 500, 2000
    places = torch.tensor([int((EpochOrder(size, seed=9, epoch=e).batch(0, size) == 0).nonzero()) for e in range(epochs)])
    counts = torch.bincount(places * 10 // size, minlength=10).double()
    assert float(((counts - epochs / 10) ** 2 / (epochs / 10)).sum()) < 33.7
