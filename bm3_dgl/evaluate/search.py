"""The k best items of a block of users, compiled: 8-bit scores nominate, float64 scores decide.

One pass over the chunks of the catalogue. In each: set every user's limit from the k-th best exact score so far, let
tiles of integer products nominate what reaches it, score the nominated exactly and keep the k best in a heap.

Shape suffixes: B users of the block, I items, D embedding width, K top-k, C chunks; S slots, which are the users that
are not finished, filled up to whole groups; Q quads of dimensions, M items nominated in a chunk, F = 6 facts of a user.
"""

from __future__ import annotations

# mypy: disallow-untyped-defs=False, check-untyped-defs=False
import numpy as np
from numba import njit

from bm3_dgl.evaluate.tiles import GROUP_USERS, TILE_ITEMS, add_eight, lowest_bit, multiply_eight, nominate, prefetch

CHUNK_TILES = 16  # most tiles of a chunk: 64 KiB of 8-bit items at D = 64, which the second cache holds
OFFSET = 128  # added to 8-bit items: the instruction wants one unsigned factor
_LARGEST_LIMIT = float(1 << 29)
_NEVER = 1 << 30  # no sum reaches it: 255 * 127 * 4096 < 2^27, and limits stay below 2^29 + 2^26
_MARGIN = 2.0**-36  # of |u| (max |i| + |c|), for all float64 roundings; `_set_limits` counts them
_PREFETCHED = 256  # leading float32 of a nominated row that are fetched ahead; a longer row streams by itself
_SCALE, _ERROR, _SIZE, _CENTER, _SHIFT, _NORM = range(6)  # the facts of a user, see `_quantise`


