"""P: a plain loop over ``os.pread``, ``os.preadv`` or ``os.pwrite``."""

from __future__ import annotations

import os
from typing import Any

from . import Base, read_file


class Worker(Base):
    def reads(self, offsets: list[int]) -> bytes:
        descriptor, size, data = self.descriptor, self.size, b""
        for offset in offsets:
            data = os.pread(descriptor, size, offset)
        return data

    def batches(self, groups: list[list[int]]) -> list[bytes]:
        descriptor, size, blocks = self.descriptor, self.size, []
        for offsets in groups:
            blocks = [os.pread(descriptor, size, offset) for offset in offsets]
        return blocks

    def batches_into(self, groups: list[list[int]]) -> Any:
        descriptor, buffers = self.descriptor, [[buffer] for buffer in self.buffers]
        for offsets in groups:
            for buffer, offset in zip(buffers, offsets):
                os.preadv(descriptor, buffer, offset)
        return self.buffers

    def reads_into(self, offsets: list[int], buffer: memoryview) -> memoryview:
        descriptor, buffers = self.descriptor, [buffer]
        for offset in offsets:
            os.preadv(descriptor, buffers, offset)
        return buffer

    def files(self, paths: list[str]) -> bytes:
        data = b""
        for path in paths:
            data = read_file(path)
        return data

    def writes(self, offsets: list[int], data: bytes) -> None:
        descriptor = self.descriptor
        for offset in offsets:
            os.pwrite(descriptor, data, offset)
            os.fdatasync(descriptor)
