"""Serve the files of a directory over TCP: one manager, shared by all requests.

A request is a line ``PATH OFFSET LENGTH``; the answer is a line with the number of bytes and then the bytes, or a
line that begins with ``error``.  A connection may ask many times.  The first line on standard output is the port.
"""

import argparse
import errno
import os
import signal
from functools import partial
from typing import Any

import anyio
from anyio.abc import SocketStream, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from anyio_uring import AsyncIoManager, open_uring

LENGTH_MAX = 1 << 20
REQUEST_MAX = 8192


class Service:
    """Answers requests; its files are opened below one directory, and nowhere else."""

    def __init__(self, io: AsyncIoManager, directory: str, timeout: float) -> None:
        self._io = io
        self._directory = os.path.realpath(directory)
        self._timeout = timeout  # seconds

    def _path_of(self, name: str) -> str:
        path = os.path.realpath(os.path.join(self._directory, name))
        if os.path.commonpath([path, self._directory]) != self._directory:
            raise PermissionError(errno.EACCES, "not in the directory", name)
        return path

    async def read(self, line: bytes) -> bytes:
        """Carry out one request."""
        try:
            name, offset, length = line.decode().rsplit(" ", 2)
            if not 0 <= int(length) <= LENGTH_MAX:
                return b"error: LENGTH is 0 to %d\n" % LENGTH_MAX
            path = await anyio.to_thread.run_sync(self._path_of, name)
            # Whatever takes longer is cancelled, and nothing of it is left behind.
            with anyio.fail_after(self._timeout):
                fd = await self._io.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for its writer
                try:
                    data = await self._io.read(fd, int(length), int(offset))
                finally:
                    await self._io.close(fd)
        except ValueError as exc:
            return f"error: {exc}\n".encode()
        except TimeoutError:
            return b"error: it takes too long\n"
        except OSError as exc:
            return f"error: {exc.strerror}\n".encode()
        return b"%d\n" % len(data) + data

    async def serve(self, client: SocketStream) -> None:
        """Answer one client until it leaves."""
        async with client:
            requests = BufferedByteReceiveStream(client)
            try:
                while True:
                    await client.send(await self.read(await requests.receive_until(b"\n", REQUEST_MAX)))
            except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
                pass  # it left
            except anyio.DelimiterNotFound:
                await client.send(b"error: a request is one line\n")


async def stop_at_signals(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    """End the service when it is asked to: what is in flight is cancelled, and the ring drained."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def main(directory: str, *, port: int, timeout: float, driver: Any) -> None:
    """Serve until a signal comes."""
    async with open_uring(driver=driver) as io, anyio.create_task_group() as group:
        await group.start(stop_at_signals, group.cancel_scope)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        async with listener:
            print(listener.extra(anyio.abc.SocketAttribute.local_port), flush=True)  # noqa: S610 - no database
            await listener.serve(Service(io, directory, timeout).serve)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1; 0 (the default): any that is free")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for a request (default: 10)")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--driver", choices=["auto", "uring", "threads"], default="auto")
    options = parser.parse_args()
    job = partial(main, options.directory, port=options.port, timeout=options.timeout, driver=options.driver)
    anyio.run(job, backend=options.backend)
