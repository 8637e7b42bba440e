"""What is asked of a driver, as data.

A request names an opcode, a descriptor and memory.  It does not know who asks, who
waits, or how a driver carries it out.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol, Union

import attrs

from . import _statx
from ._errors import describe


class HasFileno(Protocol):
    """Anything with a ``fileno()``: a file object, a socket, a :class:`multiprocessing.connection.Connection`."""

    def fileno(self) -> int:
        """Return the descriptor's number."""
        ...


class Opcode(enum.IntEnum):
    """
    The opcodes in use: numbers of the kernel's ABI (``linux/io_uring.h``), which never change.

    A ring opened with ``restrict=True`` carries out these, and no other.
    """

    READV = 1
    WRITEV = 2
    FSYNC = 3
    # What a driver makes of READ and WRITE where their memory is registered; nobody else names them.
    READ_FIXED = 4
    WRITE_FIXED = 5
    SYNC_FILE_RANGE = 8
    ASYNC_CANCEL = 14
    FALLOCATE = 17
    OPENAT = 18
    CLOSE = 19
    STATX = 21
    READ = 22
    WRITE = 23
    FADVISE = 24
    RENAMEAT = 35  # Linux 5.11, as UNLINKAT
    UNLINKAT = 36
    MKDIRAT = 37  # 5.15, as the next two
    SYMLINKAT = 38
    LINKAT = 39
    FSETXATTR = 41  # 5.19, as FGETXATTR
    FGETXATTR = 43
    FTRUNCATE = 55  # 6.9


# IOSQE_FIXED_FILE, IOSQE_IO_LINK, IOSQE_ASYNC; and every flag of a submission queue entry that is in use: a ring opened
# with restrict=True refuses the others.
SQE_FIXED_FILE: Final = 1 << 0
SQE_LINK: Final = 1 << 2
SQE_ASYNC: Final = 1 << 4
SQE_FLAGS: Final = SQE_FIXED_FILE | SQE_LINK | SQE_ASYNC
WRITES: Final = frozenset({Opcode.WRITE, Opcode.WRITEV})

# linux/fs.h, MAX_RW_COUNT: the most that one read or write moves; a multiple of the page size.
TRANSFER_MAX: Final = 0x7FFFF000
# linux/uio.h, UIO_MAXIOV: the most buffers that one readv or writev takes.
VECTOR_MAX: Final = 1024
# EINTR; and ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (linux/errno.h), which system calls
# never show and the ring does: an open of a FIFO that io-wq was told to give up answers 512 (seen on Linux 6.18).
INTERRUPTED: Final = frozenset({-errno.EINTR, -512, -513, -514, -516})
# linux/io_uring.h: sqe->fsync_flags.
FSYNC_DATASYNC: Final = 1


@attrs.define(eq=False)
class Request:
    """
    One operation of the kernel.

    :ivar memory: a buffer (READ, WRITE), a list of them (READV, WRITEV) or ``None``
    :ivar offset: byte offset in the file; -1 is the file position, as in the kernel
    :ivar file: the object whose ``fileno()`` gave ``fd``: held, so that it is not collected meanwhile
    :ivar force_async: do not try inline first (``IOSQE_ASYNC``): set when an operation is asked again
    :ivar is_kept: a driver still has it, and nobody waits for it any more: its memory stays exported
    :ivar origin: the request whose memory this one shares, with another offset or a part of it
    :ivar is_linked: the operation's next request begins when this one has been carried out whole
        (``IOSQE_IO_LINK``); if it fails or is short, the next does not happen: ``-ECANCELED``
    """

    opcode: Opcode
    fd: int
    memory: Any
    offset: int
    op_flags: int = 0
    file: object = None
    force_async: bool = False
    is_linked: bool = False
    is_kept: bool = False
    origin: Request | None = None

    @property
    def size(self) -> int:
        """Bytes to transfer."""
        if self.memory is None:
            return 0
        return sum(map(len, self.memory)) if isinstance(self.memory, list) else len(self.memory)

    @property
    def is_long(self) -> bool:
        """Whether the kernel takes it in parts only."""
        memory = self.memory
        if isinstance(memory, list):
            return len(memory) > VECTOR_MAX or self.size > TRANSFER_MAX
        return memory is not None and len(memory) > TRANSFER_MAX

    def rest(self, done: int) -> Request:
        """Return the request for what is behind the first ``done`` bytes of one buffer."""
        return attrs.evolve(self, memory=memoryview(self.memory)[done:], offset=self.advanced(done), origin=self)

    def parts(self) -> Iterator[Request]:
        """
        Yield requests that the kernel takes whole, all at the offset of this one.

        Whoever performs them advances the offset, by what was really transferred.
        """
        if isinstance(self.memory, list):
            for vector in _vectors(self.memory):
                yield attrs.evolve(self, memory=vector, origin=self)
        else:
            view = memoryview(self.memory)
            for start in range(0, len(view), TRANSFER_MAX):
                yield attrs.evolve(self, memory=view[start : start + TRANSFER_MAX], origin=self)

    def release(self) -> None:
        """
        Give up the exports of callers' memory, without waiting for a traceback or the collector to do so.

        Memory that a driver still has stays exported: after a crash of the owner, for ever (C11).
        """
        if not self.is_kept:
            _release(self.memory if isinstance(self.memory, list) else (self.memory,))

    def advanced(self, done: int) -> int:
        """Return the offset behind ``done`` bytes; the file position (-1) moves by itself."""
        return self.offset if self.offset < 0 else self.offset + done


