"""Buffers of one registered piece of memory: given out, taken back, never taken back while in use.

Knows memory, its exports and who waits for it; it does not know what a registration is good for, or
how a driver finds out that a view belongs to it.
"""

from __future__ import annotations

import mmap
import pickle
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Protocol

import anyio

from ._config import parse_size

# io_uring_register(2), IORING_REGISTER_BUFFERS: what one entry of the table holds at most.
POOL_BYTES_MAX: Final = 1 << 30
# Transparent huge pages; from this size on at least one can be in a pool.
_HUGE_PAGE: Final = 2 << 20


class Registrar(Protocol):
    """What a pool asks of a driver."""

    name: Any
    fixed_memory: dict[int, tuple[int, memoryview]]
    """``{id() of the object that a view is of: (its entry, that object)}``."""

    def register_memory(self, memory: mmap.mmap) -> int:
        """Register memory with the kernel; return its entry, or -1 if it stays plain, which ``features`` explains."""
        ...

    def unregister_memory(self, entry: int) -> None:
        """Undo that, if the ring still exists."""
        ...

    @property
    def features(self) -> Any:
        """What the kernel gives, ``fixed_buffers`` among it."""
        ...


def padded(size: int) -> int:
    """Return a size in whole pages, so that each buffer begins on one."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def check_pool(count: int, size: int) -> None:
    """
    Refuse a pool that the kernel would not register.

    :raises ValueError: if it takes more than 1 GiB
    """
    total = count * padded(size)
    if total > POOL_BYTES_MAX:
        raise ValueError(
            f"a pool of {count} buffers of {size} bytes takes {total} bytes (in whole pages), and the kernel "
            f"registers at most {POOL_BYTES_MAX} (1 GiB) in one piece: ask for less, or for several pools"
        )


class FixedBuffer:
    """
    One buffer of a pool; :meth:`BufferPool.acquire` gives it.

    It goes wherever a buffer goes, and so do :attr:`view` and slices of it: verbs of the manager that
    registered it then need not look up and pin its pages (``IORING_OP_READ_FIXED``, ``WRITE_FIXED``).
    Elsewhere it is memory like any other.  From Python 3.12 ``memoryview(buffer)`` works, too.

    A context manager: the end of its block releases it, unless that was done before.  Its content is
    whatever the one before has left in it.
    """

    __slots__ = ("__weakref__", "_index", "_inner", "_pool", "_view")

    def __init__(self, pool: BufferPool, index: int, inner: memoryview) -> None:
        self._pool = pool
        self._index = index
        # Every view that a user has, or makes, is an export of this object, and no view is one of the
        # memory itself: so releasing it fails as long as one is left.  On all versions of Python.
        self._inner: memoryview | None = inner
        self._view = _export(inner)

    def __repr__(self) -> str:
        state = "released" if self._inner is None else f"{len(self._inner)} bytes"
        return f"<FixedBuffer {self._index} {state}>"

    def __len__(self) -> int:
        """Return its size in bytes, which is the pool's ``size``."""
        return self._pool.size

    @property
    def view(self) -> memoryview:
        """
        Its memory: writable bytes, aligned to a page.

        :raises ValueError: after its release
        """
        if self._inner is None:
            raise ValueError("this buffer has been released, and may be somebody else's now: acquire another")
        return self._view

    def __buffer__(self, flags: int, /) -> memoryview:
        """Give its memory, from Python 3.12 to whatever takes a buffer."""
        return memoryview(self.view)

    def release(self) -> None:
        """
        Give it back to the pool; :attr:`view` cannot be used any more then.

        :raises BufferError: if an operation with it is in flight, or a slice of its view (or an array made
            of it) is alive; it stays acquired then.  A :attr:`view` that was kept from before may have been released
            all the same, which shows whether there are slices: take it anew
        :raises ValueError: if it was released before
        :raises RuntimeError: in another thread
        """
        inner = self._inner
        if inner is None:
            raise ValueError("this buffer has been released before")
        self._pool._check_thread()
        try:
            self._view.release()
            try:
                inner.release()
            except BufferError:
                self._view = _export(inner)
                raise
        except BufferError:
            raise BufferError(
                "this buffer cannot be released: it is in flight, or a slice of its view is alive; "
                "wait for the operation, or release the slice (del, or 'with view[a:b] as part:')"
            ) from None
        self._inner = None
        self._pool._take_back(self._index, inner)

    def __enter__(self) -> FixedBuffer:  # noqa: PYI034 - Self is new in Python 3.11
        """Return itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release it, unless that was done before; raises what :meth:`release` raises."""
        if self._inner is not None:
            self.release()


