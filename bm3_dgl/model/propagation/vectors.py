"""Compiled code that the loops of kernels.py cannot say: a sum of rows held in registers, and rows of 16-bit floats.

A row of d numbers is gathered for every edge, from a table larger than the cache. Two things bound that: the wait for
memory, so rows are asked for some edges ahead; and traffic between registers and cache, so the sum of up to _WIDEST
columns stays in registers as one vector of a width known to the compiler. LLVM splits such vectors into what the
processor has, so nothing here is for one kind of processor.

bfloat16 is the upper half of a float32, held as uint16: widening it is a shift. Rows of it move half the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

_AHEAD = 8  # edges between asking for a row and adding it; 4 to 16 measured alike, 0 takes twice the time
_WIDEST = 128  # columns whose sum fits the registers of a processor with AVX2 (16 x 8); 64 on the safe side of spilling
_LINE = 64  # bytes of a cache line

_BYTE, _INT16, _INT32, _INT64, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()

Lanes = tuple[None, ...]


def lanes_of(width: int) -> Lanes:
    """A tuple whose length is the number of columns to sum at once: the largest divisor of width that is not too wide.

    Compiled code is made for types, and the length of a tuple is part of its type.
    """
    return (None,) * max(count for count in range(1, min(width, _WIDEST) + 1) if width % count == 0)


@intrinsic
def add_neighbors(typingctx, own, halo, columns, weights, begin, stop, offset, total, lanes):  # type: ignore[no-untyped-def]
    """total[offset : offset + n] = sum over edges begin..stop-1 of weights[c] x[c, offset : offset + n], c = columns[edge].

    x: own (n, D) float32 or bfloat16, C order, followed by halo. n = len(lanes).
    """
    signature = types.void(own, halo, columns, weights, begin, stop, offset, total, lanes)
    return signature, _generate


def _generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    own, halo, columns, weights, begin, stop, offset, total, _ = values
    kinds = signature.args
    arrays = [context.make_array(kinds[k])(context, builder, values[k]) for k in (0, 1, 2, 3, 7)]
    own, halo, columns, weights, total = arrays
    count, wide = kinds[8].count, kinds[0].dtype == types.float32
    vector = ir.VectorType(_FLOAT, count)
    num_own, width = cgutils.unpack_tuple(builder, own.shape, 2)
    last = builder.sub(cgutils.unpack_tuple(builder, columns.shape, 1)[0], _INT64(1))

    def column_of(edge: Any) -> Any:
        return builder.sext(builder.load(builder.gep(columns.data, [edge])), _INT64)

    def row(column: Any) -> Any:
        is_own = builder.icmp_signed("<", column, num_own)
        base = builder.select(is_own, own.data, halo.data)
        number = builder.select(is_own, column, builder.sub(column, num_own))
        return builder.gep(base, [builder.add(builder.mul(number, width), offset)])

    prefetch = builder.module.declare_intrinsic(
        "llvm.prefetch", [_BYTE.as_pointer()], ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT32, _INT32, _INT32])
    )
    sum_of = cgutils.alloca_once(builder, vector)
    builder.store(ir.Constant(vector, None), sum_of)
    with cgutils.for_range_slice(builder, begin, stop, _INT64(1), inc=True) as (edge, _):
        later = builder.add(edge, _INT64(_AHEAD))
        later = builder.select(builder.icmp_signed("<", later, last), later, last)
        ahead = builder.bitcast(row(column_of(later)), _BYTE.as_pointer())
        for byte in range(0, count * (4 if wide else 2), _LINE):
            builder.call(prefetch, [builder.gep(ahead, [_INT64(byte)]), _INT32(0), _INT32(3), _INT32(1)])
        column = column_of(edge)
        weight = _splat(builder, builder.load(builder.gep(weights.data, [column])), vector)
        term = builder.fmul(weight, _load(builder, row(column), count, wide), flags=("contract",))
        builder.store(builder.fadd(builder.load(sum_of), term, flags=("contract",)), sum_of)
    place = builder.bitcast(builder.gep(total.data, [offset]), vector.as_pointer())
    builder.store(builder.load(sum_of), place, align=4)
    return context.get_dummy_value()


def _load(builder: Any, place: Any, count: int, wide: bool) -> Any:
    """`count` numbers at a place, as float32."""
    vector = ir.VectorType(_FLOAT, count)
    if wide:
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
    halves = builder.load(builder.bitcast(place, ir.VectorType(_INT16, count).as_pointer()), align=2)
    words = ir.VectorType(_INT32, count)
    return builder.bitcast(builder.shl(builder.zext(halves, words), ir.Constant(words, [16] * count)), vector)


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_INT32, vector.count), None))


@intrinsic
def _bits_of(typingctx, number):  # type: ignore[no-untyped-def]
    """The bits of a float32, uint32."""
    return types.uint32(types.float32), lambda context, builder, signature, values: builder.bitcast(values[0], _INT32)


@intrinsic
def _float_of(typingctx, bits):  # type: ignore[no-untyped-def]
    """The float32 of these bits."""
    return types.float32(types.uint32), lambda context, builder, signature, values: builder.bitcast(values[0], _FLOAT)


def get(rows, row, column):  # type: ignore[no-untyped-def]
    """rows[row, column] as float32, in compiled code. rows: float32, or bfloat16 as uint16."""
    raise NotImplementedError


def put(rows, row, column, value):  # type: ignore[no-untyped-def]
    """rows[row, column] = value, in compiled code; bfloat16 rounded to the nearest, ties to even."""
    raise NotImplementedError


@overload(get, inline="always")
def _get(rows, row, column):  # type: ignore[no-untyped-def]
    if rows.dtype == types.float32:
        return lambda rows, row, column: rows[row, column]
    return lambda rows, row, column: _float_of(np.uint32(rows[row, column]) << np.uint32(16))


@overload(put, inline="always")
def _put(rows, row, column, value):  # type: ignore[no-untyped-def]
    if rows.dtype == types.float32:

        def write(rows, row, column, value):  # type: ignore[no-untyped-def]
            rows[row, column] = value
    else:

        def write(rows, row, column, value):  # type: ignore[no-untyped-def]
            bits = _bits_of(value)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            rows[row, column] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return write
