"""F: the same tasks, each doing one checkpoint of anyio and one ``os.pread``: the least an awaited read can cost."""

from __future__ import annotations

import os

import anyio
import anyio.lowlevel

from . import Base, read_file


class Worker(Base):
    @property
    def driver(self) -> str:
        return "synchronous"

    async def reads(self, offsets: list[int]) -> bytes:
        checkpoint, descriptor, size, data = anyio.lowlevel.checkpoint, self.descriptor, self.size, b""
        for offset in offsets:
            await checkpoint()
            data = os.pread(descriptor, size, offset)
        return data

    async def files(self, paths: list[str]) -> bytes:
        data = b""
        for path in paths:
            await anyio.lowlevel.checkpoint()
            data = read_file(path)
        return data
