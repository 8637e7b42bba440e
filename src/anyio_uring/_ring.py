"""The kernel's ring: the ONE importer of the compiled extension.

It opens a ring (with the ladder of setup flags), proves with a real read that it works, and
then turns rows into completions.  It knows numbers and addresses; it knows no waiters, and
no one above it sees ``ffi``.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import select
import stat
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import attrs

from ._driver import CANCEL, MEMBER
from ._errors import UringUnavailableError
from ._fixed_files import slots_default
from ._flags import NOWAIT
from ._options import DriverName, UringOptions
from ._requests import (
    DISKS,
    SQE_ASYNC,
    SQE_FIXED_FILE,
    SQE_FLAGS,
    SQE_LINK,
    WRITES,
    AnyRequest,
    Batch,
    Call,
    Memories,
    Opcode,
    Request,
    Requests,
    check_polled,
)
from ._stats import UringFeatures

# linux/io_uring.h; part of the kernel's ABI.
SETUP_FLAGS: Final = {
    "IOPOLL": 1 << 0,
    "SQPOLL": 1 << 1,
    "SQ_AFF": 1 << 2,
    "R_DISABLED": 1 << 6,
    "SUBMIT_ALL": 1 << 7,
    "COOP_TASKRUN": 1 << 8,
    "TASKRUN_FLAG": 1 << 9,
    "SINGLE_ISSUER": 1 << 12,
}
_CLAMP: Final = 1 << 4
# From the newest kernel to the oldest: 6.0, 5.19, 5.18, 5.6 (which brought CLAMP).
# Without DEFER_TASKRUN (6.1): deferred work makes the descriptor readable but wakes nobody who already
# polls it.  On Linux 6.18, 368 of 368 completions did not end an epoll_wait; with COOP_TASKRUN none
# was missed.  It would take an eventfd, and a system call more for each wake-up.
_LADDER: Final = (
    ("SUBMIT_ALL", "SINGLE_ISSUER", "COOP_TASKRUN", "TASKRUN_FLAG"),
    ("SUBMIT_ALL", "COOP_TASKRUN", "TASKRUN_FLAG"),
    ("SUBMIT_ALL",),
    (),
)
# The kernel's poller runs the ring's deferred work itself, and io_uring_setup(2) refuses with SQPOLL
# what says how the submitting thread is to do it (EINVAL).
_NOT_WITH_SQPOLL: Final = frozenset({"COOP_TASKRUN", "TASKRUN_FLAG"})
# IORING_FEAT_NODROP, SUBMIT_STABLE and RW_CUR_POS: nothing lost, iovecs read at submission, offset -1.
_FEATURES_NEEDED: Final = 1 << 1 | 1 << 2 | 1 << 3
# IORING_FEAT_SQPOLL_NONFIXED (5.11): SQPOLL for any descriptor, and without privileges.
_FEATURES_NEEDED_SQPOLL: Final = 1 << 7
_ENTRIES_MIN: Final = 8
_READ: Final = int(Opcode.READ)
_ASYNC_CANCEL: Final = int(Opcode.ASYNC_CANCEL)
# {opcode: the one for registered memory}; vectors have none before Linux 6.15.  Bare ints, for an enum's hash
# takes 0.3 us.
_FIXED: Final = {int(Opcode.READ): int(Opcode.READ_FIXED), int(Opcode.WRITE): int(Opcode.WRITE_FIXED)}
# Entries of a ring's table of registered buffers: each is a pool.
POOLS_MAX: Final = 256
_REGISTERED: Final = "registered"
# io-wq's limit for files that may block for ever is RLIMIT_NPROC if nobody sets one; regular
# files keep the kernel's own limit (min of SQ entries and 4 per CPU), which 0 leaves alone.
_UNBOUNDED_WORKERS_MAX: Final = 64

# What the event loop's thread may copy for one operation, and for one batch: 25 us and 0.4 ms.
_INLINE_COPY_MAX: Final = 256 << 10
_INLINE_BATCH_COPY_MAX: Final = 4 << 20

# One au_row: user_data, address, offset, length, fd, op_flags, and opcode | sqe_flags << 8 | buf_index << 16.
_ROW: Final = "QQqIiII"
_OPCODE_MASK: Final = 0xFF
_UINT32_MAX: Final = 0xFFFFFFFF
_ROW_SIZE: Final = struct.calcsize("=" + _ROW)
_PACK_POWER_MAX: Final = 8
_PROBE_MS_MAX: Final = 10_000

_SYSCTL: Final = Path("/proc/sys/kernel/io_uring_disabled")
_BLOCK_DEVICES: Final = Path("/sys/block")
_PLAIN: Final = UringOptions()


def extension() -> tuple[Any, Any]:
    """
    Return the compiled extension: its functions, and its ``ffi``.

    :raises UringUnavailableError: if there is none
    """
    if not sys.platform.startswith("linux"):
        raise UringUnavailableError(errno.ENOSYS, f"io_uring exists on Linux alone, and this system is {sys.platform}")
    try:
        from ._native._lib import ffi, lib  # noqa: PLC0415 - it may be missing, and is needed here alone
    except ImportError as exc:
        raise UringUnavailableError(
            errno.ENOSYS,
            f"anyio_uring's compiled extension cannot be imported ({exc}): "
            "install liburing's headers (Debian: liburing-dev) and reinstall anyio_uring",
        ) from exc
    return lib, ffi


def open_ring(depth: int, options: UringOptions = _PLAIN) -> UringDriver:
    """
    Open a ring and prove that it works.

    :param options: of these, ``sqpoll``, ``iopoll``, ``restrict`` and what belongs to them
    :raises UringUnavailableError: with the cause and the remedy, in one sentence
    """
    lib, ffi = extension()
    if options.iopoll:
        _require_poll_queues()
    ring = _climb(lib, ffi, depth, options)
    driver = UringDriver(lib, ffi, ring, depth)
    if options.sqpoll and driver.lacks(_FEATURES_NEEDED_SQPOLL):
        driver.close()
        raise _mode_refused(errno.EOPNOTSUPP, options)
    if options.restrict:
        try:
            driver.restrict(options.fixed_files or slots_default())
        except OSError as exc:
            driver.close()
            raise _mode_refused(exc.errno or errno.EIO, options) from exc
    try:
        _probe(driver)
    except OSError as exc:
        driver.close()
        raise _unavailable(exc.errno or errno.EIO, "a first read through the ring") from exc
    return driver


def _climb(lib: Any, ffi: Any, depth: int, options: UringOptions = _PLAIN) -> Any:
    """Open the ring with the best flags that the kernel knows, and as many entries as memory allows."""
    out = ffi.new("au_ring **")
    entries = max(depth, _ENTRIES_MIN)
    modes = _modes(options)
    rung = 0
    while True:
        names = {*_LADDER[rung], *modes}
        if options.sqpoll:
            names -= _NOT_WITH_SQPOLL
        flags = sum(SETUP_FLAGS[name] for name in names) | _CLAMP
        # C3: room for one completion and one cancel completion of each operation.
        ret: int = lib.au_open(
            out, entries, 2 * entries, flags, options.sqpoll_idle_ms if options.sqpoll else 0, options.sqpoll_cpu or 0
        )
        if ret == 0:
            return out[0]
        if ret == -errno.EINVAL and rung < len(_LADDER) - 1:
            rung += 1
        elif ret == -errno.ENOMEM and entries > _ENTRIES_MIN:
            entries = max(entries // 2, _ENTRIES_MIN)
        else:
            break
    if modes:
        # Is it what was asked for, or would there be no ring at all?
        lib.au_close(_climb(lib, ffi, depth))
        raise _mode_refused(-ret, options)
    raise _unavailable(-ret, "io_uring_setup")


def _modes(options: UringOptions) -> list[str]:
    """Return the setup flags that were asked for: unlike the ladder's, none is left out if the kernel lacks it."""
    asked = {
        "SQPOLL": options.sqpoll,
        "SQ_AFF": options.sqpoll_cpu is not None,
        "IOPOLL": options.iopoll,
        "R_DISABLED": options.restrict,
    }
    return [name for name, is_asked in asked.items() if is_asked]


