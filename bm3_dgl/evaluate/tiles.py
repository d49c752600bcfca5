"""Vector code of the full ranking that plain loops do not compile to; functions for compiled code only.

A *tile* is 64 items, a *group* six users. `nominate` multiplies a group with a tile in 8-bit integers and tells which of
the 384 pairs reach their user's limit; the 24 vectors of sums never leave the registers. Where the processor has
AVX-512 VNNI, one instruction does 64 multiply-adds; elsewhere the same sums are made of 16-bit products, which every
processor has (on AVX2: vpmaddwd). All sums are exact integers, so both nominate the same pairs. The choice follows
what numba compiles for, hence also NUMBA_CPU_NAME and NUMBA_CPU_FEATURES.

Shape suffixes: S users of a block, Q = ceil(D / 4) quads of dimensions, T tiles.
"""

from __future__ import annotations

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
from functools import reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TILE_ITEMS = 64
GROUP_USERS = 6  # 6 x 4 vectors of sums, 4 of items and 1 of a user fill 29 of 32 registers
_LANES = 16  # int32 of a vector
_VECTORS = TILE_ITEMS // _LANES

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_SUMS = ir.VectorType(_I32, _LANES)
_HALVES = ir.VectorType(_I16, 2 * _LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), 8)


def _splat(builder, number, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count))


def _constant(vector, number):
    return ir.Constant(vector, [number] * vector.count)


def _add_quads_vnni(builder, sums, items, user):
    """sums + the dot products of four unsigned bytes of items with four signed ones of user, int32 lanes."""
    kind = ir.FunctionType(_SUMS, [_SUMS, _SUMS, _SUMS])
    dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    return builder.call(dot, [sums, items, user])


def _add_quads_generic(builder, sums, items, user):
    """The same from products of 16-bit numbers: bytes 0 and 2 of each lane, then bytes 1 and 3."""
    eight = _constant(_HALVES, 8)
    items, user = builder.bitcast(items, _HALVES), builder.bitcast(user, _HALVES)
    even = builder.and_(items, _constant(_HALVES, 255)), builder.ashr(builder.shl(user, eight), eight)
    odd = builder.lshr(items, eight), builder.ashr(user, eight)
    wide = ir.VectorType(_I32, 2 * _LANES)
    for one, other in (even, odd):
        products = builder.mul(builder.sext(one, wide), builder.sext(other, wide))
        for parity in (0, 1):
            chosen = ir.Constant(_SUMS, list(range(parity, 2 * _LANES, 2)))
            sums = builder.add(sums, builder.shuffle_vector(products, products, chosen))
    return sums


def _emit_products(builder, user_pointers, quads, tile_pointer, starts, add_quads):
    """The loop over quads for some users and one tile; returns the sums, a list of vectors per user."""
    before, loop, after = builder.block, builder.append_basic_block("quads"), builder.append_basic_block("sums")
    first = [_splat(builder, start, _SUMS) for start in starts]
    builder.branch(loop)
    builder.position_at_end(loop)
    quad = builder.phi(_I64)
    sums = [[builder.phi(_SUMS) for _ in range(_VECTORS)] for _ in starts]
    addresses = [builder.gep(tile_pointer, [builder.add(builder.mul(quad, _I64(_VECTORS)), _I64(v))]) for v in range(_VECTORS)]
    items = [builder.load(address, align=4) for address in addresses]
    added = []
    for pointer, row in zip(user_pointers, sums, strict=True):
        user = _splat(builder, builder.load(builder.gep(pointer, [quad])), _SUMS)
        added.append([add_quads(builder, total, part, user) for total, part in zip(row, items, strict=True)])
    following = builder.add(quad, _I64(1))
    quad.add_incoming(_I64(0), before)
    quad.add_incoming(following, loop)
    for row, start, more in zip(sums, first, added, strict=True):
        for total, new in zip(row, more, strict=True):
            total.add_incoming(start, before)
            total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, quads), loop, after)
    builder.position_at_end(after)
    return added


def _emit_hits(builder, sums, hits, first_user):
    """Store one 64-bit mask of the sums that are not negative per user, if there is any; returns whether there is."""
    zero = ir.Constant(_SUMS, None)
    every = reduce(builder.and_, (vector for row in sums for vector in row))  # negative where all are
    signs = builder.bitcast(builder.icmp_signed("<", every, zero), _I16)
    found = builder.icmp_unsigned("!=", signs, _I16(0xFFFF))
    with builder.if_then(found, likely=False):
        for x, row in enumerate(sums):
            mask = _I64(0)
            for v, vector in enumerate(row):
                lanes = builder.bitcast(builder.icmp_signed(">=", vector, zero), _I16)
                mask = builder.or_(mask, builder.shl(builder.zext(lanes, _I64), _I64(_LANES * v)))
            builder.store(mask, builder.gep(hits, [_I64(first_user + x)]))
    return found