@attrs.define(eq=False)
class Call:
    """
    One operation of the kernel that moves no file data: it has a path, or a descriptor, and a few numbers.

    Beside a :class:`Request` it goes through the same drivers, and so under the same contract.

    :ivar fd: the descriptor; the directory that a path is relative to
    :ivar run: does the same with a system call: returns its result, 0 or more, or raises :class:`OSError`
    :ivar first: what ``sqe->addr`` points to (a path that ends with a zero byte ...), or the number in its place
    :ivar second: the same of ``sqe->addr2``, which is ``sqe->off``, too
    :ivar length: ``sqe->len``
    :ivar op_flags: ``sqe->open_flags``, ``statx_flags`` ...
    :ivar file: the object whose ``fileno()`` gave ``fd``, as a request's
    :ivar names: for an error: no, one or two paths
    :ivar reasons: what an errno means here, where ``strerror()`` would say too little
    :ivar failure: what ``run`` has raised, if it was no :class:`OSError` (a :class:`MemoryError`)
    :ivar fits_ring: whether an entry of the submission queue has room for it
    :ivar opens: whether its result is a new descriptor
    """

    opcode: Opcode
    fd: int
    run: Callable[[], int] = attrs.field(repr=False)
    first: bytes | bytearray | memoryview | int = 0
    second: bytes | bytearray | memoryview | int = 0
    length: int = 0
    op_flags: int = 0
    file: object = None
    names: tuple[object, ...] = ()
    reasons: Mapping[int, str] = attrs.field(factory=dict)
    force_async: bool = False
    fits_ring: bool = True
    opens: bool = False
    failure: Exception | None = None
    # As a request has them.
    memory: ClassVar[Any] = None
    size: ClassVar[int] = 0
    is_linked: ClassVar[bool] = False

    @property
    def offset(self) -> int:
        """What instruments are told: the byte offset, of those that have one."""
        return self.second if isinstance(self.second, int) else 0

    def error(self, res: int) -> OSError:
        """Return the error of a negative result, as :mod:`os` would raise it."""
        code = errno.EINTR if res in INTERRUPTED else -res
        first, second = (*self.names, None, None)[:2]
        return OSError(code, self.reasons.get(code) or describe(code), first, None, second)


@attrs.define(eq=False)
class Memories:
    """
    The memory of a batch: new, or callers'.

    :ivar objects: ``bytes`` or ``bytearray``; views of what belongs to callers
    :ivar lengths: of each
    :ivar addresses: of each, as packed unsigned 64-bit ints, where the driver knows them
    """

    objects: list[Any]
    lengths: Sequence[int]
    addresses: bytes | None = None
    is_kept: bool = False

    def release(self) -> None:
        """Give up the exports of callers' memory, as :meth:`Request.release` does."""
        if not self.is_kept:
            _release(self.objects)