class BufferPool:
    """
    Page-aligned buffers, registered with the kernel; :meth:`AsyncIoManager.buffer_pool` makes one.

    To be used with ``async with``.  At the end of its block nobody is waited for: buffers that are still
    held stay valid and registered until they are released, and the memory is given up with the last one.

    :ivar count: how many buffers it has
    :ivar size: bytes in each
    """

    __slots__ = (
        "__weakref__",
        "_check",
        "_entry",
        "_free",
        "_is_closed",
        "_is_opened",
        "_memory",
        "_registrar",
        "_semaphore",
        "_thread",
        "count",
        "size",
    )

    def __init__(self, registrar: Registrar, check: Callable[[], None], count: int, size: int | str) -> None:
        _check_count(count)
        self.count: int = count
        self.size: int = parse_size(size)
        check_pool(count, self.size)
        self._registrar = registrar
        self._check = check
        self._thread = get_ident()
        self._is_opened = self._is_closed = False
        self._entry = -1

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._is_opened else "not open"
        return f"<BufferPool count={self.count} size={self.size} {state}>"

    @property
    def available(self) -> int:
        """How many buffers nobody holds."""
        return len(self._free) if self._is_opened else 0

    @property
    def is_registered(self) -> bool:
        """Whether the kernel has its memory registered; if not, ``io.features.fixed_buffers`` says why."""
        return self._entry >= 0

    async def acquire(self) -> FixedBuffer:
        """
        Return a buffer that nobody else has; where there is none, wait for one, first come first served.

        :raises anyio.ClosedResourceError: at and after the end of the pool's or the manager's block, also
            to those who wait
        :raises RuntimeError: in another thread, or in a forked child

        If it raises the cancellation, no buffer is lost.
        """
        self._check()
        if not self._is_opened:
            raise RuntimeError("enter 'async with io.buffer_pool(...) as pool:' first")
        if not self._has_ended():
            await self._semaphore.acquire()
        if self._has_ended():
            raise anyio.ClosedResourceError("the block of this buffer pool has ended")
        index = self._free.pop()  # the one released last: its memory is the likeliest to be cached
        start = index * padded(self.size)
        inner = memoryview(self._memory)[start : start + self.size]
        if self._entry >= 0:
            self._registrar.fixed_memory[id(inner)] = self._entry, inner
        return FixedBuffer(self, index, inner)

    async def __aenter__(self) -> BufferPool:  # noqa: PYI034 - Self is new in Python 3.11
        """
        Map the memory and register it.

        Where the kernel will not register it (``RLIMIT_MEMLOCK``, before Linux 5.19), there is a
        :class:`RuntimeWarning`, and the buffers work as plain memory.

        :raises OSError: if there is not so much memory
        :raises RuntimeError: if it was entered before
        """
        self._check()
        if self._is_opened:
            raise RuntimeError("a buffer pool is opened once: make another with io.buffer_pool()")
        await anyio.lowlevel.checkpoint()
        problem = self._open()
        if problem is not None:
            warnings.warn(problem, RuntimeWarning, stacklevel=2)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it, without waiting for anyone."""
        self._close()

    def _open(self) -> str | None:
        """Open it; return what to warn of."""
        total = self.count * padded(self.size)
        self._memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if total >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages (EINVAL): small ones do as well
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._entry = self._registrar.register_memory(self._memory)
        self._free = list(range(self.count - 1, -1, -1))
        self._semaphore = anyio.Semaphore(self.count)
        self._is_opened = True
        # Threads have nothing to register with, which nobody needs to be warned of.
        is_refused = self._entry < 0 and self._registrar.name == "uring"
        return self._registrar.features.fixed_buffers if is_refused else None

    def _close(self) -> None:
        self._is_closed = True
        for _ in range(self._semaphore.statistics().tasks_waiting):
            self._semaphore.release()
        self._give_up_if_unused()

    def _has_ended(self) -> bool:
        return self._is_closed

    def _check_thread(self) -> None:
        if get_ident() != self._thread:
            raise RuntimeError("this buffer belongs to another thread: release it there")

    def _take_back(self, index: int, inner: memoryview) -> None:
        self._registrar.fixed_memory.pop(id(inner), None)
        self._free.append(index)
        if self._is_closed:
            self._give_up_if_unused()
        else:
            self._semaphore.release()

    def _give_up_if_unused(self) -> None:
        """Unregister, once nothing staged or in flight can mean this entry: operations have views, and views are gone."""
        if len(self._free) == self.count and not self._memory.closed:
            self._registrar.unregister_memory(self._entry)
            self._entry = -1
            self._memory.close()


def _check_count(count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"count must be an int, not {type(count).__name__}")
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}")


def _export(inner: memoryview) -> memoryview:
    """
    Return a view whose exporter is ``inner`` itself: ``memoryview(inner)`` would be one of what is below it.

    So ``inner`` counts this view and all that are made of it, and they name it as their ``obj``.
    """
    view = memoryview(pickle.PickleBuffer(inner))
    assert view.obj is inner, sys.version
    return view
