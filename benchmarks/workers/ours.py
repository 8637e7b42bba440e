"""The library itself, with each of its drivers and options."""

from __future__ import annotations

import os
from typing import Any

from anyio_uring import AsyncIoManager, open_uring
from benchmarks.cases import Case

from . import Base


class Worker(Base):
    io: AsyncIoManager

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._open_options = {key: value for key, value in options.items() if key != "anyio"}
        self._driver = ""

    @property
    def driver(self) -> str:
        return self._driver

    async def open(self, case: Case) -> None:  # noqa: ARG002
        self._opening = open_uring(**self._open_options)
        self.io = await self._opening.__aenter__()
        self._driver = self.io.driver

    async def close(self) -> None:
        await self._opening.__aexit__(None, None, None)

    async def reads(self, offsets: list[int]) -> bytes:
        io, descriptor, size, data = self.io, self.descriptor, self.size, b""
        for offset in offsets:
            data = await io.read(descriptor, size, offset)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        io, descriptor, size, blocks = self.io, self.descriptor, self.size, []
        for offsets in groups:
            blocks = await io.read_batch([(descriptor, size, offset) for offset in offsets])
        return blocks

    async def batches_into(self, groups: list[list[int]]) -> Any:
        io, descriptor, buffers = self.io, self.descriptor, self.buffers
        for offsets in groups:
            await io.readinto_batch([(descriptor, buffer, offset) for buffer, offset in zip(buffers, offsets)])
        return buffers

    async def reads_into(self, offsets: list[int], buffer: memoryview) -> memoryview:
        io, descriptor = self.io, self.descriptor
        for offset in offsets:
            await io.readinto(descriptor, buffer, offset)
        return buffer

    async def files(self, paths: list[str]) -> bytes:
        io, data = self.io, b""
        for path in paths:
            # The library opens no files yet.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = await io.read(descriptor, 65536, 0)
            finally:
                os.close(descriptor)
        return data

    async def writes(self, offsets: list[int], data: bytes) -> None:
        io, descriptor = self.io, self.descriptor
        for offset in offsets:
            await io.write_and_sync(descriptor, data, offset)
