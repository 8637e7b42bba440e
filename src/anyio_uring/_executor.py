"""The two Protocols that a manager works on: what carries requests out, and what the driver behind it offers.

:mod:`anyio_uring._completion_task` over a driver is one pair that fulfils them,
:mod:`anyio_uring._ownerless` the other.  Nothing here knows how either works.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ._options import DriverName
from ._requests import Memories, Requests
from ._stats import IoStatistics, UringFeatures
from ._transfers import Transfers


class Executor(Protocol):
    """What carries requests out; contract C1 to C7 of :mod:`anyio_uring._completion_task` is its to keep."""

    @property
    def depth(self) -> int:
        """The most members that a chain can have."""
        ...

    @property
    def thread(self) -> int:
        """The identity of the one thread that may ask (C12)."""
        ...

    @property
    def is_usable(self) -> bool:
        """Whether it is neither closing nor broken."""
        ...

    @property
    def has_crashed(self) -> bool:
        """Whether operations may be in flight whose completions nobody will see (C11)."""
        ...

    @property
    def transfers(self) -> Transfers:
        """The counters of what was moved."""
        ...

    def check(self) -> None:
        """Raise if it cannot be used here and now (C10 to C12)."""
        ...

    def statistics(self) -> IoStatistics:
        """Return a snapshot of the counters."""
        ...

    async def perform(
        self, requests: Requests, *, has_passed: bool = False, is_chain: bool = False, is_certain: bool = False
    ) -> list[int]:
        """
        Carry out requests as one operation and return their results, in order.

        :param has_passed: that the task has passed a cancellation point in this very step (C1)
        :param is_chain: that each begins when the one before has been carried out whole
        :return: for each request its result, or ``-errno``; never a bare cancellation (C6)
        """
        ...


class Facilities(Protocol):
    """What a driver offers besides carrying out rows; described at :class:`anyio_uring._driver.Driver`."""

    name: DriverName

    @property
    def features(self) -> UringFeatures: ...

    @property
    def memory_type(self) -> type[bytes | bytearray]: ...

    @property
    def read_now(self) -> Callable[[int, Any, int, int], int]: ...

    fixed_memory: dict[int, tuple[int, memoryview]]
    fixed_files: dict[int, tuple[int, object]]

    def is_forked(self) -> bool: ...

    def allocate_batch(self, lengths: Sequence[int]) -> Memories: ...

    def expose(self, memory: Any) -> Any: ...

    def register_memory(self, memory: mmap.mmap) -> int: ...

    def unregister_memory(self, entry: int) -> None: ...

    def make_file_table(self, slots: int) -> bool: ...

    def update_file(self, slot: int, fd: int) -> bool: ...