def _mode_refused(code: int, options: UringOptions) -> UringUnavailableError:
    """Say which options are in the way, where there is a ring without them."""
    hints = []
    if options.sqpoll:
        hints.append(
            "sqpoll=True (which needs Linux 5.11 to do without privileges, and RLIMIT_NPROC to allow one more thread)"
        )
    if options.sqpoll_cpu is not None:
        hints.append(
            f"sqpoll_cpu={options.sqpoll_cpu} (which must be online, and in this process's cpuset: see nproc --all)"
        )
    if options.iopoll:
        hints.append("iopoll=True")
    if options.restrict:
        hints.append("restrict=True (which needs Linux 5.10)")
    name = errno.errorcode.get(code, str(code))
    return UringUnavailableError(
        code,
        f"this kernel ({platform.release()}) gives a ring, but refused one with {' and '.join(hints)}, "
        f"with {name}: change these options, or leave them out",
    )


def _require_poll_queues() -> None:
    """
    Look whether any block device here can be polled.

    Nobody can know at open which files will be read.  But where no device has poll queues, each read would
    be EOPNOTSUPP (seen on Linux 6.18), or wait for an interrupt after all.

    :raises UringUnavailableError: if none has
    """
    found = {file.parent.parent.name: file.read_text(encoding="ascii").strip() for file in _poll_queues()}
    # Where sysfs is not mounted nothing is known, and the first read will tell.
    if found and "1" not in found.values():
        devices = ", ".join(sorted(name for name in found if not name.startswith(("loop", "ram"))))
        raise UringUnavailableError(
            errno.EOPNOTSUPP,
            f"iopoll=True needs a block device with poll queues, and none here has any ({devices or 'no disk'}: "
            "/sys/block/*/queue/io_poll is 0): let its driver make some (nvme.poll_queues=2 or "
            "virtio_blk.poll_queues=2 on the kernel's command line), or leave iopoll out",
        )


