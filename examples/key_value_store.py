"""A key-value store that kill -9 cannot hurt: an append-only log, and an index of it in memory.

Commands come on standard input, one in a line: ``put KEY VALUE``, ``delete KEY``, ``get KEY``, ``keys``.
Each is answered with one line: when ``ok`` is printed, the change is on disk.
"""

import argparse
import os
import struct
import sys
from functools import partial
from typing import Any

import anyio

from anyio_uring import AppendLog, ColdTierReader, open_append_log, open_uring, read_append_log

FRAME = 16  # bytes that the log puts in front of each record
HEAD = struct.Struct("<I?")  # length of the key, whether it was deleted


class Store:
    """Values by key; the log has every change, the index where the last one of each key lies."""

    def __init__(self, log: AppendLog, fd: int) -> None:
        self._log = log
        self._fd = fd
        self._index: dict[bytes, tuple[int, int]] = {}  # {key: (offset of the value, its length)}

    async def recover(self) -> None:
        """Read the log, which has all that was acknowledged."""
        async for offset, record in read_append_log(self._log.path):
            self._remember(offset, record)

    def _remember(self, offset: int, record: bytes) -> None:
        key_length, is_deleted = HEAD.unpack_from(record)
        value_at = HEAD.size + key_length
        key = record[HEAD.size : value_at]
        if is_deleted:
            self._index.pop(key, None)
        else:
            self._index[key] = offset + FRAME + value_at, len(record) - value_at

    async def put(self, key: bytes, value: bytes) -> None:
        """Set a value; it is on disk on return."""
        record = HEAD.pack(len(key), False) + key + value
        self._remember(await self._log.append(record), record)

    async def delete(self, key: bytes) -> bool:
        """Remove a key; return whether it was there."""
        if key not in self._index:
            return False
        record = HEAD.pack(len(key), True) + key
        self._remember(await self._log.append(record), record)
        return True

    async def get(self, key: bytes) -> bytes | None:
        """Return a value, read from the log."""
        if key not in self._index:
            return None
        return await ColdTierReader(self._fd, length=self._log.end).read(*self._index[key])

    def keys(self) -> list[bytes]:
        """Return all keys, in order."""
        return sorted(self._index)


async def answer(store: Store, line: bytes) -> bytes:
    """Carry out a command."""
    match line.split(b" ", 2):
        case [b"put", key, value]:
            await store.put(key, value)
            return b"ok"
        case [b"delete", key]:
            return b"ok" if await store.delete(key) else b"no such key"
        case [b"get", key]:
            found = await store.get(key)
            return b"no such key" if found is None else b"= " + found
        case [b"keys"]:
            return b" ".join([b"=", *store.keys()])
    return b"put KEY VALUE, delete KEY, get KEY or keys?"


async def main(path: str, *, driver: Any) -> None:
    """Answer commands until standard input ends."""
    async with open_uring(driver=driver) as io, open_append_log(path) as log:
        if log.recovery.bytes_cut:
            print(f"{log.recovery.bytes_cut} bytes of a change that was not acknowledged were cut", file=sys.stderr)
        fd = await io.open(path, os.O_RDONLY)
        try:
            store = Store(log, fd)
            await store.recover()
            while line := await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True):
                sys.stdout.buffer.write(await answer(store, line.rstrip(b"\n")) + b"\n")
                sys.stdout.flush()
        finally:
            await io.close(fd)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="the store's log; created if it does not exist")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--driver", choices=["auto", "uring", "threads"], default="auto")
    options = parser.parse_args()
    anyio.run(partial(main, options.path, driver=options.driver), backend=options.backend)
