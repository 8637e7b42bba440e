"""The seccomp profile of docs/security.md allows what this library does, and hardly more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from anyio_uring._requests import Opcode

from .programs import run

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "security.md").read_text(encoding="utf-8")
(PROFILE,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)

WORK = """
import encodings.ascii, errno, json, os, sys, tempfile
from pathlib import Path
import anyio
from anyio_uring import (
    FsyncMode, atomic_write, copy_file, copy_tree, open_append_log, open_file, open_uring, read_append_log
)
from tests import denied, programs

async def work(io, directory):
    with open(directory / "data", "w+b") as file:
        await programs.work(io, file)
        ends = os.pipe()
        with anyio.move_on_after(0.01):
            await io.read(ends[0], 1, -1)
        async with io.chain() as chain:
            chain.write(file, b"chained", 0)
            chain.fdatasync(file)
        async with io.buffer_pool(count=2, size=4096) as pool:
            with await pool.acquire() as buffer:
                await io.readinto(file, buffer, 0)
        async with io.register_files([file.fileno()]) as (registered,):
            assert await io.read(registered, 7, 0) == b"chained"
        await io.fallocate(file, 0, 0, 1 << 20)
        await io.truncate(file, 100)
        await io.fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        await io.sync_file_range(file, 0, 100, 2)
        await io.setxattr(file, "user.name", b"value")
        assert await io.getxattr(file, "user.name") == b"value"
    await io.mkdir(directory / "made")
    await io.link(directory / "data", directory / "linked")
    await io.symlink("linked", directory / "symbolic")
    await io.rename(directory / "linked", directory / "made" / "renamed")
    assert (await io.stat(directory / "made" / "renamed")).st_size == 100
    assert [len(data) for data in await io.read_files([directory / "data"])] == [100]
    await atomic_write(directory / "atomic", b"whole")
    async with open_append_log(directory / "log") as log:
        await log.append(b"record")
        await log.rotate(directory / "log2")
    assert [record async for _, record in read_append_log(directory / "log")] == [b"record"]
    async with await open_file(directory / "text", "w") as file:
        await file.write("line")
    await copy_file(directory / "text", directory / "copy")
    await copy_tree(directory / "made", directory / "made too")
    await io.unlink(directory / "made" / "renamed")
    await io.rmdir(directory / "made")

async def main(backend, driver, restrict):
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as first, tempfile.TemporaryDirectory(dir=sys.argv[2]) as second:
        async with open_uring(driver=driver) as io:
            await work(io, Path(first))  # everything is imported
            if sys.argv[1] != "see":
                denied.allow_only(json.loads(sys.argv[1])["syscalls"][0]["names"])
            async with open_uring(driver=driver, restrict=restrict) as io:
                assert io.driver == driver, io.fallback_reason
                await work(io, Path(second))
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("driver", "restrict"),
    [("uring", False), ("uring", True), ("threads", False)],
    ids=["uring", "restrict", "threads"],
)
def test_the_profile_is_enough(driver: str, restrict: bool, backend: str, tmp_path: Path) -> None:
    run(f"{WORK}\nanyio.run(main, {backend!r}, {driver!r}, {restrict}, backend={backend!r})", PROFILE, tmp_path)


def test_the_profile_allows_no_sockets_and_no_programs() -> None:
    profile = json.loads(PROFILE)
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    (rule,) = profile["syscalls"]
    assert rule["action"] == "SCMP_ACT_ALLOW"
    names = rule["names"]
    assert names == sorted(set(names))
    assert {"io_uring_enter", "io_uring_register", "io_uring_setup"} < set(names)
    assert not {"socket", "connect", "execve", "execveat", "fork", "vfork", "ptrace", "kill", "mount", "bpf"} & set(
        names
    )


def test_the_page_names_every_opcode_that_a_restricted_ring_allows() -> None:
    (table,) = re.findall(r"\| allowed \| opcodes \|\n(.*?)\n\n", PAGE, re.DOTALL)
    named = {name for name in re.findall(r"`([A-Z_]+)`", table) if not name.startswith("IOSQE_")}
    assert named == {opcode.name for opcode in Opcode}