def _poll_queues() -> list[Path]:
    return list(_BLOCK_DEVICES.glob("*/queue/io_poll"))


def _probe(driver: UringDriver) -> None:
    """Read a few bytes through the ring: a filter may allow the set-up and forbid the use."""
    if driver.lacks(_FEATURES_NEEDED):
        raise OSError(errno.ENOSYS, "the kernel's io_uring is too old")
    if "SQPOLL" in driver.features.setup_flags:
        driver.enter()  # the read may well do without, and the first wake-up would find out too late
    expected = b"anyio_uring"
    # A pipe: it never needs a worker of the kernel, whose start may take seconds on a loaded machine.
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        memory = bytearray(len(expected))
        # No pipe can be polled for as a device is (IOPOLL): there the ring is proved by the kernel's "no".
        is_polled = "IOPOLL" in driver.features.setup_flags
        rows, pin, _ = driver.prepare(0, [Request(Opcode.READ, -1 if is_polled else read_end, memory, -1)])
        _, completions = driver.turn([], [(rows, 0, 1)])
        os.write(write_end, expected)
        if not completions:
            # That a completion wakes who polls the ring is part of the proof.
            poller = select.poll()
            poller.register(driver.fileno(), select.POLLIN)
            poller.poll(_PROBE_MS_MAX)
            _, completions = driver.turn([], [])
        if not completions:
            raise OSError(errno.ETIME, "no completion came back")
        del pin
        if is_polled and completions[1] == -errno.EBADF:
            return
        if completions[1] < 0:
            raise OSError(-completions[1], os.strerror(-completions[1]))
        if bytes(memory) != expected:
            raise OSError(errno.EIO, "wrong bytes came back")
    finally:
        os.close(write_end)
        os.close(read_end)


