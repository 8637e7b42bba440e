"""The public face of the simulated kernel: a seed, faults, and what a test may tell it meanwhile.

Knows how a driver is opened; what a driver does is :mod:`anyio_uring.testing._fake_driver`'s.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from random import Random, SystemRandom
from types import NoneType
from typing import Any, Final

import anyio

from anyio_uring._options import UringOptions

from ._fake_driver import FakeDriver
from ._faults import Faults, Injector

SEED_VARIABLE: Final = "ANYIO_URING_FAKE_SEED"
_LOGGER: Final = logging.getLogger("anyio_uring.testing")


class FakeRing:
    """
    A simulated kernel: ``open_uring(driver=FakeRing(seed=7))``.

    It carries out real system calls, on real descriptors and paths, but when and in which order they happen, and
    which of them fail, is its choice: from its seed, without threads of its own.  So a program is shown
    orders of events that a real kernel shows once in a million runs, and shown the same ones again.

    Always: completions in any order, at once or turns later, 20 at most at a time; small reads that are answered at
    once, as from the page cache, or are not; a submission queue that is full, and kernel entries that answer ``EBUSY``; cancel
    requests that come too late, or answer before or after the operation that they meant.  None of this is a fault,
    and no program may mind.  What programs do notice, or at least the library must mend, :class:`Faults` ask for.

    What would block (an empty pipe) waits, without a thread, and can be cancelled.  Everything else happens in the event
    loop's thread: it is made for tests, not for speed.  An open that could wait for the other end of a FIFO is a
    :class:`ValueError`, also if that end is open already.

    Several managers can be opened on one, also one after the other; they share its seed.  A run is replayed by a new
    one with the same seed, as far as the order of the program's own steps is the same.  Not of the seed are: the order
    in which trio runs tasks (inside tests of Hypothesis it is fixed), and that in which asyncio tells the tasks of a
    group of their cancellation; the clock, by which lost cancel requests come again (20 ms), ``checkpoint="budget"``
    is spent and programs' own deadlines expire; worker threads, where the library needs them (:func:`anyio_uring.copy_file`, say);
    and the other ends of pipes and sockets.

    ``sqpoll``, ``restrict`` and registered memory and files mean as little to it as to threads.  Linux only.
    """

    __slots__ = ("__weakref__", "_drivers", "_injector", "_random", "seed")

    seed: int
    """What all of its choices follow from."""

    def __init__(self, seed: int | None = None, *, faults: Faults | None = None) -> None:
        """
        Choose a seed and open nothing yet.

        :param seed: ``None``: that of the environment variable ``ANYIO_URING_FAKE_SEED``, or else a new one
        :param faults: what goes wrong; ``None``: nothing
        :raises TypeError: if one is of a wrong type
        :raises ValueError: if the environment variable is no number
        """
        if seed is None:
            seed = _seed_of_environment()
        _check("seed", seed, int)
        _check("faults", faults, (Faults, NoneType))
        self.seed = seed
        self._random = Random(seed)
        self._injector = Injector(Faults() if faults is None else faults, self._random)
        self._drivers: list[FakeDriver] = []

    def __repr__(self) -> str:
        faults = "" if self.faults == Faults() else f", faults={self.faults}"
        return f"FakeRing(seed={self.seed}{faults})"

    @property
    def faults(self) -> Faults:
        """What goes wrong, and how often."""
        return self._injector.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        """Have other things go wrong from now on."""
        _check("faults", faults, Faults)
        self._injector.faults = faults

    def fail_next(self, operation: str, code: int = errno.EIO, *, count: int = 1) -> None:
        """
        Have the next operations of a kind fail, whatever :attr:`faults` say.

        A read or write with :attr:`anyio_uring.RwFlags.NOWAIT` is no operation of the kernel, and does not count.

        :param operation: the kernel's name of it: ``"read"``, ``"write"``, ``"readv"``, ``"writev"``, ``"fsync"``
            (also of ``fdatasync()``), ``"openat"``, ``"close"``, ``"statx"``, ``"renameat"`` ...
        :param code: the errno
        :param count: how many of them
        :raises ValueError: if there is no such operation or errno, or no such count
        """
        if code not in errno.errorcode:
            raise ValueError(f"code must be an errno, such as errno.EIO, not {code!r}")
        self._injector.plan(operation, -code, count)

    def stick_next(self, operation: str, *, count: int = 1) -> None:
        """
        Have the next operations of a kind not end before they are cancelled, or :meth:`release` is called.

        Of what no cancellation reaches (an append log's commit, what :func:`anyio_uring.atomic_write` tidies up), the latter only.

        :raises ValueError: as :meth:`fail_next` does, and at ``"close"``, which no cancellation ever reaches
        """
        self._injector.plan(operation, None, count)

    def release(self) -> None:
        """Have everything go on that is stuck now; in the event loop's thread."""
        for driver in self._drivers:
            driver.release()

    # --- for open_uring() -------------------------------------------------------------------------

    def open_driver(self, options: UringOptions) -> Any:
        """
        Return a new driver of a manager.

        :raises NotImplementedError: if this is not Linux
        """
        driver = FakeDriver(options.depth, self._random, self._injector, self._drivers.remove, iopoll=options.iopoll)
        self._drivers.append(driver)
        return driver

    def note(self, exc: BaseException) -> None:
        """
        Add to an exception how to replay what led to it.

        It is logged where an exception takes no notes: before Python 3.11, and a frozen dataclass.
        """
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            return
        text = f"{self!r}: set {SEED_VARIABLE}={self.seed}, or give it this seed, to see the same again"
        if not _add_note(exc, text):
            _LOGGER.warning(text)


def _add_note(exc: BaseException, text: str) -> bool:
    """Add a note that an exception does not have yet; False if it takes none."""
    if sys.version_info < (3, 11):
        return False
    try:
        if text not in getattr(exc, "__notes__", ()):
            exc.add_note(text)
    except Exception:  # noqa: BLE001 - whatever a class of the program's answers to a new attribute
        return False
    return True


def _check(name: str, value: object, types: type | tuple[type, ...]) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError(f"{name} cannot be {value!r}")


def _seed_of_environment() -> int:
    text = os.environ.get(SEED_VARIABLE, "")
    if not text:
        return SystemRandom().getrandbits(32)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"the environment variable {SEED_VARIABLE} must be a whole number, not {text!r}") from None
