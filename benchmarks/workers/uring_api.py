"""uring-api: a ring without an event loop, so only batches, for which the caller waits and nobody else runs."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base

uring_api: Any = importlib.import_module("uring_api")


class Worker(Base):
    @property
    def driver(self) -> str:
        return "io_uring"

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._ring: Any = uring_api.Ring(256)

    async def open(self, case: Case) -> None:
        """Do nothing: the ring stays open, for it belongs to no loop."""

    def reads(self, offsets: list[int]) -> bytearray:
        data = bytearray(self.size)
        for offset in offsets:
            self._ring.prepare_read(self.descriptor, data, offset)
            self._wait(1)
        return data

    def batches_into(self, groups: list[list[int]]) -> Any:
        prepare, descriptor, buffers = self._ring.prepare_read, self.descriptor, self.buffers
        for offsets in groups:
            for buffer, offset in zip(buffers, offsets):
                prepare(descriptor, buffer, offset)
            self._wait(len(offsets))
        return buffers

    def _wait(self, count: int) -> None:
        while count:
            done = self._ring.wait()
            for completion in done:
                if completion.res < 0:
                    raise OSError(-completion.res, "a read failed")
            count -= len(done)
