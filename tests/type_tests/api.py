"""What a type checker must conclude; checked by mypy and pyright, never run."""

import array
import mmap
import os
import socket
from pathlib import Path
from typing import Literal

from anyio.abc import ByteReceiveStream, ByteSendStream
from typing_extensions import assert_type

from anyio_uring import (
    AppendLog,
    AsyncIoManager,
    BatchError,
    BufferPool,
    ColdTierReader,
    ColdTierStatistics,
    DirectAlignment,
    FileStatus,
    FixedBuffer,
    FsyncMode,
    Instrument,
    IoStatistics,
    LatencyQuantiles,
    LogRecovery,
    LogStatistics,
    ManagerView,
    OperationTrace,
    RegisteredFile,
    RwFlags,
    UringFeatures,
    UringFile,
    UringFileReadStream,
    UringFileWriteStream,
    UringOptions,
    aligned_buffer,
    atomic_write,
    copy_file,
    copy_tree,
    current,
    open_append_log,
    open_file,
    open_uring,
    read_append_log,
    wrap_file,
)


class Mine(Instrument):
    """Overrides one method; the others do nothing."""

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:
        assert_type(operation.user_data, int)
        assert_type(operation.opcode, str)
        assert_type(completed_ns - operation.submitted_ns + result, int)


async def main() -> None:
    async with open_uring(depth=8, driver="auto") as io:
        assert_type(io, AsyncIoManager)
        assert_type(io.driver, Literal["uring", "threads", "fake"])
        assert_type(io.fallback_reason, str | None)
        assert_type(io.features, UringFeatures)
        assert_type(io.statistics(), IoStatistics)
        with Path("file").open("rb") as file, socket.socket() as connection:
            assert_type(await io.read(file, 1, 0), bytes)
            assert_type(await io.read(connection, 1, -1), bytes)
            assert_type(await io.readinto(3, bytearray(1), 0), int)
            assert_type(await io.readinto(3, array.array("I"), 0), int)
            assert_type(await io.readinto(3, mmap.mmap(-1, 1), 0), int)
            assert_type(await io.readinto(3, memoryview(b""), 0), int)
            assert_type(await io.read_batch([(file, 1, 0)]), list[bytes])
            assert_type(await io.read_batch([(3, 1, 0)], return_exceptions=True), list[bytes | OSError])
            assert_type(await io.readinto_batch([(3, bytearray(1), 0)]), list[int])
            assert_type(await io.write_batch([(3, b"", 0)]), list[int])
            assert_type(await io.write_batch([(3, b"", 0)], return_exceptions=True), list[int | OSError])
            await io.fsync_batch([3, file])
            assert_type(aligned_buffer(4096), memoryview)
            assert_type(io.direct_alignment(file), DirectAlignment)
            assert_type(await io.readinto(3, aligned_buffer(1), 0, flags=RwFlags.NOWAIT | RwFlags.HIPRI), int)
            assert_type(await io.read_batch([(3, 1, 0)], flags=os.RWF_HIPRI), list[bytes])
        io.read("name", 1, 0)  # type: ignore[arg-type,unused-coroutine]
        await io.write(3, "text", 0)  # type: ignore[arg-type]
    assert_type(current(), AsyncIoManager)
    async with open_uring(options=UringOptions.from_toml("app.toml")) as io:
        assert_type(io, AsyncIoManager)
    assert_type(UringOptions.from_env(defaults=UringOptions(depth=1)), UringOptions)
    async with open_uring(options=UringOptions(latency=True), instruments=[Mine()]) as io:
        view: ManagerView = io
        assert_type(view.statistics().latency, LatencyQuantiles | None)
    open_uring(instruments=[object()])  # type: ignore[list-item]
    open_uring(fixed_buffers=1, fixed_buffer_size="1MiB", fixed_files=8)
    open_uring(depth=1, options=UringOptions())  # type: ignore[call-overload]
    open_uring(driver="epoll")  # type: ignore[call-overload]
    assert_type(BatchError("read_batch", [OSError()]).errors, dict[int, OSError])


