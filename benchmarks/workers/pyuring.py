"""
pyuring: a ring without awaitable reads at an offset, so only batches, for which the caller waits.

Written from its documentation: its source did not build with the liburing of the machine at hand.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import Base

pyuring: Any = importlib.import_module("pyuring")


class Worker(Base):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._ring: Any = pyuring.UringCtx(entries=256)

    @property
    def driver(self) -> str:
        return "io_uring"

    def reads(self, offsets: list[int]) -> bytes:
        return bytes(self.batches([[offset] for offset in offsets])[-1])

    def batches(self, groups: list[list[int]]) -> list[bytearray]:
        ring, blocks = self._ring, [bytearray(self.size) for _ in groups[0]]
        for offsets in groups:
            blocks = [bytearray(self.size) for _ in offsets]
            for i, offset in enumerate(offsets):
                ring.read_async(self.descriptor, blocks[i], offset, i)
            ring.submit()
            for _ in offsets:
                ring.wait_completion()
        return blocks
