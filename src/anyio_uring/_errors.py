"""Every error this library defines.

A failed system call is a plain :class:`OSError`; anyio's ``ClosedResourceError``,
``BrokenResourceError`` and ``IncompleteRead`` are raised where anyio would raise them.
This module knows nothing of what raises its errors, or when it is decided.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any


def describe(code: int) -> str:
    """
    Return what an errno says, and more where it would be a riddle.

    ``ECANCELED`` becomes an error only where nobody has cancelled: a worker of the kernel (or a thread) was
    needed, and could not be started.  Files that answer it themselves are rare (FUSE, timers).
    """
    text = os.strerror(code)
    if code == errno.ECANCELED:
        text += (
            ", though nobody asked for it: most likely no thread could be started;"
            " raise RLIMIT_NPROC (ulimit -u), unless the interpreter is ending"
        )
    return text


class UringUnavailableError(OSError):
    """
    Raised when ``driver="uring"`` was asked for and the kernel will not give a ring.

    ``errno`` is the kernel's answer; the message says in one sentence what happened and
    what to do about it (the same sentence as :attr:`AsyncIoManager.fallback_reason`).
    """


class UnsupportedFlagError(OSError):
    """
    Raised when the kernel does not support one of the ``flags=`` of a read or write for this file.

    ``errno`` is ``EOPNOTSUPP``; the message names the flags, and what they need.  Nothing was transferred.
    """


class MisalignedError(OSError, ValueError):
    """
    Raised when a read or write of a file opened with ``O_DIRECT`` is not aligned as its device needs.

    A :class:`ValueError`, for it is the caller's to align; an :class:`OSError` with ``EINVAL`` all the same, so that
    it can be one of the results of a batch.  The message names what is misaligned.  Nothing was transferred.

    :ivar memory_alignment: what the address of a buffer must be a multiple of, in bytes
    :ivar offset_alignment: what offsets and lengths must be multiples of, in bytes
    """

    memory_alignment: int
    offset_alignment: int

    def __init__(
        self, message: str, filename: str | bytes | None, *, memory_alignment: int, offset_alignment: int
    ) -> None:
        super().__init__(errno.EINVAL, message, filename)
        self.memory_alignment = memory_alignment
        self.offset_alignment = offset_alignment


class BatchError(Exception):
    """
    Raised when a batch has at least one failed member, after every member has settled.

    :ivar results: one entry per request, in request order: what that member gave, or the
        :class:`OSError` with which it failed, so that nothing that succeeded is lost
    """

    results: Sequence[Any]

    def __init__(self, verb: str, results: Sequence[Any]) -> None:
        self.results = results
        errors = self.errors
        index, first = next(iter(errors.items()))
        super().__init__(
            f"{verb}: {len(errors)} of {len(results)} operations failed; the first is request {index}: {first}"
        )

    @property
    def errors(self) -> dict[int, OSError]:
        """The failed members: ``{index of the request: its error}``, in request order."""
        return {i: r for i, r in enumerate(self.results) if isinstance(r, OSError)}


class ChainError(OSError):
    """
    Raised when a chain stopped before its end, after every member has settled.

    ``errno`` and ``filename`` are those of the member that failed, and its own error is the ``__cause__``;
    where a member was short, ``errno`` is ``EIO``.

    :ivar index: of the member at which the chain stopped
    :ivar verb: its verb (``"write"``, ``"fsync"`` ...)
    :ivar results: what the members before it gave; its own :class:`OSError`, or its count if it was short;
        and ``None`` for those behind it, which did not happen
    """

    index: int
    verb: str
    results: Sequence[Any]

    def __init__(self, cause: OSError, index: int, verb: str, results: Sequence[Any]) -> None:
        behind = len(results) - index - 1
        stopped = f"; {behind} behind it did not happen" if behind else ""
        super().__init__(
            cause.errno, f"member {index} of the chain ({verb}): {cause.strerror}{stopped}", cause.filename
        )
        self.index = index
        self.verb = verb
        self.results = results


class DurabilityLostError(OSError):
    """
    Raised when a sync of a log has failed: nobody knows what of the bytes behind the last good one is on disk.

    The kernel reports a failed write-back once and then forgets that it failed (``fsync(2)``), so nothing is
    tried again: the log takes no record any more, and every further use of it raises this error.  Go on from what
    is known to be durable: close the log, find out what is wrong with the disk, and open the log again or another
    one; what was appended behind ``durable_end`` and not acknowledged has to be appended anew.

    ``errno`` is that of the sync; the failed operation's error is the ``__cause__``.

    :ivar durable_end: every record that ends at this offset or before it is durable
    """

    durable_end: int

    def __init__(self, cause: OSError, filename: str, durable_end: int) -> None:
        super().__init__(
            cause.errno,
            f"the log could not be made durable behind offset {durable_end} ({cause.strerror}), and trying again "
            "would prove nothing: check the disk, open the log again, and append anew what was not acknowledged",
            filename,
        )
        self.durable_end = durable_end


class CorruptLogError(OSError):
    """
    Raised when a log has damage that no crash explains, so that cutting it off would lose acknowledged records.

    ``errno`` is ``EBADMSG``.  Restore the file from a copy; or, to give up everything behind the damage, copy what
    :func:`read_append_log` yields before it raises this error to another log.

    :ivar offset: of the first byte that is not valid
    """

    offset: int

    def __init__(self, message: str, filename: str, offset: int) -> None:
        super().__init__(errno.EBADMSG, f"{message}, at offset {offset}", filename)
        self.offset = offset
