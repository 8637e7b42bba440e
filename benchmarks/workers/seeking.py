"""File objects whose reads are a seek and a read: each task has one of its own."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.cases import Case

from . import Base


class Worker(Base):
    """
    ``anyio.open_file``, ``trio.open_file``, aiofiles, asyncfiles, urio.

    They agree on ``read``; ``seek`` is a plain function in one of them.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        module = importlib.import_module(options["imported"])
        self._open: Any = getattr(module, options.get("function", "open"))
        self._files: list[Any] = []

    @property
    def driver(self) -> str:
        return str(self.options.get("driver", "threads"))

    async def _opened(self, path: str, mode: str) -> Any:
        opened = self._open(path, mode, **self.options.get("arguments", {}))
        return await (opened if hasattr(opened, "__await__") else opened.__aenter__())

    async def open(self, case: Case) -> None:
        mode = "r+b" if case.kind == "writes" else "rb"
        tasks = 0 if case.kind == "files" else case.tasks
        self._files = [await self._opened(self.path, mode) for _ in range(tasks)]
        self._free = list(self._files)

    async def close(self) -> None:
        for file in self._files:
            await self._close(file)
        self._files = []

    async def _close(self, file: Any) -> None:
        if hasattr(file, "aclose"):
            await file.aclose()
        elif hasattr(file, "close"):
            await file.close()
        else:
            await file.__aexit__(None, None, None)

    async def reads(self, offsets: list[int]) -> bytes:
        file, size, data = self._free.pop(), self.size, b""
        if self.options.get("plain_seek"):
            for offset in offsets:
                file.seek(offset)
                data = await file.read(size)
        else:
            for offset in offsets:
                await file.seek(offset)
                data = await file.read(size)
        self._free.append(file)
        return data

    async def files(self, paths: list[str]) -> bytes:
        data = b""
        for path in paths:
            file = await self._opened(path, "rb")
            try:
                data = await file.read()
            finally:
                await self._close(file)
        return data
