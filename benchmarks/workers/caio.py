"""caio, with the context that the option names: io_uring with and without SQPOLL, linux_aio."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base

caio: Any = importlib.import_module("caio")


def driver_of(context: Any) -> str:
    """Return the name of a context's module, and whether the kernel gave it a polling thread."""
    name = type(context).__module__.split(".")[-1].removesuffix("_asyncio")
    return f"{name}, SQPOLL" if getattr(context.context, "sqpoll", False) else name


class Worker(Base):
    context: Any = None
    _driver = ""

    @property
    def driver(self) -> str:
        return self._driver

    async def open(self, case: Case) -> None:  # noqa: ARG002
        module = getattr(caio, f"{self.options['context']}_asyncio")
        self.context = module.AsyncioContext(**self.options.get("arguments", {}))
        self._driver = driver_of(self.context)

    async def close(self) -> None:
        self.context.close()
        # The ring goes with its last reference.
        self.context = None

    async def reads(self, offsets: list[int]) -> bytes:
        read, descriptor, size, data = self.context.read, self.descriptor, self.size, b""
        for offset in offsets:
            data = await read(size, descriptor, offset)
        return data

    async def batches(self, groups: list[list[int]]) -> list[bytes]:
        read, descriptor, size, blocks = self.context.read, self.descriptor, self.size, []
        for offsets in groups:
            blocks = await asyncio.gather(*[read(size, descriptor, offset) for offset in offsets])
        return blocks

    async def writes(self, offsets: list[int], data: bytes) -> None:
        context, descriptor = self.context, self.descriptor
        for offset in offsets:
            await context.write(data, descriptor, offset)
            await context.fdsync(descriptor)
