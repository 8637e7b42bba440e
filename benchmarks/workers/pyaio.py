"""pyaio's ``UringIO``."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base

uring: Any = importlib.import_module("pyaio.uring")


class Worker(Base):
    @property
    def driver(self) -> str:
        return "io_uring"

    async def open(self, case: Case) -> None:  # noqa: ARG002
        self.io: Any = uring.UringIO()

    async def close(self) -> None:
        await self.io.aclose()

    async def reads(self, offsets: list[int]) -> bytes:
        read, descriptor, size, data = self.io.read, self.descriptor, self.size, b""
        for offset in offsets:
            data = await read(descriptor, offset, size)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        read, descriptor, size, blocks = self.io.read, self.descriptor, self.size, []
        for offsets in groups:
            blocks = await asyncio.gather(*[read(descriptor, offset, size) for offset in offsets])
        return blocks

    async def writes(self, offsets: list[int], data: bytes) -> None:
        io, descriptor = self.io, self.descriptor
        for offset in offsets:
            await io.write_all(descriptor, data, offset)
            await io.fsync(descriptor, datasync=True)