def _unavailable(code: int, what: str) -> UringUnavailableError:
    """Say in one sentence what happened and what to do about it."""
    name = errno.errorcode.get(code, str(code))
    try:
        disabled = int(_SYSCTL.read_text(encoding="ascii"))
    except (OSError, ValueError):
        disabled = 0
    if code == errno.EPERM and disabled:
        reason = (
            f"the sysctl kernel.io_uring_disabled is {disabled}, which forbids io_uring here: "
            "an administrator can allow it with sysctl -w kernel.io_uring_disabled=0"
        )
    elif code in {errno.EPERM, errno.EACCES}:
        reason = (
            f"{what} was refused with {name}, as a seccomp filter or security module does (containers' default "
            "profiles among them): allow io_uring_setup, io_uring_enter and io_uring_register"
        )
    elif code == errno.ENOSYS:
        reason = (
            f"{what} failed with {name}: this kernel ({platform.release()}) has no usable io_uring, or a sandbox "
            "hides it: use Linux 5.6 or newer and allow io_uring_setup, io_uring_enter and io_uring_register"
        )
    elif code == errno.ENOMEM:
        reason = (
            f"{what} failed with {name}, most likely for lack of locked memory: "
            "raise RLIMIT_MEMLOCK (ulimit -l) or open with a smaller depth"
        )
    elif code in {errno.EMFILE, errno.ENFILE}:
        reason = f"{what} failed with {name}: no file descriptor is free: raise RLIMIT_NOFILE (ulimit -n)"
    else:
        reason = f"{what} failed with {name} ({os.strerror(code)}): use driver='threads', or report it with the kernel's version"
    return UringUnavailableError(code, reason)


def _memory_refused(code: int, size: int) -> str:
    """Say in one sentence why memory stays unregistered, and what to do about it."""
    remedies = {
        errno.ENOMEM: "raise RLIMIT_MEMLOCK (ulimit -l), or make the pool smaller",
        errno.ENOSPC: f"{POOLS_MAX} pools are open, so close one",
    }
    return f"plain memory: registering {size >> 10} KiB was {_registration_refused(code, remedies)}"


def _files_refused(code: int, count: int) -> str:
    """Say in one sentence why files stay plain descriptors, and what to do about it."""
    remedies = {errno.EMFILE: "raise RLIMIT_NOFILE (ulimit -n), or open with fewer fixed_files"}
    return f"plain descriptors: registering {count} was {_registration_refused(code, remedies)}"


def _registration_refused(code: int, remedies: dict[int, str]) -> str:
    forbidden = "allow io_uring_register where a seccomp filter or a security module forbids it"
    known = {errno.EPERM: forbidden, errno.EACCES: forbidden, **remedies}
    remedy = known.get(code, f"use Linux 5.19 or newer (this is {platform.release()})")
    return f"refused with {errno.errorcode.get(code, code)}: {remedy}"


def _find_bytes_data(ffi: Any) -> int:
    """Return where a ``bytes`` object's data begins behind its ``id()``; 0 if the interpreter is not so simple."""
    offset = bytes.__basicsize__ - 1
    samples = [bytes(length) for length in (2, 600, 5000)]
    found = [int(ffi.cast("uintptr_t", ffi.from_buffer(sample))) - id(sample) for sample in samples]
    return offset if found == [offset] * len(samples) else 0