@intrinsic
def nominate(typingctx, users_SQ, slot, tiles, tile, starts_S, hits):
    """Whether any pair of users slot .. slot + 5 and one tile has start + sum >= 0; if so, hits holds their masks.

    users_SQ: int32 (S, Q), four int8 each. tiles: int32 (T, Q, 64), four uint8 each. starts_S: int32, minus the limits.
    hits: int64 (6,); bit i is the tile's item i. Users without a hit get an undefined mask if no pair at all hits.
    """
    signature = types.int64(users_SQ, slot, tiles, tile, starts_S, hits)

    def codegen(context, builder, signature, arguments):
        features = context.codegen().magic_tuple()[2].split(",")
        vnni = "+avx512vnni" in features
        arrays = {n: context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 2, 4, 5)}
        slot, tile = arguments[1], arguments[3]
        quads = builder.extract_value(arrays[0].shape, 1)
        tile_start = builder.mul(tile, builder.mul(quads, _I64(TILE_ITEMS)))
        tile_pointer = builder.bitcast(builder.gep(arrays[2].data, [tile_start]), _SUMS.as_pointer())
        pointers, starts = [], []
        for x in range(GROUP_USERS):
            user = builder.add(slot, _I64(x))
            pointers.append(builder.gep(arrays[0].data, [builder.mul(user, quads)]))
            starts.append(builder.load(builder.gep(arrays[4].data, [user])))
        # Without 32 wide registers the sums of one user are all that can be held.
        step = GROUP_USERS if vnni else 1
        found = []
        for x in range(0, GROUP_USERS, step):
            some = slice(x, x + step)
            add_quads = _add_quads_vnni if vnni else _add_quads_generic
            sums = _emit_products(builder, pointers[some], quads, tile_pointer, starts[some], add_quads)
            if not vnni:
                builder.store(_I64(0), builder.gep(arrays[5].data, [_I64(x)]))
            found.append(_emit_hits(builder, sums, arrays[5].data, x))
        return builder.zext(reduce(builder.or_, found), _I64)

    return signature, codegen


@intrinsic
def lowest_bit(typingctx, mask):
    """Place of the lowest set bit of a non-zero int64."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: builder.cttz(arguments[0], ir.IntType(1)(1))


@intrinsic
def prefetch(typingctx, rows, index):
    """Start to fetch the cache line of rows[index] into the second cache."""
    signature = types.void(rows, index)

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [address, _I32(0), _I32(2), _I32(1)])
        return context.get_dummy_value()

    return signature, codegen


def _eight(builder, array, index, number):
    """Pointer to eight numbers of an array from an index on."""
    return builder.bitcast(builder.gep(array.data, [index]), ir.VectorType(number, 8).as_pointer())


@intrinsic
def multiply_eight(typingctx, user_D, row_start, rows, d, upper, terms_D):
    """terms[d : d + 8] = user * row at d plus user * row at `upper`; rows is flat, from row_start on."""
    signature = types.void(user_D, row_start, rows, d, upper, terms_D)

    def codegen(context, builder, signature, arguments):
        user, rows, terms = (context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 2, 5))
        products = []
        for place in (arguments[3], arguments[4]):
            factor = builder.load(_eight(builder, user, place, ir.DoubleType()), align=8)
            row = builder.load(_eight(builder, rows, builder.add(arguments[1], place), ir.FloatType()), align=4)
            products.append(builder.fmul(factor, builder.fpext(row, _DOUBLES)))
        builder.store(builder.fadd(*products), _eight(builder, terms, arguments[3], ir.DoubleType()), align=8)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_eight(typingctx, terms_D, d, upper):
    """terms[d : d + 8] += terms[upper : upper + 8]"""
    signature = types.void(terms_D, d, upper)

    def codegen(context, builder, signature, arguments):
        terms = context.make_array(signature.args[0])(context, builder, arguments[0])
        lower, upper = (_eight(builder, terms, arguments[n], ir.DoubleType()) for n in (1, 2))
        builder.store(builder.fadd(builder.load(lower, align=8), builder.load(upper, align=8)), lower, align=8)
        return context.get_dummy_value()

    return signature, codegen
