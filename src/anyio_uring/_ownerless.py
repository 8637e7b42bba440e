"""Requests carried out where no manager is open: each operation is one call of ``anyio.to_thread.run_sync()``.

There is no ring, no task that owns anything, no thread of its own and so nothing to close.  It knows
requests and their results; it knows nothing of files, managers or who asked.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

import anyio

from ._fallback import _call, _execute, _read_now
from ._fixed_files import hold, let_go
from ._options import DriverName
from ._requests import AnyRequest, Call, Memories, Opcode, Requests
from ._stats import IoStatistics, UringFeatures
from ._transfers import Transfers
from ._waiters import Loop

if TYPE_CHECKING:
    import mmap

_READS: Final = frozenset({Opcode.READ, Opcode.READV})
_CANCELED: Final = -errno.ECANCELED
# Members of a chain, which a single thread carries out one after the other.
_DEPTH: Final = 256


class OwnerlessExecutor:
    """
    Fulfils :class:`anyio_uring._executor.Executor` and ``Facilities``, both.

    Transfers that would block for ever (an empty pipe) hold no thread: the event loop waits for the descriptor.
    """

    __slots__ = (
        "_completions",
        "_enters",
        "_features",
        "_in_flight_max",
        "_limiter",
        "_loop",
        "_pid",
        "_submissions",
        "depth",
        "fixed_files",
        "fixed_memory",
        "has_crashed",
        "is_usable",
        "thread",
        "transfers",
    )

    name: DriverName = "threads"
    memory_type = bytearray

    def __init__(self, loop: Loop, limiter: anyio.CapacityLimiter | None) -> None:
        """
        Start nothing.

        :param limiter: of the threads that work at once; ``None``: anyio's own
        """
        if not hasattr(os, "preadv"):
            raise NotImplementedError(
                f"anyio_uring needs os.preadv(), which {platform.system()} lacks: use Linux, macOS or a BSD"
            )
        self._loop = loop
        self._limiter = limiter
        self._pid = os.getpid()
        self._submissions = self._completions = self._enters = self._in_flight_max = 0
        self._features = UringFeatures(
            kernel=platform.release(),
            depth=_DEPTH,
            sq_entries=0,
            cq_entries=0,
            setup_flags=(),
            opcodes=frozenset(),
            fixed_buffers="plain memory: threads have no ring",
            fixed_files="plain descriptors: threads have no ring",
        )
        self.depth: int = _DEPTH
        self.thread: int = get_ident()
        self.is_usable: bool = True
        self.has_crashed: bool = False
        self.transfers: Transfers = Transfers()
        self.fixed_memory: dict[int, tuple[int, memoryview]] = {}
        self.fixed_files: dict[int, tuple[int, object]] = {}
        loop.protect(OwnerlessExecutor.perform)  # type: ignore[arg-type]

    # --- Executor -------------------------------------------------------------------------------

    def check(self) -> None:
        if get_ident() != self.thread:
            raise RuntimeError(
                "this file or manager belongs to another thread: open one in each thread, "
                "or reach its event loop with anyio.from_thread.run()"
            )
        if self.is_forked():
            raise RuntimeError("this file or manager belongs to the parent process: open a new one in the forked child")

    async def perform(
        self,
        requests: Requests,
        *,
        has_passed: bool = False,  # noqa: ARG002 - waiting for a thread is a cancellation point anyhow
        is_chain: bool = False,
        is_certain: bool = False,
    ) -> list[int]:
        self.check()
        if not requests:
            await self._loop.checkpoint()  # C1
            return []
        targets = hold(requests)
        try:
            self._submissions += len(requests)
            self._in_flight_max = max(self._in_flight_max, self._submissions - self._completions)
            results: list[int | None] = [None] * len(requests)
            try:
                await self._carry_out(requests, results, is_chain=is_chain, is_certain=is_certain)
            finally:
                self._completions += len(requests)
                settled = [_CANCELED if res is None else res for res in results]
                self.transfers.count(requests, settled)
        finally:
            if targets is not None:
                let_go(targets)
        return settled

    def statistics(self) -> IoStatistics:
        completions, submissions = self._completions, self._submissions
        return IoStatistics(
            driver=self.name,
            submissions=submissions,
            completions=completions,
            syscalls=self._enters,
            average_batch_size=submissions / self._enters if self._enters else 0.0,
            in_flight=submissions - completions,
            in_flight_max=self._in_flight_max,
            waiting=0,
            bytes_read=self.transfers.bytes_read,
            bytes_written=self.transfers.bytes_written,
            short_reads=self.transfers.short_reads,
            short_writes=self.transfers.short_writes,
            cancellations=0,
            cancellations_effective=0,
            resubmissions=0,
            overflows=0,
        )

    # --- Facilities -----------------------------------------------------------------------------

    @property
    def features(self) -> UringFeatures:
        return self._features

    def is_forked(self) -> bool:
        return os.getpid() != self._pid

    @property
    def read_now(self) -> Callable[[int, Any, int, int], int]:
        return _read_now

    def allocate_batch(self, lengths: Sequence[int]) -> Memories:
        return Memories([*map(bytearray, lengths)], lengths)

    def expose(self, memory: Any) -> Any:
        return memory

    def register_memory(self, memory: mmap.mmap) -> int:  # noqa: ARG002 - there is no ring to register it with
        return -1

    def unregister_memory(self, entry: int) -> None:
        """Do nothing."""

    def make_file_table(self, slots: int) -> bool:  # noqa: ARG002
        return False

    def update_file(self, slot: int, fd: int) -> bool:  # noqa: ARG002
        return False

    # --- inside ---------------------------------------------------------------------------------

    async def _carry_out(
        self, requests: Requests, results: list[int | None], *, is_chain: bool, is_certain: bool
    ) -> None:
        """Fill in the results; what is not ready is waited for, and tried again."""
        while True:
            job = partial(_carry_out_ready, requests, results, is_chain=is_chain)
            tried = await self._loop.run_in_thread(job, self._limiter, is_certain=is_certain)
            self._enters += tried
            left = [i for i, res in enumerate(results) if res is None]
            if not left:
                return
            awaited = left[:1] if is_chain else left
            try:
                await _wait_for_any([requests[i] for i in awaited])
            except OSError as exc:  # no descriptor is free to wait with: an error of those, for others have results
                for i in awaited:
                    results[i] = -(exc.errno or errno.EIO)
                return


def _carry_out_ready(requests: Requests, results: list[int | None], *, is_chain: bool) -> int:
    """Carry out, in a worker thread, what has no result yet and need not wait; return how many were tried."""
    tried = 0
    for i, request in enumerate(requests):
        if results[i] is not None:
            continue
        tried += 1
        results[i] = res = _call(request) if isinstance(request, Call) else _execute(request)
        if not is_chain:
            continue
        if res is None:
            break
        if request.is_linked and res != request.size:
            results[i + 1 :] = [_CANCELED] * (len(requests) - i - 1)
            break
    return tried


async def _wait_for_any(requests: Sequence[AnyRequest]) -> None:
    """Wait until one of these requests' descriptors is ready, without a thread."""
    with ExitStack() as twins:
        waits: list[Callable[[], Awaitable[None]]] = []
        for request in requests:
            try:
                # An event loop takes one waiter for each descriptor, so every waiter has its own.
                twin = os.dup(request.fd)
            except OSError as exc:
                if exc.errno == errno.EBADF:
                    return  # closed meanwhile: the next attempt says so
                raise
            twins.callback(os.close, twin)
            waits.append(partial(anyio.wait_readable if request.opcode in _READS else anyio.wait_writable, twin))
        if len(waits) == 1:
            await waits[0]()
            return
        async with anyio.create_task_group() as waiting:

            async def wait(until_ready: Callable[[], Awaitable[None]]) -> None:
                await until_ready()
                waiting.cancel_scope.cancel()

            for until_ready in waits:
                waiting.start_soon(wait, until_ready)
