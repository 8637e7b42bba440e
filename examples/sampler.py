"""Read random records of a large binary file, as the training of a model does, into registered buffers.

The file is an array of records of one size.  Each batch is read with one await, past the page cache where the
filesystem can (``O_DIRECT``), and its mean byte is printed, so that something is done with it.
"""

import argparse
import errno
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio

from anyio_uring import AsyncIoManager, FixedBuffer, open_uring


async def open_for_reading(io: AsyncIoManager, path: str, record_size: int) -> tuple[int, bool]:
    """Open a file with O_DIRECT, if it has that and takes records of this size; say whether it does."""
    try:
        fd = await io.open(path, os.O_RDONLY, direct=True)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return await io.open(path, os.O_RDONLY), False
    if record_size % io.direct_alignment(fd).offset == 0:
        return fd, True
    await io.close(fd)
    return await io.open(path, os.O_RDONLY), False


async def batches(
    io: AsyncIoManager, fd: int, buffers: list[FixedBuffer], record_size: int, seed: int
) -> AsyncIterator[list[memoryview]]:
    """Yield batches of random records without end; a batch is valid until the next one."""
    count = (await io.stat(fd)).st_size // record_size
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    while True:
        offsets = [chance.randrange(count) * record_size for _ in buffers]
        # A pool's buffers are memory that the kernel knows: it need not look it up for each read.
        lengths = await io.readinto_batch([(fd, buffer, offset) for buffer, offset in zip(buffers, offsets)])
        assert all(length == record_size for length in lengths), "the file became shorter"
        yield [buffer.view for buffer in buffers]


async def main(path: str, *, record_size: int, batch: int, number: int, seed: int, driver: Any) -> None:
    """Read some batches and print a line for each."""
    async with open_uring(driver=driver) as io, AsyncExitStack() as stack:
        fd, is_direct = await open_for_reading(io, path, record_size)
        stack.push_async_callback(io.close, fd)
        if (await io.stat(fd)).st_size < record_size:
            sys.exit(f"{path} has no record of {record_size} bytes")
        print(f"driver {io.driver}, {'O_DIRECT' if is_direct else 'through the page cache'}", file=sys.stderr)
        pool = await stack.enter_async_context(io.buffer_pool(count=batch, size=record_size))
        buffers = [stack.enter_context(await pool.acquire()) for _ in range(batch)]
        done = 0
        async for records in batches(io, fd, buffers, record_size, seed):
            print(f"{sum(sum(record) for record in records) / (batch * record_size):.4f}")
            done += 1
            if done == number:
                break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--record-size", type=int, default=4096, help="bytes of a record (default: 4096)")
    parser.add_argument("--batch", type=int, default=32, help="records in a batch (default: 32)")
    parser.add_argument("--batches", type=int, default=10, help="how many to read (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed reads the same records (default: 0)")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--driver", choices=["auto", "uring", "threads"], default="auto")
    options = parser.parse_args()
    if min(options.record_size, options.batch, options.batches) < 1:
        parser.error("--record-size, --batch and --batches must be 1 or more")
    sizes = {"record_size": options.record_size, "batch": options.batch, "number": options.batches}
    job = partial(main, options.path, **sizes, seed=options.seed, driver=options.driver)
    anyio.run(job, backend=options.backend)
