"""turbofile: one file for all tasks, its positional reads, and its whole-file reads."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base

turbofile: Any = importlib.import_module("turbofile")


class Worker(Base):
    @property
    def driver(self) -> str:
        name = importlib.import_module("turbofile._turbofile").backend_name
        return str(name() if callable(name) else name)

    async def open(self, case: Case) -> None:  # noqa: ARG002
        self._file: Any = await turbofile.open(self.path, "rb").__aenter__()

    async def close(self) -> None:
        await self._file.close()

    async def reads(self, offsets: list[int]) -> bytes:
        read, size, data = self._file.read_at, self.size, b""
        for offset in offsets:
            data = await read(offset, size)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        read, size, blocks = self._file.read_at, self.size, []
        for offsets in groups:
            blocks = await asyncio.gather(*[read(offset, size) for offset in offsets])
        return blocks

    async def files(self, paths: list[str]) -> bytes:
        data = b""
        for path in paths:
            data = await turbofile.read_bytes(path)
        return data
