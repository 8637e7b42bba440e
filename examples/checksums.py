"""Print the SHA-256 of every file below a directory, in the format of sha256sum, many files at once.

The output can be given to ``sha256sum --check``.  The exit status is 1 if something could not be read.
"""

import argparse
import hashlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from anyio_uring import AsyncIoManager, open_uring

CHUNK = 1 << 20


def names_below(directory: str, failed: list[OSError]) -> list[str]:
    """Return the paths of all regular files, in order; and what could not be listed."""
    found = []
    for parent, _, names in os.walk(directory, onerror=failed.append):
        paths = (os.path.join(parent, name) for name in names)
        found += [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    return sorted(found, key=os.fsencode)


async def digest_of(io: AsyncIoManager, path: str, buffer: memoryview) -> str:
    """Hash a file; hashing is a thread's work, so that other files are read meanwhile."""
    digest = hashlib.sha256()
    fd = await io.open(path)
    try:
        offset = 0
        while count := await io.readinto(fd, buffer, offset):
            await anyio.to_thread.run_sync(digest.update, buffer[:count])
            offset += count
    finally:
        await io.close(fd)
    return digest.hexdigest()


def line_of(path: str, digest: str) -> bytes:
    """Return sha256sum's line: a name with a line end or a backslash is escaped, and its line begins with one."""
    name = os.fsencode(path)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + digest.encode() + b"  " + escaped + b"\n"


def progress_bar() -> AbstractContextManager[Any]:
    """Return rich's bar, where there is a terminal to draw it on and rich to draw it."""
    if not sys.stderr.isatty():
        return nullcontext()
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return nullcontext()
    return Progress(console=Console(stderr=True), transient=True)


async def main(directory: str, *, tasks: int, driver: Any) -> int:
    """Hash all files and print them in order; return the exit status."""
    failed: list[OSError] = []
    paths = await anyio.to_thread.run_sync(names_below, directory, failed)
    for error in failed:
        print(f"{error.filename!r}: {error.strerror}", file=sys.stderr)
    digests: dict[str, str] = {}
    with progress_bar() as bar:
        shown = bar and bar.add_task("files", total=len(paths))

        async def work(io: AsyncIoManager, todo: MemoryObjectReceiveStream[str]) -> None:
            buffer = memoryview(bytearray(CHUNK))
            async with todo:
                async for path in todo:
                    try:
                        digests[path] = await digest_of(io, path, buffer)
                    except OSError as exc:
                        print(f"{path!r}: {exc.strerror}", file=sys.stderr)
                    if bar is not None:
                        bar.advance(shown)

        send, todo = anyio.create_memory_object_stream[str]()
        async with open_uring(driver=driver) as io, anyio.create_task_group() as group:
            with todo:
                for _ in range(tasks):
                    group.start_soon(work, io, todo.clone())
            with send:
                for path in paths:
                    await send.send(path)
    for path in paths:
        if path in digests:
            sys.stdout.buffer.write(line_of(path, digests[path]))
    sys.stdout.flush()
    return 1 if failed or len(digests) < len(paths) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--tasks", type=int, default=16, help="files at once (default: 16)")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--driver", choices=["auto", "uring", "threads"], default="auto")
    options = parser.parse_args()
    if options.tasks < 1:
        parser.error("--tasks must be 1 or more")
    job = partial(main, options.directory, tasks=options.tasks, driver=options.driver)
    sys.exit(anyio.run(job, backend=options.backend))
