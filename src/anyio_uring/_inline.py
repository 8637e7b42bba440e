"""When to try a read at once, on the event loop's thread, with ``RWF_NOWAIT``.

A read that the page cache can answer costs less there than any ring or thread: no operation, no
waiter, no second pass of the loop.  One that it cannot is a wasted system call of about 1 us, so
descriptors that keep missing are tried ever more seldom.  Knows numbers; it reads nothing itself.
"""

from __future__ import annotations

import time
from typing import Final

# A copy of 64 KiB takes about 10 us, which is as long as an event loop should be held by one read.
INLINE_BYTES_MAX: Final = 64 << 10
# On a cold file one read in 65 is tried: 1.5 % of 1 us.
_PAUSE_MAX: Final = 64
_DESCRIPTORS_MAX: Final = 4096

# As many reads as an event loop's pass may well take, and no longer than it should be held.
BUDGET_READS: Final = 64
BUDGET_US: Final = 500


class InlineReads:
    """The hit rate, by descriptor: after each miss in a row the pause doubles, and a hit ends it."""

    __slots__ = ("bytes", "hits", "misses", "pauses", "shorts")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.bytes = 0  # that hits gave
        self.shorts = 0  # hits that gave less than was asked
        # {fd: [reads to go until the next attempt, the pause behind it]}, of those that missed last
        self.pauses: dict[int, list[int]] = {}

    def is_likely(self, fd: int) -> bool:
        """Whether to try this one."""
        pause = self.pauses.get(fd)
        if pause is None:
            return True
        pause[0] -= 1
        if pause[0] >= 0:
            return False
        pause[0] = pause[1]  # one attempt, however many tasks ask before its outcome is known
        return True

    def note_hit(self, fd: int, count: int) -> None:
        """Take note of an attempt that gave so many bytes, as many as there were or were asked for."""
        self.hits += 1
        self.bytes += count
        if self.pauses:
            self.pauses.pop(fd, None)

    def note_miss(self, fd: int) -> None:
        """Take note of an attempt that would have had to wait, or cannot be made of this descriptor."""
        self.misses += 1
        if len(self.pauses) >= _DESCRIPTORS_MAX:
            self.pauses.clear()
        pause = self.pauses.setdefault(fd, [0, 0])
        pause[1] = min(max(2 * pause[1], 1), _PAUSE_MAX)
        pause[0] = pause[1]


class Budget:
    """How long reads may go on without letting other tasks run, all tasks of a manager together."""

    __slots__ = ("_end_s", "_reads")

    def __init__(self) -> None:
        self._reads = 0
        self._end_s = 0.0

    def spend(self) -> bool:
        """Whether one more read may go without; if not, the caller lets others run and begins a new budget."""
        now = time.perf_counter()
        if self._reads > 0 and now < self._end_s:
            self._reads -= 1
            return True
        self._reads = BUDGET_READS
        self._end_s = now + BUDGET_US * 1e-6
        return False