@njit(cache=True, nogil=True)
def rank_users(users_BD, norm_B, masked_indptr, masked_items, catalog, items_BK, scores_BK):
    """Write the k best items of each user, best first, into items_BK (int64) and scores_BK (float64).

    users_BD: float32 (B, D), C-contiguous, and norm_B: float64 (B,), Euclidean norms. masked_indptr: int64 (B + 1,),
    places in masked_items, int64. catalog: `catalog.Catalog`. Places beyond a user's candidates stay as they are.
    """
    num_users, dim = users_BD.shape
    capacity = -(-num_users // GROUP_USERS) * GROUP_USERS
    quads_SQ = np.zeros((capacity, catalog.tiles_TQ.shape[1]), np.int32)
    facts_SF = np.empty((capacity, 6))
    for user in range(num_users):
        _quantise(users_BD[user], norm_B[user], catalog.center_D, quads_SQ[user].view(np.int8), facts_SF[user])
    user_S, starts_S, count_S = np.arange(capacity), np.empty(capacity, np.int32), np.zeros(capacity, np.int64)
    # 16 more than can be found: rows that start a power of two apart would share a few lines of the cache.
    found_SM = np.empty((capacity, TILE_ITEMS * CHUNK_TILES + 16), np.int32)
    scores_M, user_D, terms_D = np.empty(TILE_ITEMS * CHUNK_TILES), np.empty(dim), np.empty(dim)
    hidden_I = np.zeros(len(catalog.item_I), np.uint8)
    size_B, slots = np.zeros(num_users, np.int64), num_users
    for chunk in range(len(catalog.scale_C)):
        slots = _set_limits(catalog, chunk, slots, quads_SQ, facts_SF, user_S, size_B, scores_BK, starts_S)
        if slots == 0:
            break
        _nominate_chunk(catalog, chunk, slots, quads_SQ, starts_S, found_SM, count_S)
        for slot in range(slots):
            if count_S[slot]:
                user = user_S[slot]
                user_D[:] = users_BD[user]
                _score(user_D, catalog.rows, found_SM[slot, : count_S[slot]], scores_M, terms_D)
                masked = masked_items[masked_indptr[user] : masked_indptr[user + 1]]
                found_M = found_SM[slot, : count_S[slot]]
                size_B[user] = _keep_best(
                    found_M, scores_M, catalog.item_I, masked, hidden_I, scores_BK[user], items_BK[user], size_B[user]
                )
                count_S[slot] = 0
    for user in range(num_users):
        _sort(scores_BK[user], items_BK[user], size_B[user])


@njit
def _quantise(user_D, norm, center_D, bytes_D, facts_F):
    """Round a user's row to 8 bits, u^ = scale * bytes, and note the facts that `_set_limits` needs.

    Facts: scale, |u - u^|, |u^|, u . c, OFFSET times the sum of the bytes, |u|.
    """
    largest = 0.0
    for d in range(len(user_D)):
        largest = max(largest, abs(np.float64(user_D[d])))
    scale = largest / 127.0 if largest > 0.0 else 1.0
    error, size, center, total = 0.0, 0.0, 0.0, 0.0
    for d in range(len(user_D)):
        value = np.float64(user_D[d])
        level = np.rint(value / scale)
        bytes_D[d] = np.int8(level)
        total += level
        error += (value - scale * level) ** 2
        size += (scale * level) ** 2
        center += value * center_D[d]
    facts_F[_SCALE], facts_F[_ERROR], facts_F[_SIZE] = scale, np.sqrt(error), np.sqrt(size)
    facts_F[_CENTER], facts_F[_SHIFT], facts_F[_NORM] = center, OFFSET * total, norm


@njit
def _set_limits(catalog, chunk, slots, quads_SQ, facts_SF, user_S, size_B, scores_BK, starts_S):
    """Set starts_S to minus the integer score that an item of the chunk must reach; returns how many slots are left.

    Let t be the user's k-th best exact score so far, c the centre of the items, x = i - c, and u^ = s p, x^ = r q the
    rounded rows with integers p and q. Then

        u . i = u . c + u^ . x^ + (u - u^) . x + u^ . (x - x^) <= u . c + s r (p . q) + |u - u^| |x| + |u^| |x - x^|

    so an item with s r (p . q) < t - u . c - |u - u^| max |x| - |u^| max |x - x^| cannot get in, the maxima being the
    chunk's. A user is finished, and leaves its slot, when t - u . c > |u| |x| for all items from this chunk on.

    Roundings: each of t, the item's exact score, u . c and the two products of norms is off by less than (D + 8) 2^-53 M,
    M = |u| (max |i| + |c|), D <= 4096, together by less than 2^-38 M. A limit is rounded down to an integer.
    """
    kept = 0
    for slot in range(slots):
        user, start = user_S[slot], _NEVER
        if size_B[user] == scores_BK.shape[1]:
            facts = facts_SF[slot]
            needed = scores_BK[user, 0] - facts[_CENTER] - _MARGIN * facts[_NORM] * catalog.reach
            if needed > facts[_NORM] * catalog.rest_C[chunk]:
                continue
            needed -= facts[_ERROR] * catalog.norm_C[chunk] + facts[_SIZE] * catalog.error_C[chunk]
            limit = min(max(needed / (facts[_SCALE] * catalog.scale_C[chunk]), -_LARGEST_LIMIT), _LARGEST_LIMIT)
            start = -np.int64(np.floor(limit) + facts[_SHIFT])
        if kept != slot:
            quads_SQ[kept] = quads_SQ[slot]
            facts_SF[kept] = facts_SF[slot]
            user_S[kept] = user
        starts_S[kept] = start
        kept += 1
    starts_S[kept : -(-kept // GROUP_USERS) * GROUP_USERS] = -_NEVER
    return kept


@njit
def _nominate_chunk(catalog, chunk, slots, quads_SQ, starts_S, found_SM, count_S):
    """Append the items, as rows of the catalogue, that reach their user's limit to found_SM, count_S of each slot."""
    hits = np.zeros(GROUP_USERS, np.int64)
    num_items, dim, rows = len(catalog.item_I), len(catalog.center_D), catalog.rows
    tiles_TQ = catalog.tiles_TQ
    for tile in range(catalog.first_C[chunk], catalog.first_C[chunk + 1]):
        for first in range(0, slots, GROUP_USERS):
            if not nominate(quads_SQ, first, tiles_TQ, tile, starts_S, hits):
                continue
            for slot in range(first, first + GROUP_USERS):
                mask = hits[slot - first]
                while mask:
                    row = tile * TILE_ITEMS + lowest_bit(mask)
                    mask &= mask - 1
                    if row < num_items:
                        found_SM[slot, count_S[slot]] = row
                        count_S[slot] += 1
                        for d in range(0, min(dim, _PREFETCHED), 16):
                            prefetch(rows, row * dim + d)


@njit
def _score(user_D, rows, found_M, scores_M, terms_D):
    """scores_M = float64 dot products of user_D and the found rows, float32 values all; rows is flat, terms_D scratch.

    The upper half of the terms is added to the lower half until one is left: an order that D alone decides (and products
    of float32 are exact in float64, so a fused multiply-add would change nothing).
    """
    dim = len(user_D)
    for m in range(len(found_M)):
        start, half = found_M[m] * dim, dim // 2
        width = dim - half
        for d in range(0, half - 7, 8):
            multiply_eight(user_D, start, rows, d, d + width, terms_D)
        for d in range(half - half % 8, half):
            terms_D[d] = user_D[d] * rows[start + d] + user_D[d + width] * rows[start + d + width]
        if width > half:
            terms_D[half] = user_D[half] * rows[start + half]
        while width > 1 and width != 8:
            half = width // 2
            width -= half
            for d in range(0, half - 7, 8):
                add_eight(terms_D, d, d + width)
            for d in range(half - half % 8, half):
                terms_D[d] += terms_D[d + width]
        if width == 8:  # what the loop would do, by hand: most widths end here, and short loops are dear
            even = (terms_D[0] + terms_D[4]) + (terms_D[2] + terms_D[6])
            terms_D[0] = even + ((terms_D[1] + terms_D[5]) + (terms_D[3] + terms_D[7]))
        scores_M[m] = terms_D[0]


@njit
def _keep_best(found_M, scores_M, item_I, masked, hidden_I, scores_K, items_K, size):
    """Put the found items that are not masked into the heap of the k best; returns its new size.

    hidden_I: uint8, all zero before and after. The root of the heap is its worst entry; it is ordered only once it is full.
    """
    capacity = len(scores_K)
    for item in masked:
        hidden_I[item] = 1
    for m in range(len(found_M)):
        score = scores_M[m]
        if size == capacity and score < scores_K[0]:
            continue
        item = item_I[found_M[m]]
        if hidden_I[item]:
            continue
        if size < capacity:
            scores_K[size], items_K[size] = score, item
            size += 1
            if size == capacity:
                for place in range(capacity // 2 - 1, -1, -1):
                    _sift_down(scores_K, items_K, place, capacity)
        elif _worse(scores_K[0], items_K[0], score, item):
            scores_K[0], items_K[0] = score, item
            _sift_down(scores_K, items_K, 0, capacity)
    for item in masked:
        hidden_I[item] = 0
    return size


@njit(inline="always")
def _worse(score, item, other_score, other_item):
    return score < other_score or (score == other_score and item > other_item)


@njit
def _sift_down(scores, items, place, size):
    """Let the entry at `place` sink below all entries that are worse."""
    score, item = scores[place], items[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores[child + 1], items[child + 1], scores[child], items[child]):
            child += 1
        if not _worse(scores[child], items[child], score, item):
            break
        scores[place], items[place] = scores[child], items[child]
        place = child
    scores[place], items[place] = score, item


@njit
def _sort(scores, items, size):
    """Heap sort, best first."""
    if size < len(scores):  # it never became a heap
        for place in range(size // 2 - 1, -1, -1):
            _sift_down(scores, items, place, size)
    for last in range(size - 1, 0, -1):
        scores[0], scores[last] = scores[last], scores[0]
        items[0], items[last] = items[last], items[0]
        _sift_down(scores, items, 0, last)
