"""The record of one operation, and what makes it be asked again.

Knows no driver, no event loop and no life cycle: see :mod:`anyio_uring._completion_task`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import attrs

from ._driver import Results, Rows
from ._fixed_files import Target
from ._flags import NOWAIT
from ._requests import DISKS, INTERRUPTED, AnyRequest, Call, Opcode, Request, Requests, file_type
from ._waiters import Cancellation

_SYNCS: Final = frozenset({Opcode.FSYNC, Opcode.SYNC_FILE_RANGE})
CANCELED: Final = -errno.ECANCELED
_TRY_AGAIN: Final = -errno.EAGAIN
_NOT_SEEKABLE: Final = -errno.ESPIPE


@attrs.define(eq=False)
class Operation:
    """One await: n members, n results, one wait. Holds every pin until the last completion (C2)."""

    requests: Requests
    results: Results
    unsettled: int  # members without a result
    together: int = 1  # members that go to the driver in one turn: all those of a chain
    user_data: int = -1  # of member 0; -1 before it was given room
    rows: Rows | None = None
    pins: object = None
    is_gathered: bool = False  # the driver writes the results
    staged: int = 0  # members that were given room
    submitted: int = 0  # members that the driver has taken
    unsent: int | None = None  # members that a cancellation found before the driver had them (C4); None: not cancelled
    is_dropped: bool = False
    error: BaseException | None = None  # in place of results
    orphans: list[Target] | None = None  # nobody will have its results; what it holds until then
    # What the waiters' module asks for.
    waiter: Any = None
    is_awake: bool = False
    cancellation: Cancellation | None = None
    cancels_before: int = 0
    is_certain: bool = False  # no cancellation reaches it: a close


def is_transient(request: AnyRequest, res: int) -> bool:
    """
    Whether an operation did not happen, for no reason of the caller's.

    EINTR; EAGAIN of a file that can only block, unless ``RWF_NOWAIT`` asked for it; and ESPIPE of a socket,
    which has no positions but, unlike a pipe, minds being given one.
    """
    if res >= 0:
        return False
    if isinstance(request, Call):
        # Whatever a close answers, the descriptor is gone: close(2), "Dealing with error returns".
        return res in INTERRUPTED and request.opcode is not Opcode.CLOSE
    if res in INTERRUPTED or (res == _NOT_SEEKABLE and request.offset >= 0 and request.memory is not None):
        return True
    return res == _TRY_AGAIN and not request.op_flags & NOWAIT and file_type(request.fd) in DISKS


def may_be_repeated(request: AnyRequest, res: int) -> bool:
    """
    Whether an operation that did not happen is asked again by us.

    Not a sync: what it has not written may be lost, and one that succeeds afterwards proves nothing (``fsync(2)``).
    """
    return request.opcode not in _SYNCS and is_transient(request, res)


def repeat(request: AnyRequest, res: int) -> AnyRequest:
    """Return the request that asks a transient one again."""
    if res == _NOT_SEEKABLE and isinstance(request, Request):
        return attrs.evolve(request, offset=-1)
    # From a worker of the kernel, which may block, where the inline attempt gave up.
    return attrs.evolve(request, force_async=True)


def take_back(requests: Requests, results: Sequence[int]) -> None:
    """Close the descriptors that an operation has opened for somebody who will not have them (C9)."""
    for request, res in zip(requests, results):
        if isinstance(request, Call) and request.opens and res >= 0:
            with suppress(OSError):  # nobody has had it, or written anything that could be lost
                os.close(res)
