"""Times of interactions as int64 milliseconds since 1970, from numbers in a unit, from dates, or from ISO 8601 text."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from bm3_dgl.config.schema import TimeUnit
from bm3_dgl.data.mistakes import Mistake

_PER_SECOND = {TimeUnit.s: 1, TimeUnit.ms: 1_000, TimeUnit.us: 1_000_000, TimeUnit.ns: 1_000_000_000}
_SECONDS_BELOW = 100_000_000_000  # as seconds the year 5138, as milliseconds 1973
_EARLIEST, _LATEST = -2_208_988_800_000, 7_258_118_400_000  # ms: the years 1900 and 2200


def milliseconds(times: pa.Array, unit: TimeUnit | None) -> pa.Array:
    """int64 milliseconds; null stays null. unit: of numbers; None: seconds, or milliseconds where they are that large.

    Raises Mistake where not every value is a time of the years 1900 to 2199.
    """
    made = _milliseconds(times, unit)
    outside = pc.or_(pc.less(made, _EARLIEST), pc.greater_equal(made, _LATEST))
    if pc.any(outside).as_py():
        value = times.filter(outside)[0].as_py()
        raise Mistake(f"the time {value} is not of the years 1900 to 2199; check its unit, see tables.time_unit")
    return made


def _milliseconds(times: pa.Array, unit: TimeUnit | None) -> pa.Array:
    if pa.types.is_dictionary(times.type):
        times = times.cast(times.type.value_type)
    kind = times.type
    try:
        if pa.types.is_null(kind):
            return times.cast(pa.int64())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            times = _parsed(times)
            kind = times.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return times.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        if pa.types.is_floating(kind):
            return _from_seconds_with_fraction(times, unit)
        if pa.types.is_integer(kind):
            return _from_integers(times.cast(pa.int64()), unit)
    except pa.ArrowInvalid as error:
        raise Mistake(f"not a time ({str(error).splitlines()[0]})") from None
    raise Mistake(f"a time of type {kind}; expected a number, a date or ISO 8601 text")


def _parsed(times: pa.Array) -> pa.Array:
    for kind in (pa.int64(), pa.float64(), pa.timestamp("ns")):  # ns: as many digits as there may be
        try:
            return times.cast(kind)
        except pa.ArrowInvalid:
            continue
    try:
        return times.cast(pa.timestamp("ns", "UTC")).cast(pa.timestamp("ns"))
    except pa.ArrowInvalid:
        raise Mistake("not a time; expected a number or ISO 8601, such as 2014-07-23 18:30:00") from None


def _from_integers(times: pa.Array, unit: TimeUnit | None) -> pa.Array:
    if unit is None:
        return pc.if_else(pc.less(pc.abs(times), _SECONDS_BELOW), pc.multiply(times, 1000), times)
    per_second = _PER_SECOND[unit]
    if per_second > 1000:
        return pc.divide(times, per_second // 1000)
    return pc.multiply_checked(times, 1000 // per_second)


def _from_seconds_with_fraction(times: pa.Array, unit: TimeUnit | None) -> pa.Array:
    times = pc.if_else(pc.is_nan(times), pa.scalar(None, times.type), times)
    if pc.any(pc.is_inf(times)).as_py():
        raise Mistake("a time that is not a finite number")
    if unit is None:
        scaled = pc.if_else(pc.less(pc.abs(times), _SECONDS_BELOW), pc.multiply(times, 1000.0), times)
    else:
        scaled = pc.multiply(times, 1000.0 / _PER_SECOND[unit])
    return pc.floor(scaled).cast(pa.int64())
