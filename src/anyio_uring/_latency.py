"""How long operations take: a histogram of fixed size, and the instrument that fills it.

Its buckets grow with what they hold, each power of two being cut into 32: a quantile is off by 1.6 % at
most, 1200 counters reach from a nanosecond to twenty minutes, and none of it grows with time.
"""

from __future__ import annotations

import math
from typing import Final

from ._instruments import Instrument, OperationTrace
from ._stats import LatencyQuantiles

_BITS: Final = 5
_PARTS: Final = 1 << _BITS
_NS_MAX: Final = (1 << 40) - 1


class Histogram:
    """Counts durations in nanoseconds; what is beyond 18 minutes counts as that long."""

    __slots__ = ("_counts", "_max_ns")

    def __init__(self) -> None:
        self._counts = [0] * (_bucket(_NS_MAX) + 1)
        self._max_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one."""
        self._counts[_bucket(min(duration_ns, _NS_MAX))] += 1
        self._max_ns = max(self._max_ns, duration_ns)

    def quantiles(self) -> LatencyQuantiles:
        """Return what was counted so far; zeros if that is nothing."""
        counts = self._counts.copy()  # another thread may be adding
        total, max_ns = sum(counts), self._max_ns
        p50, p90, p99 = (min(_quantile(counts, math.ceil(total * part)), max_ns) for part in (0.5, 0.9, 0.99))
        return LatencyQuantiles(
            count=total, p50_us=p50 / 1000, p90_us=p90 / 1000, p99_us=p99 / 1000, max_us=max_ns / 1000
        )


class LatencyInstrument(Instrument):
    """Fills a histogram with the time from each operation's submission to its completion."""

    __slots__ = ("histogram",)

    def __init__(self) -> None:
        self.histogram: Histogram = Histogram()

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:  # noqa: ARG002
        """Count how long it took."""
        self.histogram.add(completed_ns - operation.submitted_ns)


def _bucket(value: int) -> int:
    shift = max(value.bit_length() - _BITS - 1, 0)
    return (shift << _BITS) + (value >> shift)


def _middle(bucket: int) -> float:
    """Return the middle of the values that a bucket counts."""
    shift = max((bucket >> _BITS) - 1, 0)
    first = bucket - (shift << _BITS) << shift
    return first + ((1 << shift) - 1) / 2


def _quantile(counts: list[int], rank: int) -> float:
    """Return the value of the rank-th smallest, from 1; 0 if there is none."""
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return _middle(bucket)
    return 0.0