@attrs.define(eq=False)
class Batch:
    """
    Many reads of one buffer each, or calls of one kind, as columns: making a :class:`Request` of each takes 0.8 us.

    A sequence of requests for everyone who does not know better.

    :ivar memories: of calls, what ``sqe->addr`` points to, with ``sqe->len`` as their lengths
    :ivar op_flags: of each
    :ivar make_call: returns a member, if they are calls
    """

    opcode: Opcode
    fds: Sequence[int]
    memories: Memories
    offsets: Sequence[int]
    op_flags: int = 0
    make_call: Callable[[int], Call] | None = None

    def __len__(self) -> int:
        return len(self.fds)

    def __getitem__(self, index: int) -> Any:
        if self.make_call is not None:
            return self.make_call(index)
        return Request(self.opcode, self.fds[index], self.memories.objects[index], self.offsets[index])

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self.fds)))


AnyRequest = Union[Request, Call]
DataRequests = Union[Sequence[Request], Batch]
Requests = Union[Sequence[AnyRequest], Batch]


def keep(requests: Requests) -> None:
    """Have the release of these change nothing, for a driver goes on with them (C2)."""
    if isinstance(requests, Batch):
        requests.memories.is_kept = True
    else:
        for each in requests:
            request = each if isinstance(each, Request) else None
            while request is not None:
                request.is_kept = True
                request = request.origin


def is_kept(requests: Sequence[AnyRequest]) -> bool:
    """Whether a driver has the memory of these still, though nobody waits for them any more."""
    return any(isinstance(request, Request) and request.is_kept for request in requests)


def file_type(fd: int) -> int:
    """Return the type bits of a descriptor's file (``stat.S_IFREG`` ...); 0 if it is none. It asks no server."""
    try:
        return stat.S_IFMT(_statx.known(fd).st_mode)
    except OSError:
        return 0


_O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
# Files whose transfers end by themselves: they cannot block for ever.
DISKS: Final = frozenset({stat.S_IFREG, stat.S_IFBLK})


def check_polled(requests: Requests) -> None:
    """
    Refuse what a ring that polls its devices (``IORING_SETUP_IOPOLL``) cannot do, with the remedy.

    The kernel's own answers, ``EOPNOTSUPP`` and ``EINVAL``, would not say which option is in the way.

    :raises ValueError: at a sync, and at a descriptor without ``O_DIRECT``
    """
    for request in requests:
        if isinstance(request, Call):
            continue  # never of a ring: a thread carries it out
        if request.opcode is Opcode.FSYNC:
            raise ValueError(
                "iopoll=True polls for reads and writes and cannot sync: "
                "sync through a manager opened without iopoll, or open the file with O_DSYNC"
            )
        # What is no descriptor at all is left to the kernel, and to its EBADF.
        if not is_direct(request.fd) and file_type(request.fd):
            raise ValueError(
                f"iopoll=True takes descriptors opened with O_DIRECT alone, and {request.fd} is not: "
                "open it with O_DIRECT, or the manager without iopoll"
            )


def is_direct(fd: int) -> bool:
    """
    Whether a descriptor is a disk file open with ``O_DIRECT`` (of a pipe, the flag means packets).

    Asked each time, for a number can come to mean another file; and of the kernel's memory alone, where ``fstat(2)``
    may wait for a server.
    """
    return bool(status_flags(fd) & _O_DIRECT) and not _is_pipe(fd)


def _is_pipe(fd: int) -> bool:
    if not hasattr(fcntl, "F_GETPIPE_SZ"):  # pragma: no cover - not Linux
        return file_type(fd) == stat.S_IFIFO
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) > 0
    except OSError:
        return False


def status_flags(fd: int) -> int:
    """Return a descriptor's ``O_*`` flags; 0 if it cannot be asked."""
    if fd < 0:
        return 0  # fcntl() would call it a ValueError
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError:
        return 0


def _release(memories: Iterable[Any]) -> None:
    for memory in memories:
        if type(memory) is memoryview:
            memory.release()


def _vectors(views: list[memoryview]) -> Iterator[list[memoryview]]:
    """Split a vector into vectors that one operation takes; an empty one stays as it is."""
    vector: list[memoryview] = []
    room = TRANSFER_MAX
    for whole in views:
        view = whole
        while len(vector) == VECTOR_MAX or len(view) > room:
            if room and len(vector) < VECTOR_MAX:
                vector.append(view[:room])
                view = view[room:]
            yield vector
            vector, room = [], TRANSFER_MAX
        vector.append(view)
        room -= len(view)
    yield vector
