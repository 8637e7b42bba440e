"""aiofile, on the context of caio that it takes by itself."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base
from .caio import driver_of

aiofile: Any = importlib.import_module("aiofile")


class Worker(Base):
    _driver = ""

    @property
    def driver(self) -> str:
        return self._driver

    async def open(self, case: Case) -> None:
        # By itself it would keep a context for each loop, also of loops that have ended.
        self._context: Any = importlib.import_module("caio").AsyncioContext()
        self._driver = driver_of(self._context)
        mode = "rb+" if case.kind == "writes" else "rb"
        self._file = aiofile.AIOFile(self.path, mode, context=self._context)
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()
        self._context.close()
        self._context = None

    async def reads(self, offsets: list[int]) -> bytes:
        read, size, data = self._file.read_bytes, self.size, b""
        for offset in offsets:
            data = await read(size, offset)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        read, size, blocks = self._file.read_bytes, self.size, []
        for offsets in groups:
            blocks = await asyncio.gather(*[read(size, offset) for offset in offsets])
        return blocks

    async def files(self, paths: list[str]) -> bytes:
        data = b""
        for path in paths:
            async with aiofile.AIOFile(path, "rb", context=self._context) as file:
                data = await file.read_bytes()
        return data

    async def writes(self, offsets: list[int], data: bytes) -> None:
        file = self._file
        for offset in offsets:
            await file.write_bytes(data, offset)
            await file.fdsync()
