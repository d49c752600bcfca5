"""Compiled sums of rows against a plain loop, for widths that do and do not fit the processor, and for 16-bit rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bm3_dgl.model.propagation.kernels import copy_rows, gather_rows, lay_rows
from bm3_dgl.model.propagation.vectors import lanes_of

ROWS, OWN, HALO = 23, 11, 6
WIDTHS = [1, 3, 12, 16, 64, 100, 128, 131, 192, 300]


def as_stored(rows: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows as the kernels take them, and their values as float32, rounded by torch."""
    if kind == "float32":
        return rows, rows
    rounded = torch.from_numpy(rows).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16), rounded.float().numpy()


def values(rows: np.ndarray) -> np.ndarray:
    """Stored rows as float32."""
    if rows.dtype == np.float32:
        return rows
    return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16).float().numpy()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_neighbour_sums(width: int, kind: str) -> None:
    generator = np.random.default_rng(width)
    degrees = generator.integers(0, 40, ROWS)
    degrees[[0, -1]] = 0, 25  # a row without neighbours; nothing to be asked for behind the last edge
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    columns = generator.integers(0, OWN + HALO, indptr[-1]).astype(np.int32)
    scale, other = (generator.random(n).astype(np.float32) for n in (ROWS, OWN + HALO))
    x, exact_x = as_stored(generator.standard_normal((OWN + HALO, width)).astype(np.float32), kind)
    base, exact_base = as_stored(generator.standard_normal((ROWS, width)).astype(np.float32), kind)
    expected = 0.5 * exact_base.astype(np.float64)
    for row in range(ROWS):
        for edge in range(indptr[row], indptr[row + 1]):
            expected[row] += 0.25 * scale[row] * other[columns[edge]].astype(np.float64) * exact_x[columns[edge]]

    def run(first: int, stop: int, out: np.ndarray) -> float:
        arguments = indptr, columns, scale, other, x[:OWN].copy(), x[OWN:].copy(), base, np.float32(0.5), np.float32(0.25)
        return gather_rows(*arguments, first, stop, out, lanes_of(width))

    out = np.empty((ROWS - 2, width), np.float32)
    squares = run(2, ROWS, out)
    np.testing.assert_allclose(out, expected[2:], rtol=1e-4, atol=1e-5)
    assert squares == pytest.approx((expected[2:] ** 2).sum(), rel=1e-4)
    stored = np.empty((ROWS, width), x.dtype)
    run(0, ROWS, stored)
    whole = np.empty((ROWS, width), np.float32)
    run(0, ROWS, whole)
    assert np.array_equal(values(stored), as_stored(whole, kind)[1]), "stored as torch rounds"


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_rows_are_rounded_as_torch_does(kind: str) -> None:
    special = [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, -3.4e38, 1e-40, np.inf, -np.inf, np.nan]
    source = np.concatenate([np.array(special), np.random.default_rng(1).standard_normal(5000) * 1e-3]).astype(np.float32)
    out = np.zeros((len(source), 1), np.float32 if kind == "float32" else np.uint16)
    copy_rows(source[:, None], out, 0, len(source))
    np.testing.assert_array_equal(values(out)[:, 0], as_stored(source, kind)[1])


def test_gradient_rows() -> None:
    generator = np.random.default_rng(3)
    source, grad = (generator.standard_normal((n, 5)).astype(np.float32) for n in (9, 2))
    slot = np.array([-1, 1, -1, 0], np.int32)
    out = np.zeros((9, 5), np.float32)
    lay_rows(source, np.float32(0.5), slot, grad, 3, out)
    expected = 0.5 * source[3:7]
    expected[[3, 1]] += grad
    np.testing.assert_allclose(out[3:7], expected, rtol=1e-6)
    assert not out[:3].any() and not out[7:].any()


def test_lanes_divide_the_width() -> None:
    assert [len(lanes_of(width)) for width in (1, 64, 128, 131, 192, 4096)] == [1, 64, 128, 1, 96, 128]
