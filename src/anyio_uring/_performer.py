"""From requests to results: parts, rests, what has to be asked again, and errors that say what was wrong.

It knows requests, their memory and what carries them out; of callers' arguments it knows nothing, nor of
the life of a manager.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence
from typing import Final

import anyio
import attrs

from . import _arguments, _direct, _flags
from ._arguments import FileDescriptor
from ._errors import MisalignedError
from ._executor import Executor, Facilities
from ._fallback import transfer_now
from ._fixed_files import hold, let_go
from ._flags import NOWAIT
from ._requests import TRANSFER_MAX, WRITES, Call, DataRequests, Opcode, Request, is_direct
from ._statx import SAFE_ALIGNMENT
from ._thread_calls import ThreadCalls
from ._waiters import Loop, current_loop

# More than a process has open; beyond it one refused read more for each.
_DIRECT_FDS_MAX: Final = 4096


class Performer:
    """
    Performs what a manager's methods ask for.

    :ivar direct_fds: descriptors whose reads have been refused for the sake of their memory: the next ones get
        aligned memory
    """

    __slots__ = ("_checkpoint", "_driver", "_memory_type", "_task", "_thread_calls", "direct_fds")

    def __init__(self, task: Executor, driver: Facilities, loop: Loop, thread_calls: ThreadCalls | None) -> None:
        self._task = task
        self._thread_calls = thread_calls
        self._driver = driver
        self._checkpoint = loop.checkpoint
        self._memory_type = driver.memory_type
        self.direct_fds: set[int] = set()

    def read_request(self, fd: FileDescriptor, length: int, offset: int, flags: int = 0) -> Request:
        number, file, length, offset = _arguments.read(fd, length, offset)
        return self.new_read(number, file, length, offset, flags)

    def new_read(self, number: int, file: object, length: int, offset: int, flags: int) -> Request:
        flags = _flags.check(flags) if flags else 0
        # What is not the driver's to fill, Python fills, and it fills no bytes.
        memory = bytearray(length) if flags & NOWAIT else self.allocate(length, number)
        return Request(Opcode.READ, number, memory, offset, flags, file)

    def allocate_for_chain(self, length: int, fd: int) -> bytes | bytearray | memoryview:
        # A member cannot be asked again with other memory, as read() can.
        return _direct.aligned_buffer(length) if is_direct(fd) else self.allocate(length, fd)

    def allocate(self, length: int, fd: int) -> bytes | bytearray | memoryview:
        if fd in self.direct_fds:
            if is_direct(fd):
                return _direct.aligned_buffer(length)
            self.direct_fds.discard(fd)  # the number means another file now
        # Objects of 0 and 1 byte can be shared by the interpreter.
        return self._memory_type(length) if length > 1 else bytearray(length)

    async def read_to_new_memory(self, request: Request) -> bytes:
        try:
            return _arguments.to_bytes(request.memory, await self.transfer(request))
        except MisalignedError as exc:
            refusal = exc
        return await self.read_again(request, refusal)

    async def read_again(self, request: Request, refusal: OSError) -> bytes:
        """Read with aligned memory and copy, if that may be all that the kernel minded; otherwise raise."""
        again = self._realigned(request, refusal)
        if again is None:
            raise refusal
        return _arguments.to_bytes(again.memory, await self.transfer(again))

    def _realigned(self, request: Request, outcome: object) -> Request | None:
        """Return a refused request of our own memory with aligned memory; None if that is not what it lacks."""
        if not isinstance(outcome, MisalignedError) or type(request.memory) is memoryview:
            return None
        if len(self.direct_fds) >= _DIRECT_FDS_MAX:
            self.direct_fds.clear()
        self.direct_fds.add(request.fd)
        alignment = max(SAFE_ALIGNMENT, outcome.memory_alignment)
        return attrs.evolve(request, memory=_direct.aligned_buffer(len(request.memory), alignment=alignment))

    async def read_batch_again(self, requests: DataRequests, outcomes: list[int | OSError]) -> list[bytes | OSError]:
        """Make the outcomes of reads bytes; those that were refused for their memory are read again, as one batch."""
        results: list[bytes | OSError] = [
            _arguments.to_bytes(requests[i].memory, outcome) if isinstance(outcome, int) else outcome
            for i, outcome in enumerate(outcomes)
        ]
        again = {i: r for i, outcome in enumerate(outcomes) if (r := self._realigned(requests[i], outcome))}
        if again:
            for (i, request), outcome in zip(again.items(), await self.batch([*again.values()], are_ours=True)):
                results[i] = _arguments.to_bytes(request.memory, outcome) if isinstance(outcome, int) else outcome
        return results

    def is_aligned(self, fd: FileDescriptor, length: int, offset: int) -> bool:
        """Whether a read can be asked as it is; False only for a range of a known ``O_DIRECT`` descriptor."""
        number, _, length, offset = _arguments.read(fd, length, offset)
        if number not in self.direct_fds or offset < 0 or not is_direct(number):
            return True
        unit = _direct.dio_alignment(number).offset
        return not (offset % unit or length % unit)

    async def read_widened(self, fd: FileDescriptor, length: int, offset: int, flags: int) -> bytes:
        """Read the whole blocks around a range of an ``O_DIRECT`` descriptor, and cut off what was not asked."""
        number, file, length, offset = _arguments.read(fd, length, offset)
        unit = _direct.dio_alignment(number).offset
        start, span = _direct.covering(offset, length, unit)
        memory = _direct.aligned_buffer(span)
        request = Request(Opcode.READ, number, memory, start, _flags.check(flags), file)
        skipped = offset - start
        have = 0  # bytes of the span
        while have < skipped + length:
            whole = have - have % unit
            count = await self.transfer(request.rest(whole) if whole else request)
            if whole + count <= have:
                raise anyio.IncompleteRead
            have = whole + count
        return bytes(memory[skipped : skipped + length])

    async def transfer(self, request: Request) -> int:
        """Perform one request and return its count; in parts if it is longer than the kernel takes (C8)."""
        if request.offset < 0 and self._driver.name == "uring" and is_direct(request.fd):
            return await self._transfer_at_position(request)
        if request.is_long:
            return await self._transfer_parts(request)
        (res,) = await self._perform((request,))
        if res < 0:
            raise self.error(res, request)
        return res

    async def _perform(self, requests: Sequence[Request], *, is_chain: bool = False) -> list[int]:
        """Perform reads, writes and syncs, in this thread if they must not wait; the file position moves with writes."""
        written = [
            (i, request, position)
            for i, request in enumerate(requests)
            if request.offset < 0 and (position := self._position_of(request)) is not None
        ]
        if requests and requests[0].op_flags & NOWAIT:
            results = await self._perform_now(requests)
        else:
            results = await self._task.perform(requests, is_chain=is_chain)
        for i, request, position in written:
            if 0 <= results[i] < request.size:
                _move(request, position, results[i])
        return results

    def _position_of(self, request: Request) -> int | None:
        """
        Return the file position, if the ring may leave it where it is: behind a write at it that is short.

        Seen on Linux 6.18, with RLIMIT_FSIZE and a full disk: the kernel tries the rest by itself, and forgets the
        position when that fails; what is written next would overwrite what was.
        """
        if request.opcode not in WRITES or self._driver.name != "uring":
            return None
        try:
            return os.lseek(request.fd, 0, os.SEEK_CUR)
        except OSError:  # a pipe, a socket, a terminal
            return None

    async def _transfer_at_position(self, request: Request) -> int:
        """
        Perform a request at the file position, and move the position, of an ``O_DIRECT`` descriptor.

        The ring leaves it where it is when the device answers later (seen on Linux 6.18): the next read would
        return the same bytes.
        """
        position = os.lseek(request.fd, 0, os.SEEK_CUR)
        count = await self.transfer(attrs.evolve(request, offset=position, origin=request))
        _move(request, position, count)
        return count

    async def _perform_now(self, requests: DataRequests) -> list[int]:
        """
        Perform requests that must not wait (``RWF_NOWAIT``) in this thread.

        The ring has no answer for "this file cannot say": it says EAGAIN, and system calls say EOPNOTSUPP.  With
        ``O_DIRECT`` they would wait for the device all the same, so there the driver is asked.
        """
        results: list[int] = []
        targets = hold(requests)
        try:
            for request in requests:
                if is_direct(request.fd):
                    results += await self._task.perform((request,))
                else:
                    await self._checkpoint()  # C1
                    self._task.check()
                    results.append(transfer_now(request))
                    self._task.transfers.count((request,), results[-1:])
        finally:
            if targets is not None:
                let_go(targets)
        return results

    async def _transfer_parts(self, request: Request, done: int = 0) -> int:
        """
        Perform a request's parts, behind the first ``done`` bytes, until one is short (C8).

        An error behind the first byte is left to the next call, as ``read(2)`` and ``write(2)`` do.
        """
        for part in request.rest(done).parts() if done else request.parts():
            try:
                moved = attrs.evolve(part, offset=request.advanced(done), origin=part)
                (res,) = await self._perform((moved,))
                size = part.size
                error = None if res >= 0 or done else self.error(res, moved)
            finally:
                part.release()
            if error is not None:
                raise error
            if res < 0:
                break
            done += res
            if res < size:
                break
        return done

    async def transfer_and_release(self, request: Request) -> int:
        try:
            return await self.transfer(request)
        finally:
            request.release()

    async def call(self, call: Call, *, is_certain: bool = False) -> int:
        """
        Perform a call, on a thread if the ring cannot, and return its result.

        :param is_certain: also if it is cancelled, which then strikes at the next checkpoint
        """
        owner = self._task if call.fits_ring and self.can_carry_out(call.opcode) else self._of_threads()
        (res,) = await owner.perform((call,), is_certain=is_certain)
        if res < 0:
            raise call.failure or call.error(res)
        return res

    async def surely(self, call: Call) -> int:
        """
        Perform a call whatever is cancelled and whatever has become of the manager, and return its result.

        What a function of several steps has to tidy up must not stay because its manager's block has ended
        meanwhile: then a thread of anyio's does it.
        """
        if self._task.is_usable:
            return await self.call(call, is_certain=True)
        return await current_loop().run_in_thread(call.run, None, is_certain=True)

    async def on_threads(self, calls: Sequence[Call]) -> list[int]:
        """Perform calls, each by one thread, and return their results."""
        return await self._of_threads().perform(calls)

    def _of_threads(self) -> Executor | ThreadCalls:
        if self._thread_calls is None or self._driver.name != "uring":
            return self._task
        return self._thread_calls

    def can_carry_out(self, opcode: Opcode) -> bool:
        """Whether the ring knows a call; one that polls its devices refuses everything but reads and writes."""
        features = self._driver.features
        return opcode in features.opcodes and "IOPOLL" not in features.setup_flags

    async def batch(self, requests: list[Request], *, are_ours: bool = False) -> list[int | OSError]:
        """Perform many requests as one operation: for each its count or its error. Callers' memory is released."""
        first_parts = [next(r.parts()) if r.is_long else r for r in requests]
        try:
            results: list[int | OSError] = []
            for request, res in zip(requests, await self._perform(first_parts)):
                if res == TRANSFER_MAX and request.is_long:
                    results.append(await self._transfer_parts(request, res))
                else:
                    results.append(res if res >= 0 else self.error(res, request))
            return results
        finally:
            for request in () if are_ours else itertools.chain(requests, first_parts):
                request.release()

    async def write_all(self, request: Request) -> int:
        done = 0
        try:
            total = request.size
            done = await self.transfer(request)
            while done < total:
                count = await self.transfer_and_release(request.rest(done))
                if not count:
                    raise OSError(errno.EIO, "the kernel wrote nothing and gave no error")
                done += count
        except BlockingIOError as exc:
            exc.characters_written = done
            raise
        finally:
            request.release()
        return done

    async def write_linked_to(self, request: Request, sync: Request) -> int:
        """Write everything, the sync linked to the write: one wake-up, and one worker of the kernel for both."""
        request.is_linked = True
        done = 0
        try:
            while True:
                rest = request.rest(done) if done else request
                try:
                    written, synced = await self._perform((rest, sync), is_chain=True)
                    size = rest.size
                    error = self.error(written, rest) if written < 0 else None
                finally:
                    if done:
                        rest.release()
                if error is not None:
                    raise error
                done += written
                if written == size:
                    break
                if not written:
                    raise OSError(errno.EIO, "the kernel wrote nothing and gave no error")
        finally:
            request.release()
        if synced < 0:
            raise _arguments.error(synced, sync.file)
        return done

    def outcomes(self, requests: DataRequests, results: list[int]) -> list[int | OSError]:
        return [res if res >= 0 else self.error(res, requests[i]) for i, res in enumerate(results)]

    def error(self, res: int, request: Request) -> OSError:
        """Return the error of a negative result; one that says more than the errno, where that would say too little."""
        plain = _arguments.error(res, request.file)
        if request.memory is None or plain.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            return plain
        if plain.errno == errno.EINVAL and (misaligned := _direct.misalignment(request, plain.filename)):
            return misaligned
        is_polled = self._driver.name != "uring" or "IOPOLL" in self._driver.features.setup_flags
        return _flags.refusal(res, request.op_flags, plain.filename, is_polled=is_polled) or plain


def _move(request: Request, position: int, count: int) -> None:
    """Move the file position behind so many bytes."""
    is_appended = count > 0 and request.opcode in WRITES and _direct.appends(request.fd, request.op_flags)
    os.lseek(request.fd, *((0, os.SEEK_END) if is_appended else (position + count, os.SEEK_SET)))
