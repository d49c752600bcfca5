"""Compiled loops over rows: neighbour sums and Adam. One pass over memory each, no temporaries, no lock held.

The library's sparse product needs a pass for each of: scaling, product, sum with the layer before. Here a row is
gathered, normalised, added to its base and written once. benchmarks/ compares them. Rows are float32, or bfloat16 as
uint16 (vectors.py); sums are float32.
"""

from __future__ import annotations

# mypy: disallow-untyped-defs=False
import numpy as np
from numba import njit

from bm3_dgl.model.propagation.vectors import add_neighbors, get, put


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def gather_rows(indptr, columns, scale, other_scale, own, halo, base, base_weight, sum_weight, first, stop, out, lanes):
    """out[r - first] = base_weight base[r] + sum_weight scale[r] sum_c other_scale[c] x[c], for rows first <= r < stop.

    x: own (n, D) followed by halo (m, D); C order. indptr int64, columns int32, scales float32 (over own then halo).
    lanes: of D, see vectors.py. Returns the sum of squares of the result, float64.
    """
    width = own.shape[1]
    total = np.empty(width, np.float32)
    squares = np.float64(0.0)
    for row in range(first, stop):
        for offset in range(0, width, len(lanes)):
            add_neighbors(own, halo, columns, other_scale, indptr[row], indptr[row + 1], offset, total, lanes)
        factor = sum_weight * scale[row]
        norm = np.float32(0.0)
        for d in range(width):
            value = base_weight * get(base, row, d) + factor * total[d]
            put(out, row - first, d, value)
            norm += value * value
        squares += norm
    return squares


@njit(cache=True, nogil=True)
def copy_rows(source, out, first, stop):
    """out[r] = source[r] for rows first <= r < stop, in the type of out."""
    for row in range(first, stop):
        for d in range(source.shape[1]):
            put(out, row, d, source[row, d])


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def lay_rows(source, weight, slot, grad, first, out):
    """out[first + r] = weight source[first + r] + grad[slot[r]], without the latter where slot[r] < 0."""
    for row in range(slot.shape[0]):
        place = slot[row]
        for d in range(source.shape[1]):
            g = grad[place, d] if place >= 0 else np.float32(0.0)
            put(out, first + row, d, weight * source[first + row, d] + g)


@njit(inline="always")
def _descend(param, moment, variance, row, d, g, step_size, beta1, beta2, root_correction, eps):
    """Adam on one number, float32: step_size = lr / (1 - beta1^t), root_correction = sqrt(1 - beta2^t)."""
    m = beta1 * moment[row, d] + (np.float32(1.0) - beta1) * g
    v = beta2 * variance[row, d] + (np.float32(1.0) - beta2) * g * g
    moment[row, d] = m
    variance[row, d] = v
    param[row, d] -= step_size * m / (np.sqrt(v) / root_correction + eps)


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def adam_rows(param, moment, variance, grad, step_size, beta1, beta2, root_correction, eps):
    """Dense Adam over rows, all float32 (n, D): every row moves, also where its gradient is zero."""
    for row in range(param.shape[0]):
        for d in range(param.shape[1]):
            _descend(param, moment, variance, row, d, grad[row, d], step_size, beta1, beta2, root_correction, eps)


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def adam_slots(param, moment, variance, slot, grad, step_size, beta1, beta2, root_correction, eps):
    """Dense Adam where few rows have a gradient: row r takes grad[slot[r]], or zero where slot[r] < 0."""
    for row in range(param.shape[0]):
        place = slot[row]
        for d in range(param.shape[1]):
            g = grad[place, d] if place >= 0 else np.float32(0.0)
            _descend(param, moment, variance, row, d, g, step_size, beta1, beta2, root_correction, eps)


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def adam_sparse(param, moment, variance, steps, rows, grad, learning_rate, beta1, beta2, eps):
    """Sparse Adam: only `rows` move, each with its own step count, steps float32 (n, 1)."""
    first, second, small = np.float32(beta1), np.float32(beta2), np.float32(eps)
    for k in range(rows.shape[0]):
        row = rows[k]
        steps[row, 0] += 1
        step_size = np.float32(learning_rate / (1.0 - beta1 ** steps[row, 0]))
        root_correction = np.float32(np.sqrt(1.0 - beta2 ** steps[row, 0]))
        for d in range(param.shape[1]):
            _descend(param, moment, variance, row, d, grad[k, d], step_size, first, second, root_correction, small)