class UringDriver:
    """The driver over one io_uring: fulfils :class:`anyio_uring._driver.Driver`."""

    __slots__ = (
        "_bytes_data",
        "_capacity",
        "_counting",
        "_entries",
        "_entries_lack",
        "_features",
        "_ffi",
        "_file_table",
        "_iopoll",
        "_last_counts",
        "_lib",
        "_out",
        "_out_flat",
        "_owned",
        "_packers",
        "_ring",
        "_state",
        "completions_max",
        "fixed_files",
        "fixed_memory",
    )

    name: DriverName = "uring"
    # A bytes object that nobody else has seen may be filled by C, as after
    # PyBytes_FromStringAndSize(NULL, n): no copy, and large ones come from the kernel as zero pages.
    memory_type = bytes

    def __init__(self, lib: Any, ffi: Any, ring: Any, depth: int) -> None:
        self._lib = lib
        self._ffi = ffi
        self._ring: Any = ring
        self._state: Any = lib.au_get_state(ring)
        self._last_counts = 0, 0  # once closed
        # Another thread may count (metrics do) while this one closes the ring and frees the counters.
        self._counting = threading.Lock()
        self.completions_max: int = self._state.cq_entries
        self._capacity: int = self._state.cq_entries
        self._out = ffi.new("au_completion[]", self._capacity)
        self._out_flat = ffi.cast("int64_t *", self._out)
        self._owned = memoryview(ffi.buffer(self._state, 4))
        self._bytes_data = _find_bytes_data(ffi)
        self.fixed_memory: dict[int, tuple[int, memoryview]] = {}
        self.fixed_files: dict[int, tuple[int, object]] = {}
        self._file_table: str | None = None  # "registered", or why there is none; None: not asked yet
        # Entries of the table of registered buffers that are free, and why there are none; None: not asked yet.
        self._entries: list[int] = []
        self._entries_lack: int | None = None
        # [struct of 1, 2, 4 ... rows]: packing 256 rows in one call takes half the time of 256 calls.
        self._packers = [struct.Struct("=" + _ROW * (1 << power)) for power in range(_PACK_POWER_MAX + 1)]
        lib.au_limit_workers(ring, 0, _UNBOUNDED_WORKERS_MAX)  # since 5.15; without it the default stands
        supported = ffi.new("uint8_t[]", 256)
        lib.au_get_opcodes(ring, supported, 256)
        flags: int = self._state.setup_flags
        self._iopoll = bool(flags & SETUP_FLAGS["IOPOLL"])
        self._features = UringFeatures(
            kernel=platform.release(),
            depth=min(depth, self._state.sq_entries),
            sq_entries=self._state.sq_entries,
            cq_entries=self._state.cq_entries,
            setup_flags=tuple(name for name, bit in SETUP_FLAGS.items() if flags & bit),
            opcodes=frozenset(opcode for opcode in range(256) if supported[opcode]),
        )

    @property
    def features(self) -> UringFeatures:
        return self._features

    @property
    def enters(self) -> int:
        with self._counting:
            return int(self._state.enters) if self._state is not None else self._last_counts[0]

    @property
    def overflows(self) -> int:
        with self._counting:
            return int(self._state.overflows) if self._state is not None else self._last_counts[1]

    def lacks(self, features: int) -> bool:
        """Whether one of these ``IORING_FEAT_*`` bits is missing."""
        return bool(features & ~self._state.features)

    def is_forked(self) -> bool:
        return not self._owned[0]  # 0.04 us; through cffi's struct 0.15

    def is_hungry(self) -> bool:
        return bool(self._state.unsubmitted)

    def fileno(self) -> int:
        return int(self._lib.au_get_fd(self._ring))

    def enter(self) -> None:
        """
        Enter the kernel, to no end.

        :raises OSError: if that is not allowed
        """
        ret = self._lib.au_enter(self._ring)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    def poller_sleeps(self) -> bool:
        """Whether the thread of SQPOLL sleeps, so that the next submission has to wake it."""
        return bool(self._lib.au_poller_sleeps(self._ring))

    def restrict(self, file_slots: int) -> None:
        """
        Allow the opcodes and flags that this library uses, and no more; then enable the ring.

        Of a ring opened with ``R_DISABLED``.  What has to be registered or probed is, before this; of
        registrations only changes to the tables remain.

        :param file_slots: of the table of registered files
        """
        self._make_buffer_table()
        self._make_file_table(file_slots)
        # One that the kernel does not know, it does not let itself be told of either.
        opcodes = bytes(sorted(self._features.opcodes.intersection(Opcode)))
        ret = self._lib.au_restrict(self._ring, opcodes, len(opcodes), SQE_FLAGS)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    def limit_workers(self, bounded: int, unbounded: int) -> None:
        """
        Limit io-wq's workers, for files that cannot and that can block for ever (0: as is).

        They belong to the thread: the limit holds for all its rings, those opened later too.
        """
        ret = self._lib.au_limit_workers(self._ring, bounded, unbounded)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    def register_memory(self, memory: mmap.mmap) -> int:
        try:
            entry = self._register_memory(memory)
        except OSError as exc:
            reason = _memory_refused(exc.errno or errno.EIO, len(memory))
            self._features = attrs.evolve(self._features, fixed_buffers=reason)
            return -1
        self._features = attrs.evolve(self._features, fixed_buffers=_REGISTERED)
        return entry

    def _register_memory(self, memory: mmap.mmap) -> int:
        if self._entries_lack is None:
            self._make_buffer_table()
        if not self._entries:
            raise OSError(self._entries_lack, "no entry is free")
        data = self._ffi.from_buffer(memory)
        address = int(self._ffi.cast("uintptr_t", data))
        ret = self._lib.au_set_buffer(self._ring, self._entries[-1], address, len(memory))
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))
        return self._entries.pop()

    def _make_buffer_table(self) -> None:
        ret: int = self._lib.au_make_buffer_table(self._ring, POOLS_MAX)
        self._entries_lack = -ret or errno.ENOSPC
        self._entries = list(range(POOLS_MAX - 1, -1, -1)) if not ret else []

    def unregister_memory(self, entry: int) -> None:
        if entry < 0 or self._ring is None or self.is_forked():
            return
        # If the kernel has not even the memory to empty it, the entry is not used again.
        if self._lib.au_set_buffer(self._ring, entry, 0, 0) >= 0:
            self._entries.append(entry)

    def make_file_table(self, slots: int) -> bool:
        outcome = self._file_table or self._make_file_table(slots)
        self._note_files(outcome)
        return outcome == _REGISTERED

    def _make_file_table(self, slots: int) -> str:
        ret: int = self._lib.au_make_file_table(self._ring, slots)
        self._file_table = _REGISTERED if ret >= 0 else _files_refused(-ret, slots)
        return self._file_table

    def update_file(self, slot: int, fd: int) -> bool:
        if self._file_table != _REGISTERED or self._ring is None or self.is_forked():
            return False
        ret: int = self._lib.au_set_file(self._ring, slot, fd)
        self._note_files(_REGISTERED if ret >= 0 else _files_refused(-ret, 1))
        return ret >= 0

    def _note_files(self, outcome: str) -> None:
        if self._features.fixed_files != outcome:
            self._features = attrs.evolve(self._features, fixed_files=outcome)

    def _place(self, request: AnyRequest, head: int) -> tuple[int, int]:
        """Return where a request goes: its slot, and that it is one; or its descriptor."""
        found = self.fixed_files.get(id(request.file))
        return (request.fd, head) if found is None else (found[0], head | SQE_FIXED_FILE << 8)

    def allocate_batch(self, lengths: Sequence[int]) -> Memories:
        count = len(lengths)
        objects: list[Any] = [None] * count
        addresses = bytes(8 * count)  # nobody else has seen it: C may fill it
        if self._lib.au_new_bytes(id(objects), struct.pack(f"{count}I", *lengths), addresses, count) < 0:
            raise MemoryError
        return Memories(objects, lengths, addresses)

    @property
    def read_now(self) -> Callable[[int, Any, int, int], int]:
        return self._lib.au_read_now  # type: ignore[no-any-return]

    def expose(self, memory: Any) -> Any:
        return memory if type(memory) is bytes else self._ffi.from_buffer(memory)

    def prepare(self, user_data: int, requests: Requests) -> tuple[bytes, object, Any]:
        if self._iopoll:
            check_polled(requests)
        if isinstance(requests, Batch):
            rows, pins = self._prepare_columns(user_data, requests)
            return rows, pins, self._gather(user_data, len(requests))
        if len(requests) == 1:
            request = requests[0]
            memory = request.memory
            is_plain = request.opcode is Opcode.READ and type(memory) is bytes and not request.force_async
            if is_plain and len(memory) <= _INLINE_COPY_MAX and self._bytes_data:
                # Our own, of memory_type: 0.1 us to find its address, where cffi takes 0.65 us.
                fd, head = self._place(request, _READ) if self.fixed_files else (request.fd, _READ)
                address = id(memory) + self._bytes_data
                row = (user_data, address, request.offset, len(memory), fd, request.op_flags, head)
                return self._packers[0].pack(*row), memory, None
            one, pin = self._prepare_one(user_data, request)
            return self._packers[0].pack(*one), pin, None
        values, all_pins = [], []
        for member, request in enumerate(requests):
            one, pin = self._prepare_one(user_data + member * MEMBER, request)
            values.append(one)
            all_pins.append(pin)
        return self._pack(values), all_pins, self._gather(user_data, len(values))

    def _prepare_columns(self, user_data: int, batch: Batch) -> tuple[bytes, object]:
        """Pack a batch's rows in C, from columns: 0.3 us a row, where one by one takes 1.7."""
        lengths = batch.memories.lengths
        count = len(lengths)
        addresses = batch.memories.addresses
        if addresses is None:
            addresses, found = bytes(8 * count), bytes(4 * count)
            if self._lib.au_find_memory(id(batch.memories.objects), addresses, found, count) < 0:
                raise ValueError("a batch's buffers are to be writable and contiguous")
        entry = self._common_entry(batch.memories.objects) if self.fixed_memory else None
        rows = bytes(count * _ROW_SIZE)  # nobody else has seen it: C may fill it
        self._lib.au_pack(
            rows,
            count,
            user_data,
            MEMBER,
            batch.opcode if entry is None else _FIXED[int(batch.opcode)],
            # As for a single one: 256 reads of 64 KiB, cached, would hold the loop for 4 ms.
            SQE_ASYNC
            if sum(lengths) > _INLINE_BATCH_COPY_MAX and DISKS.issuperset(map(self._lib.au_file_type, {*batch.fds}))
            else 0,
            entry or 0,
            batch.op_flags,
            struct.pack(f"{count}i", *batch.fds),
            struct.pack(f"{count}I", *lengths),
            struct.pack(f"{count}q", *batch.offsets),
            addresses,
        )
        return rows, batch.memories.objects

    def _common_entry(self, memories: Sequence[Any]) -> int | None:
        """Return the entry that all of these views are of; None if there is none, and plain memory is always right."""
        owners = {id(memory.obj) if type(memory) is memoryview else 0 for memory in memories}
        entries = {self.fixed_memory.get(owner, (None,))[0] for owner in owners}
        return entries.pop() if len(entries) == 1 else None

    def _gather(self, user_data: int, count: int) -> Any:
        """Let C collect the results of an operation's members: Python hears of them once a turn."""
        results = self._ffi.new("int32_t[]", count)
        ret = self._lib.au_gather(self._ring, user_data, results, count)  # not inside the assert: python -O
        assert ret == 0, "C3: more operations than entries"
        return results

    def retire(self, user_data: int) -> None:
        self._lib.au_gather(self._ring, user_data, self._ffi.NULL, 0)

    def _prepare_call(self, user_data: int, call: Call) -> tuple[tuple[int, ...], object]:
        # By its descriptor, also if the file is registered: several of these know no IOSQE_FIXED_FILE.
        first, first_pin = self._point_to(call.first)
        second, second_pin = self._point_to(call.second)
        head = int(call.opcode) | (SQE_ASYNC << 8 if call.force_async else 0)
        length, op_flags = call.length & _UINT32_MAX, call.op_flags & _UINT32_MAX
        return (user_data, first, second, length, call.fd, op_flags, head), (call, first_pin, second_pin)

    def _point_to(self, value: bytes | bytearray | memoryview | int) -> tuple[int, object]:
        if isinstance(value, int):
            return value, None
        pin = self._ffi.from_buffer(value)
        return int(self._ffi.cast("uintptr_t", pin)), pin

    def _prepare_one(self, user_data: int, request: AnyRequest) -> tuple[tuple[int, ...], object]:
        if isinstance(request, Call):
            return self._prepare_call(user_data, request)
        memory = request.memory
        head = int(request.opcode)
        fd = request.fd
        if self.fixed_files:
            fd, head = self._place(request, head)
        if request.is_linked:
            head |= SQE_LINK << 8
        if memory is None:  # a sync, which is not asked again
            return (user_data, 0, 0, 0, fd, request.op_flags, head), request
        find = self._lib.au_address
        if isinstance(memory, list):
            ffi = self._ffi
            vector = ffi.new("au_iovec[]", [(find(id(view)), len(view)) for view in memory])
            address, length, size = int(ffi.cast("uintptr_t", vector)), len(memory), request.size
            pin: object = (memory, vector)
        else:
            # The request's memory is an export already, or our own.
            pin, address, length = memory, find(id(memory)), len(memory)
            size = length
            if self.fixed_memory and type(memory) is memoryview:
                found = self.fixed_memory.get(id(memory.obj))
                if found is not None:
                    head = head & ~_OPCODE_MASK | _FIXED[head & _OPCODE_MASK] | found[0] << 16
        is_write = request.opcode in WRITES
        # A worker of the kernel would wait in spite of RWF_NOWAIT.
        may_hold = (is_write or size > _INLINE_COPY_MAX) and not request.op_flags & NOWAIT
        if request.force_async or (may_hold and self._would_hold_the_loop(request.fd, size, is_write=is_write)):
            head |= SQE_ASYNC << 8
        return (user_data, address, request.offset, length, fd, request.op_flags, head), pin

    def _would_hold_the_loop(self, fd: int, size: int, *, is_write: bool) -> bool:
        """
        Whether to leave a transfer to a worker of the kernel (``IOSQE_ASYNC``), because trying it inline could block.

        A full terminal's write does (seen on Linux 6.18: the event loop stood still), though io_uring asks not to
        wait; from a worker it can be cancelled.  And what is large and cached is copied inside
        ``io_uring_enter(2)``: 64 MiB took 14 ms, and 0.01 ms with a worker.  Not of pipes and sockets, which may
        wait for ever: each would hold a worker where a poll holds none.
        """
        kind: int = self._lib.au_file_type(fd)
        return (is_write and kind == stat.S_IFCHR) or (size > _INLINE_COPY_MAX and kind in DISKS)

    def _pack(self, rows: Sequence[tuple[int, ...]]) -> bytes:
        packed = []
        done = 0
        while done < len(rows):
            power = min((len(rows) - done).bit_length() - 1, _PACK_POWER_MAX)
            block = rows[done : done + (1 << power)]
            packed.append(self._packers[power].pack(*chain.from_iterable(block)))
            done += len(block)
        return b"".join(packed)

    def turn(self, targets: Sequence[int], segments: Sequence[tuple[bytes, int, int]]) -> tuple[int, Sequence[int]]:
        parts: list[bytes] = []
        if targets:
            parts.append(self._pack([(CANCEL | target, target, 0, 0, -1, 0, _ASYNC_CANCEL) for target in targets]))
        for rows, first, last in segments:
            is_whole = len(rows) == (last - first) * _ROW_SIZE
            parts.append(rows if is_whole else rows[first * _ROW_SIZE : last * _ROW_SIZE])
        packed = b"".join(parts)
        count = len(packed) // _ROW_SIZE
        drained: int = self._lib.au_turn(self._ring, packed, count, self._out, self._capacity)
        if drained < 0:
            raise OSError(-drained, f"io_uring_enter failed: {os.strerror(-drained)}")
        taken = int(self._state.consumed) if count else 0
        if not drained:
            return taken, ()
        return taken, self._ffi.unpack(self._out_flat, 2 * drained)

    def close(self) -> None:
        if self._ring is not None:
            with self._counting:
                self._last_counts = int(self._state.enters), int(self._state.overflows)
                self._state = None
            self._lib.au_close(self._ring)
            self._ring = None
            self._owned = memoryview(b"\1")
            self.fixed_memory.clear()
            self.fixed_files.clear()
