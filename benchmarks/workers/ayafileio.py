"""ayafileio: one file for all tasks, its positional reads and its batches of them."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base

ayafileio: Any = importlib.import_module("ayafileio")


class Worker(Base):
    @property
    def driver(self) -> str:
        return str(ayafileio.get_backend_info()["backend"])

    async def open(self, case: Case) -> None:  # noqa: ARG002
        self._file: Any = ayafileio.open(self.path, "rb")

    async def close(self) -> None:
        await self._file.close()

    async def reads(self, offsets: list[int]) -> bytes:
        read, size, data = self._file.read_at, self.size, b""
        for offset in offsets:
            data = await read(offset, size)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        read, size, blocks = self._file.read_many, self.size, []
        for offsets in groups:
            blocks = await read([(offset, size) for offset in offsets])
        return blocks

    async def files(self, paths: list[str]) -> bytes:
        data = b""
        for path in paths:
            data = await ayafileio.read_bytes(path)
        return data
