"""The doctor's findings: what this machine gives, which driver that makes, and why.

The verdict is open_uring()'s own: it is opened, and what it says is printed.  The rest says where
that comes from.  Nothing of it is guessed from version numbers; what cannot be asked is called unknown.
It does not know how its findings are printed.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import resource
import stat
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import anyio
import attrs

from ._core import open_uring
from ._direct import dio_alignment
from ._errors import UringUnavailableError
from ._kernel import liburing_version, try_setup
from ._options import DRIVER_VARIABLE, DriverName, UringOptions
from ._stats import UringFeatures

STATUS_RING: Final = 0
STATUS_THREADS: Final = 1
STATUS_BROKEN: Final = 2

_SAMPLE: Final = bytes(range(256)) * 256
_SYSCTL: Final = "/proc/sys/kernel/io_uring_disabled"
_PROCESS: Final = "/proc/self/status"
# For all set-ups together, where memory is short.
_PATIENCE_SECONDS: Final = 2
_CAP_IPC_LOCK: Final = 1 << 14  # linux/capability.h
# linux/io_uring.h: IORING_SETUP_*, with the flags that each one needs beside it.
_SETUPS: Final = {
    "IOPOLL": 1 << 0,
    "SQPOLL": 1 << 1,
    "R_DISABLED": 1 << 6,
    "SUBMIT_ALL": 1 << 7,
    "COOP_TASKRUN": 1 << 8,
    "TASKRUN_FLAG": 1 << 9 | 1 << 8,
    "SINGLE_ISSUER": 1 << 12,
    "DEFER_TASKRUN": 1 << 13 | 1 << 12,
    "HYBRID_IOPOLL": 1 << 17 | 1 << 0,
}
# IORING_OP_*, by number.
_OPCODE_NAMES: Final = (
    "NOP READV WRITEV FSYNC READ_FIXED WRITE_FIXED POLL_ADD POLL_REMOVE SYNC_FILE_RANGE SENDMSG RECVMSG TIMEOUT "
    "TIMEOUT_REMOVE ACCEPT ASYNC_CANCEL LINK_TIMEOUT CONNECT FALLOCATE OPENAT CLOSE FILES_UPDATE STATX READ WRITE "
    "FADVISE MADVISE SEND RECV OPENAT2 EPOLL_CTL SPLICE PROVIDE_BUFFERS REMOVE_BUFFERS TEE SHUTDOWN RENAMEAT "
    "UNLINKAT MKDIRAT SYMLINKAT LINKAT MSG_RING FSETXATTR SETXATTR FGETXATTR GETXATTR SOCKET URING_CMD SEND_ZC "
    "SENDMSG_ZC READ_MULTISHOT WAITID FUTEX_WAIT FUTEX_WAKE FUTEX_WAITV FIXED_FD_INSTALL FTRUNCATE"
)
_OPCODES: Final = _OPCODE_NAMES.split()
_SECCOMP: Final = {0: "none", 1: "strict", 2: "filter"}


@attrs.frozen(kw_only=True)
class Feature:
    """
    Something the ring can offer beyond plain operations.

    :ivar option: its option of :func:`open_uring`
    :ivar has_option: whether this version of the library has it
    :ivar lacks: what of it the kernel lacks or refuses; empty if nothing; ``None`` if there is no ring to ask
    :ivar needs: what else it takes
    """

    name: str
    option: str
    has_option: bool
    lacks: tuple[str, ...] | None
    needs: str


@attrs.frozen(kw_only=True)
class Place:
    """
    What was tried at the path.

    :ivar written: bytes written, synced and read back equal
    :ivar file_read: bytes read of the given file; ``None`` if a directory was given
    :ivar cached_reads: how a read with ``RWF_NOWAIT`` ended: ``"works"``, or the errno's name
    :ivar direct_read: how a read with ``O_DIRECT`` ended; ``None`` where the system has none
    :ivar memory_alignment: of buffers for direct I/O
    :ivar offset_alignment: of its offsets and lengths; 0: no direct I/O
    :ivar is_alignment_known: whether the kernel gave them (``STATX_DIOALIGN``); otherwise they are a safe default
    :ivar has_poll_queues: of the path's device, for IOPOLL; ``None`` if unknown
    """

    path: str
    written: int
    file_read: int | None
    cached_reads: str
    direct_read: str | None
    memory_alignment: int
    offset_alignment: int
    is_alignment_known: bool
    has_poll_queues: bool | None


@attrs.frozen(kw_only=True)
class Report:
    """
    All findings; ``--json`` prints these very names.

    :ivar status: the exit status: 0 the ring, 1 threads, 2 something is broken
    :ivar driver: what ``open_uring()`` takes here; ``None`` if it fails
    :ivar reason: why not the ring
    :ivar problem: what is broken
    :ivar liburing: version that the extension was built with; ``None`` without an extension
    :ivar io_uring_disabled: the sysctl; ``None`` where there is none
    :ivar seccomp: ``"none"``, ``"strict"``, ``"filter"``, or ``None`` if unknown
    :ivar io_uring_setup: how the system call ended: ``"works"``, or the errno's name; ``None`` if not asked
    :ivar memlock: soft limit of locked memory in bytes; ``None`` without a limit
    :ivar is_memlock_exempt: whether the process has ``CAP_IPC_LOCK``, so that the limit is not applied
    :ivar depth: operations in flight that a ring grants, of the default's 256; ``None`` without a ring
    :ivar setup_flags: in force in a ring of ours; empty without one
    :ivar setups: ``{setup flag: "works" or the errno's name}``
    :ivar opcodes: that the kernel supports
    """

    status: int
    driver: DriverName | None
    reason: str | None
    problem: str | None
    system: str
    kernel: str
    python: str
    liburing: str | None
    io_uring_disabled: int | None
    seccomp: str | None
    seccomp_filters: int | None
    io_uring_setup: str | None
    memlock: int | None
    is_memlock_exempt: bool | None
    driver_variable: str | None
    depth: int | None
    setup_flags: tuple[str, ...]
    setups: dict[str, str]
    opcodes: tuple[str, ...]
    features: tuple[Feature, ...]
    place: Place | None


def examine(path: str | None = None, *, backend: str = "asyncio") -> Report:
    """
    Find out everything.

    :param path: a directory, or a regular file that is only read; by default the current directory, or
        where that is not writable the system's for temporary files
    """
    process = _process_status()
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    memlock = None if limit == resource.RLIM_INFINITY else limit
    exempt = bool(int(process["CapEff"], 16) & _CAP_IPC_LOCK) if "CapEff" in process else None
    # First of all, and all with one manager: the memory of a ring that was closed comes back later.
    try:
        place, used = _try(path, backend)
        driver, reason, granted, problem = used.driver, used.reason, used.features, used.problem
    except (OSError, ValueError, anyio.BrokenResourceError) as exc:
        place, driver, reason, granted, problem = None, None, None, None, sentence(exc)
    refusal = None
    if driver != "uring":
        granted, refusal = anyio.run(_open_ring, backend=backend)
    flags = granted.setup_flags if granted else ()
    numbers = granted.opcodes if granted else frozenset()
    liburing, setup, setups = _ask_for_rings()
    variable = os.environ.get(DRIVER_VARIABLE) or None
    if driver == "threads" and reason is None:
        reason = f"the environment variable {DRIVER_VARIABLE} asks for it"
        if refusal:
            reason += f"; and without it: {refusal}"
    status = STATUS_BROKEN if problem else STATUS_RING if driver == "uring" else STATUS_THREADS
    return Report(
        status=status,
        driver=driver,
        reason=reason,
        problem=problem,
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        liburing=liburing,
        io_uring_disabled=_sysctl(),
        seccomp=_SECCOMP.get(int(process["Seccomp"])) if "Seccomp" in process else None,
        seccomp_filters=int(process["Seccomp_filters"]) if "Seccomp_filters" in process else None,
        io_uring_setup=setup,
        memlock=memlock,
        is_memlock_exempt=exempt,
        driver_variable=variable,
        depth=granted.depth if granted else None,
        setup_flags=flags,
        setups=setups,
        opcodes=tuple(_OPCODES[number] if number < len(_OPCODES) else str(number) for number in sorted(numbers)),
        features=_features(granted, setups, place, "no limit" if exempt or memlock is None else in_kib(memlock)),
        place=place,
    )


# --- the system's word --------------------------------------------------------------------------


def _process_status() -> dict[str, str]:
    """Return ``/proc/self/status``; empty where there is none."""
    try:
        with open(_PROCESS, encoding="utf-8") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except FileNotFoundError:
        return {}


def _sysctl() -> int | None:
    try:
        with open(_SYSCTL, encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return None


def _ask_for_rings() -> tuple[str | None, str | None, dict[str, str]]:
    """Return liburing's version, how a plain set-up ended, and how one with each flag ended."""
    try:
        version = liburing_version()
    except UringUnavailableError:
        return None, None, {}
    deadline = time.monotonic() + _PATIENCE_SECONDS

    def ask(flags: int) -> str:
        code = try_setup(flags)
        while code == errno.ENOMEM and time.monotonic() < deadline:
            # Locked memory of the rings before it, which the kernel frees in its own time: with a limit of
            # 64 KiB on Linux 6.18 the eighth of ten in a row was refused.
            time.sleep(0.01)
            code = try_setup(flags)
        return _outcome(code)

    return version, ask(0), {name: ask(flags) for name, flags in _SETUPS.items()}


async def _open_ring() -> tuple[UringFeatures | None, str | None]:
    """Return what a ring offers; or why there is none."""
    try:
        async with open_uring(driver="uring") as io:
            return io.features, None
    except (UringUnavailableError, ValueError) as exc:  # or a variable with a bad value
        return None, sentence(exc)


def _features(
    granted: UringFeatures | None, setups: dict[str, str], place: Place | None, lockable: str
) -> tuple[Feature, ...]:
    def feature(name: str, option: str, opcodes: Sequence[int], setup: str | None, needs: str) -> Feature:
        lacks = [_OPCODES[number] for number in opcodes if granted and number not in granted.opcodes]
        if setup and setups.get(setup) != "works":
            lacks.append(f"{setup} ({setups.get(setup)})")
        return Feature(
            name=name,
            option=option,
            has_option=option in attrs.fields_dict(UringOptions),
            lacks=tuple(lacks) if granted else None,
            needs=needs,
        )

    queues = {True: "has them", False: "has none", None: "is unknown"}[place.has_poll_queues if place else None]
    return (
        feature("registered buffers", "fixed_buffers", (4, 5), None, f"locked memory for all of them: {lockable}"),
        feature("registered files", "fixed_files", (20,), None, "nothing more"),
        feature("SQPOLL", "sqpoll", (), "SQPOLL", "a CPU for the kernel's thread while it polls"),
        feature("IOPOLL", "iopoll", (), "IOPOLL", f"O_DIRECT on a device with poll queues: this path's {queues}"),
        feature("restrictions", "restrict", (), "R_DISABLED", "nothing more"),
    )


# --- the path -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Used:
    """What a program gets, and what came of using it."""

    driver: DriverName
    reason: str | None
    features: UringFeatures
    problem: str | None
    file_read: int | None


def _try(path: str | None, backend: str) -> tuple[Place | None, _Used]:
    """Write and read at a path with the manager that a program gets."""
    with ExitStack() as stack:
        try:
            path = _choose_path(path)
            scratch, given = _open_files(path, stack)
        except (OSError, ValueError) as exc:
            return None, attrs.evolve(anyio.run(_use, None, None, backend=backend), problem=sentence(exc))
        used = anyio.run(_use, scratch, given, backend=backend)
        # By another way than it was written.
        if used.problem is None and os.pread(scratch, len(_SAMPLE) + 1, 0) != _SAMPLE:
            used = attrs.evolve(used, problem=f"{path}: what was written is not what is in the file")
        if used.problem is not None:
            return None, used
        alignment = dio_alignment(scratch if given is None else given)
        place = Place(
            path=os.path.abspath(path),
            written=len(_SAMPLE),
            file_read=used.file_read,
            cached_reads=_read_cached(scratch),
            direct_read=_read_direct(scratch),
            memory_alignment=alignment.memory,
            offset_alignment=0 if alignment.is_supported is False else alignment.offset,
            is_alignment_known=alignment.is_supported is not None,
            has_poll_queues=_has_poll_queues(scratch),
        )
        return place, used


def _choose_path(path: str | None) -> str:
    if path is None:
        here = os.getcwd()
        return here if os.access(here, os.W_OK | os.X_OK) else tempfile.gettempdir()
    mode = os.stat(path).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        # To open a FIFO or a device can block, or do something.
        raise ValueError(f"{path} is neither a directory nor a regular file")
    return path


def _open_files(path: str, stack: ExitStack) -> tuple[int, int | None]:
    """Open a nameless file to write to, and the file at the path, if it is one, to read."""
    given = None
    directory = path
    if not os.path.isdir(path):
        given = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, given)
        directory = os.path.dirname(path) or "."
    scratch, name = tempfile.mkstemp(dir=directory, prefix="anyio-uring-doctor-")
    stack.callback(os.close, scratch)
    os.unlink(name)
    return scratch, given


