"""Write the lines of standard input to a log that is rotated by size, and keep the newest files.

The files are DIRECTORY/00000001.log, 00000002.log and so on; each is an append-only log whose records are the lines,
and each start of the program begins another one.  ``--print`` writes the lines that are kept to standard output.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from anyio_uring import AsyncIoManager, FsyncMode, open_append_log, open_uring, read_append_log


def files_in(directory: Path) -> list[Path]:
    """Return the log's files, the oldest first."""
    return sorted(directory.glob("[0-9]*.log"), key=lambda path: int(path.stem))


def next_file(directory: Path) -> Path:
    """Return the path of the file behind the newest one."""
    files = files_in(directory)
    return directory / f"{int(files[-1].stem) + 1 if files else 1:08}.log"


async def remove_old(io: AsyncIoManager, directory: Path, keep: int) -> None:
    """Remove all but the newest files."""
    for old in files_in(directory)[:-keep]:
        await io.unlink(old)


async def write(directory: Path, *, size: int, keep: int, fsync: FsyncMode, driver: Any) -> None:
    """Append lines until standard input ends."""
    first = next_file(directory)
    async with open_uring(driver=driver) as io, open_append_log(first, fsync=fsync, preallocate=size) as log:
        await remove_old(io, directory, keep)
        start = log.end
        while line := await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True):
            if log.end - start >= size:
                await log.rotate(next_file(directory))
                start = log.end
                await remove_old(io, directory, keep)
            await log.append(line)


async def print_all(directory: Path, *, driver: Any) -> None:
    """Print the lines that are kept."""
    async with open_uring(driver=driver):
        for path in files_in(directory):
            async for _, line in read_append_log(path):
                sys.stdout.buffer.write(line)
    sys.stdout.flush()


def natural(text: str) -> int:
    """Return a number that is 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", type=natural, default=1 << 20, help="bytes of a file, and one record more")
    parser.add_argument("--keep", type=natural, default=5, help="files that are kept (default: 5)")
    parser.add_argument(
        "--fsync",
        type=FsyncMode,
        choices=list(FsyncMode),
        default=FsyncMode.EVERY_SECOND,
        metavar="{always,every_second,never}",
        help="when a line is on disk (default: every_second)",
    )
    parser.add_argument("--print", action="store_true", dest="prints", help="print what is kept, and write nothing")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--driver", choices=["auto", "uring", "threads"], default="auto")
    options = parser.parse_args()
    if options.prints:
        job = partial(print_all, options.directory, driver=options.driver)
    else:
        options.directory.mkdir(parents=True, exist_ok=True)
        limits = {"size": options.size, "keep": options.keep, "fsync": options.fsync}
        job = partial(write, options.directory, **limits, driver=options.driver)
    anyio.run(job, backend=options.backend)
