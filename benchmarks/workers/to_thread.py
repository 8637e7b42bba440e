"""``os.pread`` in a worker thread, through anyio or through asyncio."""

from __future__ import annotations

import asyncio
import importlib
import os
from typing import Any

from . import Base, read_file


class Worker(Base):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        if options["through"] == "anyio":
            self._run: Any = importlib.import_module("anyio").to_thread.run_sync
        else:
            self._run = asyncio.to_thread

    @property
    def driver(self) -> str:
        return "threads"

    async def reads(self, offsets: list[int]) -> bytes:
        run, descriptor, size, data = self._run, self.descriptor, self.size, b""
        for offset in offsets:
            data = await run(os.pread, descriptor, size, offset)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        run, descriptor, size, blocks = self._run, self.descriptor, self.size, []
        for offsets in groups:
            blocks = await asyncio.gather(*[run(os.pread, descriptor, size, offset) for offset in offsets])
        return blocks

    async def files(self, paths: list[str]) -> bytes:
        run, data = self._run, b""
        for path in paths:
            data = await run(read_file, path)
        return data

    async def writes(self, offsets: list[int], data: bytes) -> None:
        run, descriptor = self._run, self.descriptor
        for offset in offsets:
            await run(os.pwrite, descriptor, data, offset)
            await run(os.fdatasync, descriptor)
