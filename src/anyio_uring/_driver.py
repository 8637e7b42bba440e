"""The Protocol that every driver fulfils: the kernel's ring, the threads, a simulated kernel.

A driver takes rows and gives completions.  It never blocks in :meth:`Driver.turn`, and it
knows nothing of waiters, tasks or cancellation scopes: the contract lives above it, once,
in :mod:`anyio_uring._completion_task`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ._options import DriverName
from ._requests import Request
from ._stats import UringFeatures

# What a driver makes of a request; opaque to everyone else.
Row = Any


class Driver(Protocol):
    """
    One row in, exactly one completion out.

    * A row and its pin stay alive, held by the caller, until the row's own completion.
    * ``-ECANCELED`` means that the operation did not happen and will not.
    * A cancel row completes too, under its own user data; its result decides nothing.
    """

    name: DriverName

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

    def allocate(self, length: int) -> bytes | bytearray:
        """Return new memory for a READ of ``length`` bytes, of the type that this driver fills best."""
        ...

    def prepare(self, user_data: int, request: Request) -> tuple[Row, object]:
        """Return the row of a request and its pin: what must stay alive until the completion."""
        ...

    def prepare_cancel(self, user_data: int, target: int) -> Row:
        """Return the row of a request to cancel the row whose user data is ``target``."""
        ...

    def turn(self, rows: Sequence[Row]) -> tuple[int, Sequence[int]]:
        """
        Submit rows and drain completions, without blocking.

        :return: how many of the rows were taken (bring the others again), and the
            completions, flat: ``user_data, res, user_data, res, ...``
        """
        ...

    def is_hungry(self) -> bool:
        """Whether taken rows wait for the kernel to have memory: take another turn soon."""
        ...

    def close(self) -> None:
        """Free everything; only when no row is without its completion."""
        ...
