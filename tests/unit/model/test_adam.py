"""The table kernels against torch.optim.Adam, several steps in a row."""

from __future__ import annotations

import numpy as np
import torch

from bm3_dgl.model.propagation.adam import BETA1, BETA2, EPS, _scalars
from bm3_dgl.model.propagation.kernels import adam_rows, adam_slots, adam_sparse

ROWS, WIDTH, STEPS, RATE = 7, 5, 4, 0.01


def by_torch(gradients: list[torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([parameter], lr=RATE)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def make() -> tuple[list[torch.Tensor], torch.Tensor, list[np.ndarray]]:
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(ROWS, WIDTH, generator=generator) for _ in range(STEPS)]
    for gradient in gradients:
        gradient[2] = 0  # a row without gradient moves all the same
    gradients[1][:] *= torch.tensor([1.0, 0, 0, 1, 0, 1, 0])[:, None]
    start = torch.randn(ROWS, WIDTH, generator=generator)
    return gradients, start, [start.clone().numpy(), np.zeros((ROWS, WIDTH), np.float32), np.zeros((ROWS, WIDTH), np.float32)]


def test_dense() -> None:
    gradients, start, tables = make()
    for step, gradient in enumerate(gradients, 1):
        adam_rows(*tables, gradient.numpy(), *_scalars(step, RATE))
    torch.testing.assert_close(torch.from_numpy(tables[0]), by_torch(gradients, start), rtol=1e-5, atol=1e-6)


def test_dense_with_few_gradients() -> None:
    gradients, start, tables = make()
    for step, gradient in enumerate(gradients, 1):
        rows = gradient.abs().sum(1).nonzero().squeeze(1)
        slot = np.full(ROWS, -1, np.int32)
        slot[rows.numpy()] = np.arange(len(rows))
        adam_slots(*tables, slot, gradient[rows].numpy(), *_scalars(step, RATE))
    torch.testing.assert_close(torch.from_numpy(tables[0]), by_torch(gradients, start), rtol=1e-5, atol=1e-6)


def test_sparse_rows_count_their_own_steps() -> None:
    """A row touched at steps 1 and 4 moves as if those had been steps 1 and 2; others stay."""
    gradients, start, tables = make()
    steps = np.zeros((ROWS, 1), np.float32)
    for gradient in (gradients[0], gradients[3]):
        adam_sparse(*tables, steps, np.array([1, 4]), gradient[[1, 4]].numpy(), RATE, BETA1, BETA2, EPS)
    found, expected = torch.from_numpy(tables[0]), by_torch([gradients[0], gradients[3]], start)
    torch.testing.assert_close(found[[1, 4]], expected[[1, 4]], rtol=1e-5, atol=1e-6)
    untouched = [0, 2, 3, 5, 6]
    assert torch.equal(found[untouched], start[untouched]) and steps[:, 0].tolist() == [0, 2, 0, 0, 2, 0, 0]
