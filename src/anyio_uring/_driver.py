"""The Protocol that every driver fulfils: the kernel's ring, the threads, a simulated kernel.

A driver takes rows and gives completions.  It never blocks in :meth:`Driver.turn`, and it
knows nothing of waiters, tasks or cancellation scopes: the contract lives above it, once,
in :mod:`anyio_uring._completion_task`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from ._options import DriverName
from ._requests import Memories, Requests
from ._stats import UringFeatures

# User data: [cancel request: 1 bit][generation: 22][member: 24][slot: 16]; 63 bits, so never negative.
_SLOT_BITS: Final = 16
_MEMBER_BITS: Final = 24
_GENERATION_BITS: Final = 22
SLOT_MASK: Final = (1 << _SLOT_BITS) - 1
MEMBER: Final = 1 << _SLOT_BITS
MEMBER_MASK: Final = (1 << _MEMBER_BITS) - 1 << _SLOT_BITS
GENERATION: Final = 1 << _SLOT_BITS + _MEMBER_BITS
GENERATION_MASK: Final = (1 << _GENERATION_BITS) - 1
CANCEL: Final = 1 << _SLOT_BITS + _MEMBER_BITS + _GENERATION_BITS

MEMBERS_MAX: Final = 1 << _MEMBER_BITS


def member_of(user_data: int) -> int:
    """Return which member of its operation this is."""
    return (user_data & MEMBER_MASK) >> _SLOT_BITS


NO_RESULT: Final = -(1 << 31)  # no errno is that large

Results = Any  # a list of ints, or the driver's own array of them
# What a driver makes of an operation's requests; opaque to everyone else.
Rows = Any


class Driver(Protocol):
    """
    One row in, exactly one completion out.

    * Rows and pins stay alive, held by the caller, until the last completion.
    * ``-ECANCELED`` means that the operation did not happen and will not.
    * A cancel row completes too, under its own user data; its result decides nothing.
    """

    name: DriverName

    fixed_memory: dict[int, tuple[int, memoryview]]
    """Registered memory in use: ``{id() of the object that a view is of: (its entry, that object)}``."""

    fixed_files: dict[int, tuple[int, object]]
    """Registered files: ``{id() of a request's file: (its slot, that object)}``."""

    @property
    def features(self) -> UringFeatures:
        """What the kernel gives."""
        ...

    @property
    def completions_max(self) -> int:
        """How many rows may be without a completion at once, cancel rows included."""
        ...

    @property
    def enters(self) -> int:
        """Kernel entries so far."""
        ...

    @property
    def overflows(self) -> int:
        """Times completions had to be fetched from an overflow list."""
        ...

    def is_forked(self) -> bool:
        """Whether this process is a child of the one that opened the driver."""
        ...

    def fileno(self) -> int:
        """Return a descriptor that polls readable while there is something to drain."""
        ...

    @property
    def memory_type(self) -> type[bytes | bytearray]:
        """What to make new memory for a READ of, 2 bytes or more: the type that this driver fills best."""
        ...

    def allocate_batch(self, lengths: Sequence[int]) -> Memories:
        """Return new memory for a batch of READs, each of 2 bytes or more."""
        ...

    @property
    def read_now(self) -> Callable[[int, Any, int, int], int]:
        """
        Fill memory if that needs no waiting (``RWF_NOWAIT``), up to the end of the file.

        :param: descriptor; memory of :attr:`memory_type`, or what :meth:`expose` returned; length; offset
        :return: bytes read, or ``-errno``: ``-EAGAIN`` if it would have to wait, and for ``O_DIRECT``,
            which always waits; other errors where the descriptor knows no such reads
        """
        ...

    def expose(self, memory: Any) -> Any:
        """Return what :attr:`read_now` takes for any other memory."""
        ...

    def register_memory(self, memory: mmap.mmap) -> int:
        """
        Have the kernel keep this memory pinned and looked up (Linux 5.19).

        :return: its entry; or -1 if it stays plain memory, and ``features.fixed_buffers`` says why
        """
        ...

    def unregister_memory(self, entry: int) -> None:
        """Undo that; only when no operation with this memory is staged or in flight. After :meth:`close` it is nothing."""
        ...

    def make_file_table(self, slots: int) -> bool:
        """
        Make the table of registered files (Linux 5.19), unless there is one.

        :return: whether there is one; if not, ``features.fixed_files`` says why
        """
        ...

    def update_file(self, slot: int, fd: int) -> bool:
        """
        Have a slot refer to a descriptor's file, or to none (-1).

        Only when no operation with this slot is staged or in flight.  After :meth:`close` it is nothing.

        :return: whether it does; if not, ``features.fixed_files`` says why
        """
        ...

    def prepare(self, user_data: int, requests: Requests) -> tuple[Rows, object, Results | None]:
        """
        Make rows of an operation's requests.

        :param user_data: of the first; each further one adds :data:`MEMBER`
        :return: the rows; what must stay alive until the last completion; and, if the driver gathers
            the results itself, where (then :meth:`retire` is called behind the last one): each is
            :data:`NO_RESULT` at first, and completions say no more than that so many have come
        :raises ValueError: if the driver was opened in a mode (``iopoll``) that cannot do this
        """
        ...

    def retire(self, user_data: int) -> None:
        """Forget where results are gathered."""
        ...

    def turn(self, targets: Sequence[int], segments: Sequence[tuple[Rows, int, int]]) -> tuple[int, Sequence[int]]:
        """
        Submit and drain, without blocking.

        :param targets: user data of rows to cancel; each such request completes under
            :data:`anyio_uring._driver.CANCEL` ``| target``
        :param segments: rows, the first and one past the last of them to submit; of linked ones all or none are taken
        :return: how many were taken, targets first (bring the others again), and the
            completions, flat: ``user_data, res, user_data, res, ...``; for gathered results
            the operation's own user data and the number of members that have got theirs
        """
        ...

    def is_hungry(self) -> bool:
        """Whether taken rows wait for the kernel to have memory, or for a device to be asked: take another turn soon."""
        ...

    def close(self) -> None:
        """Free everything; only when no row is without its completion."""
        ...