async def paths() -> None:
    async with open_uring() as io:
        assert_type(await io.open(Path("file"), direct=True), int)
        assert_type(await io.close(3), None)
        with Path("file").open("rb") as file:
            assert_type(await io.stat(file, follow_symlinks=True), FileStatus)
            await io.truncate(file, 3)
            await io.fallocate(file, 0, 0, 1)
        status = await io.stat(b"file", dir_fd=3)
        assert_type(status.st_size, int)
        assert_type(status.st_mtime, float)
        assert_type(status.st_birthtime_ns, int | None)
        assert_type(status.mount_id, int | None)
        assert_type(status.direct_alignment, DirectAlignment)
        assert_type(status.stat_result, os.stat_result)
        assert_type(status[0], int)
        assert_type(list(status), list[int])
        await io.rename("a", Path("b"), noreplace=True)
        await io.link(b"a", "b", src_dir_fd=3)
        assert_type(await io.getxattr("a", "user.b"), bytes)
        assert_type(await io.read_files([Path("a"), "b", b"c"]), list[bytes])
        assert_type(await io.read_files(["a"], return_exceptions=True), list[bytes | OSError])
        assert_type(await io.stat_batch(iter(["a"])), list[FileStatus])
        assert_type(await io.stat_batch(["a"], return_exceptions=True), list[FileStatus | OSError])
        await io.close("a")  # type: ignore[arg-type]
        await io.unlink(3)  # type: ignore[arg-type]


async def registered() -> None:
    async with open_uring() as io:
        assert_type(io.buffers, BufferPool | None)
        async with io.buffer_pool(count=2, size="4KiB") as pool:
            assert_type(pool, BufferPool)
            with await pool.acquire() as buffer:
                assert_type(buffer, FixedBuffer)
                assert_type(buffer.view, memoryview)
                assert_type(await io.readinto(3, buffer, 0), int)
                assert_type(await io.readinto_batch([(3, buffer, 0), (3, buffer.view, 0)]), list[int])
                assert_type(await io.write(3, buffer.view[:3], 0), int)
        async with io.register_files([3, io.register_files]) as files:  # type: ignore[list-item]
            pass
        async with io.register_files([3]) as files:
            assert_type(files, list[RegisteredFile])
            assert_type(await io.read(files[0], 1, 0), bytes)
            assert_type(await io.read_batch([(files[0], 1, 0), (3, 1, 0)]), list[bytes])
            await files[0].update(files[0])


async def streams_and_copies(io: AsyncIoManager) -> None:
    async with await UringFileReadStream.from_path("file", io=io) as source:
        receiver: ByteReceiveStream = source
        assert_type(await receiver.receive(), bytes)
        assert_type(await source.receive(10), bytes)
        assert_type(await source.seek(0), int)
    with Path("file").open("wb") as file:
        sender: ByteSendStream = UringFileWriteStream(file)
        await sender.send(b"")
    assert_type(await copy_file("a", Path("b"), progress=print), int)
    assert_type(await copy_tree("a", "b", symlinks=True, io=io), int)
    UringFileReadStream("file")  # type: ignore[arg-type]


async def durable_and_cold() -> None:
    async with open_uring() as io:
        await atomic_write(Path("file"), b"data", mode=0o600, io=io)
        await atomic_write(b"file", memoryview(b""))
        await atomic_write("file", "text")  # type: ignore[arg-type]
        reader = ColdTierReader(3, base_offset=1 << 40, length=1 << 30, gap_max=0, coalesced_max=1 << 20, io=io)
        assert_type(await reader.read(1 << 40, 1), bytes)
        assert_type(await reader.read_batch([(1 << 40, 1)]), list[bytes])
        assert_type(await reader.read_batch([(1 << 40, 1)], return_exceptions=True), list[bytes | OSError])
        assert_type(reader.statistics(), ColdTierStatistics)
        assert_type(reader.statistics().coalesced, int)


async def log() -> None:
    async with open_append_log(Path("log"), fsync=FsyncMode.NEVER, preallocate=0) as opened:
        assert_type(opened, AppendLog)
        assert_type(await opened.append(b""), int)
        assert_type(await opened.append(bytearray()), int)
        assert_type(await opened.sync(), int)
        assert_type(opened.recovery, LogRecovery)
        assert_type(opened.statistics(), LogStatistics)
        await opened.rotate("next")
    async for offset, record in read_append_log("log"):
        assert_type(offset, int)
        assert_type(record, bytes)
    open_append_log("log", fsync="always")  # type: ignore[arg-type]


async def files() -> None:
    async with await open_file("name") as text:
        assert_type(text, UringFile[str])
        assert_type(await text.read(), str)
        assert_type(await text.readlines(), list[str])
        assert_type(await text.write("text"), int)
        assert_type(text.encoding, str)
        async for line in text:
            assert_type(line, str)
        assert_type(await text.pread(1, 0), bytes)
        await text.write(b"bytes")  # type: ignore[arg-type]
        await text.read1()  # type: ignore[misc]
    async with await open_file("name", "r+b", io=current(), limiter=None) as binary:
        assert_type(binary, UringFile[bytes])
        assert_type(await binary.read1(), bytes)
        assert_type(await binary.readinto(bytearray(1)), int)
        await binary.writelines([b"bytes", memoryview(b"bytes")])
        await binary.write("text")  # type: ignore[arg-type]
    assert_type(wrap_file(3), UringFile[bytes])
