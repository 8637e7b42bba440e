"""Registered files: descriptors of our own, their slots in the ring's table, and who uses them.

Knows when a descriptor may be closed and a slot be changed: when no operation has them.  It does not
know what an operation is, or how a driver uses a slot.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Protocol, Union
from warnings import warn

import anyio
import attrs

from ._requests import HasFileno
from ._waiters import Loop, PlainSleeper, sleep

# Slots of a table for which no number was asked.
SLOTS_DEFAULT: Final = 1024


class Registrar(Protocol):
    """What a table of files asks of a driver."""

    name: Any
    fixed_files: dict[int, tuple[int, object]]
    """``{id() of a request's file: (its slot, that object)}``."""

    def make_file_table(self, slots: int) -> bool:
        """Make the table, if there is none yet; False if there is none to be had, which ``features`` explains."""
        ...

    def update_file(self, slot: int, fd: int) -> bool:
        """Have a slot refer to a descriptor's file, or to none (-1); False if it does not."""
        ...

    @property
    def features(self) -> Any:
        """What the kernel gives, ``fixed_files`` among it."""
        ...


@attrs.define(eq=False)
class Target:
    """
    One descriptor of ours: what requests have as their ``file``.

    It never refers to another file, so an operation's parts all go to the same one, or are refused.
    """

    number: int
    name: object
    is_closed: bool = False
    loop: Loop = attrs.field(kw_only=True)
    uses: int = 0
    sleepers: list[PlainSleeper] = attrs.field(factory=list, init=False)

    def wake(self) -> None:
        """Wake those who wait until nobody holds it."""
        for sleeper in self.sleepers:
            self.loop.wake(sleeper)
        self.sleepers.clear()

    async def unused(self) -> None:
        """Wait until nobody holds it; a cancellation strikes at the next checkpoint (C10)."""
        while self.uses:
            sleeper = PlainSleeper()
            self.sleepers.append(sleeper)
            cancellation = await sleep(self.loop, sleeper, lambda _: False)
            if cancellation is not None:
                cancellation.keep()


def hold(requests: Iterable[Any]) -> list[Target] | None:
    """
    Keep the targets of these requests open until :func:`let_go`.

    :return: them; ``None`` if there are none
    :raises ClosedResourceError: if one has been closed; none is held then
    """
    targets: list[Target] | None = None
    for request in requests:
        target = request.file
        if type(target) is Target:
            if target.is_closed:
                let_go(targets or [])
                raise anyio.ClosedResourceError(
                    "this registered file was closed or updated before the operation, or its next part, began"
                )
            target.uses += 1
            if targets is None:
                targets = [target]
            else:
                targets.append(target)
    return targets


def let_go(targets: list[Target]) -> None:
    """Take back a :func:`hold`."""
    for target in targets:
        target.uses -= 1
        if not target.uses and target.sleepers:
            target.wake()


class RegisteredFile:
    """
    A file that the ring knows by a number of its own; :meth:`AsyncIoManager.register_files` makes it.

    It goes wherever a descriptor goes.  The ring then need not look it up each time
    (``IOSQE_FIXED_FILE``); elsewhere, another manager included, it is a descriptor like any other.
    It refers to the file by a duplicate of the descriptor it was made of, which can so be closed.
    """

    __slots__ = ("__weakref__", "_retiring", "_slot", "_table", "_target", "_thread")

    def __init__(self, table: FileTable, slot: int, target: Target) -> None:
        self._table = table
        self._thread = get_ident()
        self._slot = slot  # -1 once it is closed
        self._target: Target | None = target
        # What it referred to before, while operations go on there.
        self._retiring: list[Target] = []

    def __repr__(self) -> str:
        state = "closed" if self._target is None else f"fd={self._target.number}"
        return f"<RegisteredFile {state}>"

    def fileno(self) -> int:
        """
        Return its descriptor's number; :meth:`update` changes it.

        :raises anyio.ClosedResourceError: if it has been closed
        :raises RuntimeError: in another thread
        """
        return self.current().number

    def current(self) -> Target:
        """Return what it refers to now, and what new requests have as their file; raises as :meth:`fileno` does."""
        target = self._target
        if target is None or self._thread != get_ident():
            self._check_thread()
            raise anyio.ClosedResourceError("this registered file has been closed")
        return target

    async def update(self, fd: Union[int, HasFileno]) -> None:
        """
        Have it refer to another file.

        What begins from now on goes there.  What began before is waited for, on the old file, and then its
        descriptor is closed; also when cancelled meanwhile: the cancellation strikes at the next checkpoint.
        No verb joins two files: one that has several operations goes on with the old one; where that is
        not certain any more (``read_exactly()`` after a short read, a chain that was written down before)
        it raises :class:`anyio.ClosedResourceError`.

        :raises OSError: if ``fd`` is not open; nothing has changed then
        :raises anyio.ClosedResourceError: if it has been closed
        """
        self.current()
        await anyio.lowlevel.checkpoint()
        old = self.current()
        self._target = self._table.duplicate(fd)
        self._retiring.append(old)
        await self._retire()

    async def aclose(self) -> None:
        """
        Wait for its operations, then close its descriptor and give up its slot; also when cancelled.

        Operations that begin from now on get :class:`anyio.ClosedResourceError`.  Closing it again waits
        for the same and does nothing more.
        """
        self._check_thread()
        self._stop()
        await self._retire()
        await anyio.lowlevel.checkpoint()

    def _check_thread(self) -> None:
        if get_ident() != self._thread:
            raise RuntimeError("this registered file belongs to another thread: register one there")

    def _stop(self) -> None:
        if self._target is not None:
            self._retiring.append(self._target)
            self._target = None

    async def _retire(self) -> None:
        """Let go of what it referred to, once no operation has it; then the slot may change (C10)."""
        try:
            for target in [*self._retiring]:
                await target.unused()
                if target in self._retiring:  # another call may have been first
                    self._retiring.remove(target)
                    self._table.close(target)
        finally:  # whatever close(2) says, the descriptor is gone
            if not self._retiring:
                self._slot = self._table.settle(self._slot, self._target)


class FileTable:
    """The registered files of one manager."""

    __slots__ = ("_free", "_has_crashed", "_loop", "_registrar", "_resolve", "_slots", "_used")

    def __init__(
        self,
        registrar: Registrar,
        loop: Loop,
        slots: int,
        *,
        resolve: Callable[[Any], tuple[int, object]],
        has_crashed: Callable[[], bool],
    ) -> None:
        """
        Register nothing yet.

        :param slots: how many files at most; 0: 1024, or what ``RLIMIT_NOFILE`` allows
        :param resolve: returns a descriptor's number, and the object that owns it
        :param has_crashed: whether operations can be in flight whose completions nobody will see (C11)
        """
        self._registrar = registrar
        self._loop = loop
        self._slots = slots or slots_default()
        self._resolve = resolve
        self._has_crashed = has_crashed
        self._used = 0  # slots that were ever used: those from here on are free, too
        self._free: list[int] = []

    def open(self) -> str | None:
        """Make the driver's table; return what to warn of."""
        # Threads have nothing to register with, which nobody needs to be warned of.
        is_refused = not self._registrar.make_file_table(self._slots) and self._registrar.name == "uring"
        return self._registrar.features.fixed_files if is_refused else None

    def register(self, fds: list[Any]) -> list[RegisteredFile]:
        """
        Give each descriptor a slot and a duplicate.

        :raises ValueError: if there are not so many slots
        :raises OSError: if one is not open, or no descriptor is free; none is registered then
        """
        left = self._slots - self._used + len(self._free)
        if len(fds) > left:
            raise ValueError(
                f"{len(fds)} files cannot be registered: {left} of {self._slots} slots are free; "
                "open the manager with a larger fixed_files"
            )
        targets: list[Target] = []
        try:
            targets.extend(map(self.duplicate, fds))
        except BaseException:
            for target in targets:
                self.close(target)
            raise
        return [RegisteredFile(self, self.settle(self._take_slot(), target), target) for target in targets]

    def duplicate(self, fd: Any) -> Target:
        """Return a target of our own for a descriptor's file."""
        number, owner = self._resolve(fd)
        return Target(os.dup(number), getattr(owner, "name", None), loop=self._loop)

    def close(self, target: Target) -> None:
        """Close a target that nobody holds."""
        target.is_closed = True
        if not self._has_crashed():
            self._registrar.fixed_files.pop(id(target), None)
            os.close(target.number)

    def settle(self, slot: int, target: Target | None) -> int:
        """Have a slot refer to this target, or to none; only while no operation can mean it. Return the slot, or -1."""
        if slot < 0 or self._has_crashed():
            return slot
        if target is None:
            self._registrar.update_file(slot, -1)
            self._free.append(slot)
            return -1
        if id(target) not in self._registrar.fixed_files and self._registrar.update_file(slot, target.number):
            self._registrar.fixed_files[id(target)] = slot, target
        return slot

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._used += 1
        return self._used - 1


class Registration:
    """What ``register_files()`` returns."""

    __slots__ = ("_check", "_fds", "_files", "_table")

    def __init__(self, table: FileTable, check: Callable[[], None], fds: Iterable[Union[int, HasFileno]]) -> None:
        self._table = table
        self._check = check
        self._fds = list(fds)
        self._files: list[RegisteredFile] | None = None

    async def __aenter__(self) -> list[RegisteredFile]:
        self._check()
        if self._files is not None:
            raise RuntimeError("what register_files() returns can be entered once: call it again")
        await anyio.lowlevel.checkpoint()
        problem = self._table.open()
        if problem is not None:
            warn(problem, RuntimeWarning, stacklevel=2)
        self._files = self._table.register(self._fds)
        return self._files.copy()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._files is not None
        for file in self._files:
            file._stop()  # none of them begins anything while another one's operations are waited for
        errors: list[OSError] = []
        for file in self._files:
            try:
                await file._retire()
            except OSError as error:  # of close(2): the others are closed all the same
                errors.append(error)
        if errors:
            raise errors[0]


def slots_default() -> int:
    """Return how many slots a table has if nobody says: the kernel allows no more than ``RLIMIT_NOFILE``."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SLOTS_DEFAULT if soft == resource.RLIM_INFINITY else min(SLOTS_DEFAULT, soft)
