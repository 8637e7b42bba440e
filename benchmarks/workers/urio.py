"""urio: its backend's positional reads, which its files are made of, and its whole-file reads."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base

urio: Any = importlib.import_module("urio")


class Worker(Base):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        urio.set_backend("uring")
        self.backend: Any = urio.get_backend()

    @property
    def driver(self) -> str:
        return type(self.backend).__name__

    async def open(self, case: Case) -> None:
        """Do nothing: its ring opens with the loop's first operation."""

    async def close(self) -> None:
        await urio.aclose()

    async def reads(self, offsets: list[int]) -> bytes:
        read, descriptor, size, data = self.backend.read, self.descriptor, self.size, b""
        for offset in offsets:
            data = await read(descriptor, offset, size)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        read, descriptor, size, blocks = self.backend.read, self.descriptor, self.size, []
        for offsets in groups:
            blocks = await asyncio.gather(*[read(descriptor, offset, size) for offset in offsets])
        return blocks

    async def files(self, paths: list[str]) -> bytes:
        data = b""
        for path in paths:
            data = await urio.Path(path).read_bytes()
        return data

    async def writes(self, offsets: list[int], data: bytes) -> None:
        backend, descriptor = self.backend, self.descriptor
        for offset in offsets:
            await backend.write(descriptor, offset, data)
            await backend.fsync(descriptor, datasync=True)