async def _use(scratch: int | None, given: int | None) -> _Used:
    """Open a manager as any program does, and write and read with it."""
    # Without nowait, so that it is the driver that reads.
    async with open_uring(nowait=False) as io:
        problem, file_read = None, None
        try:
            if scratch is not None:
                await io.write_and_sync(scratch, _SAMPLE, 0)
                if await io.read_exactly(scratch, len(_SAMPLE), 0) != _SAMPLE:
                    problem = "what was read is not what was written"
            if given is not None:
                file_read = len(await io.read(given, len(_SAMPLE), 0))
        except (OSError, anyio.IncompleteRead) as exc:
            problem = sentence(exc)
        return _Used(
            driver=io.driver, reason=io.fallback_reason, features=io.features, problem=problem, file_read=file_read
        )


def _read_cached(fd: int) -> str:
    if not hasattr(os, "RWF_NOWAIT"):  # pragma: no cover - macOS
        return _outcome(errno.ENOSYS)
    try:
        os.preadv(fd, [bytearray(2)], 0, os.RWF_NOWAIT)
    except BlockingIOError:  # the page has gone meanwhile
        return _outcome(0)
    except OSError as exc:
        return _outcome(exc.errno or errno.EIO)
    return _outcome(0)


def _read_direct(fd: int) -> str | None:
    """Read a page by ``O_DIRECT``, through a second descriptor of the same file."""
    if not hasattr(os, "O_DIRECT"):  # pragma: no cover - macOS
        return None
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as exc:
        return _outcome(exc.errno or errno.EIO)
    try:
        with mmap.mmap(-1, len(_SAMPLE)) as memory:  # begins with a page
            os.preadv(direct, [memory], 0)
            return _outcome(0 if memory[:] == _SAMPLE else errno.EIO)
    except OSError as exc:
        return _outcome(exc.errno or errno.EIO)
    finally:
        os.close(direct)


def _has_poll_queues(fd: int) -> bool | None:
    device = os.fstat(fd).st_dev
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for queue in (f"{base}/queue", f"{base}/../queue"):  # of a disk, of a partition's disk
        try:
            with open(f"{queue}/io_poll", encoding="ascii") as file:
                return file.read().strip() == "1"
        except FileNotFoundError:
            continue
    return None


def _outcome(code: int) -> str:
    return errno.errorcode.get(code, str(code)) if code else "works"


def sentence(exc: Exception) -> str:
    """Return what happened; an OSError's own text puts a number before it."""
    if not isinstance(exc, OSError) or not exc.strerror:
        return str(exc) or type(exc).__name__
    return f"{os.fsdecode(exc.filename)}: {exc.strerror}" if exc.filename is not None else exc.strerror


def in_kib(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count // 1024} KiB" if count % 1024 == 0 else f"{count} bytes"
