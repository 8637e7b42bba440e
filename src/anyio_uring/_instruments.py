"""Instruments: what programs may have called at each step of an operation, and who calls them.

A tracer, a log, a histogram: each is one.  What no instrument asks for is not even looked at: see
:mod:`anyio_uring._traced_driver`.  Knows nothing of drivers, event loops or tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, Final, ParamSpec, Protocol

import attrs

from ._options import DriverName
from ._stats import IoStatistics, UringFeatures

_P = ParamSpec("_P")
# An instrument that fails is for people to see, so nobody silences this one: without any configuration
# the handler of last resort prints it.
_LOGGER: Final = logging.getLogger("anyio_uring.instruments")


@attrs.frozen
class OperationTrace:
    """One operation of the kernel, as instruments see it; each member of a batch is one."""

    user_data: int
    """Its number in the ring, as the kernel's own tracepoints and ``fdinfo`` show it."""
    opcode: str
    """The kernel's name of it: ``"read"``, ``"writev"``, ``"fsync"``, ``"openat"``, ``"close"``, ``"statx"`` ..."""
    fd: int
    """The descriptor; for a path, that of the directory that it is relative to: -100 is the working directory."""
    offset: int
    """Byte offset in the file; -1 is the file position.  The new length of ``"ftruncate"``; 0 where there is none."""
    length: int
    """Bytes to transfer; 0 for whatever moves no data of a file."""
    submitted_ns: int
    """When it was handed to the driver, by :func:`time.perf_counter_ns`."""


class ManagerView(Protocol):
    """What an instrument may ask of a manager; every :class:`AsyncIoManager` is one."""

    @property
    def driver(self) -> DriverName:
        """Which driver does the work."""
        ...

    @property
    def fallback_reason(self) -> str | None:
        """Why it is threads, where a ring was preferred."""
        ...

    @property
    def features(self) -> UringFeatures:
        """What the kernel gives."""
        ...

    def statistics(self) -> IoStatistics:
        """Return a snapshot of the counters; other threads may ask, too."""
        ...


class Instrument(Protocol):
    """
    Something that wants to know what a manager does: ``open_uring(instruments=[...])``.

    Derive from it and override what you want to hear of; what nobody overrides costs nothing.
    Methods are called in the event loop's thread, inside the manager, so they must neither block nor
    take long.  One that raises an :class:`Exception` is logged to ``anyio_uring.instruments`` and not
    called again; the operation goes on.
    """

    __slots__ = ()

    def manager_opened(self, manager: ManagerView) -> None:
        """Take note of a manager that was opened."""
        return

    def manager_closed(self, manager: ManagerView) -> None:
        """Take note of a manager that has ended, with its last counters."""
        return

    def batch_submitted(self, count: int) -> None:
        """Take note that ``count`` operations went to the driver together, behind all their ``operation_submitted()``."""
        return

    def operation_submitted(self, operation: OperationTrace) -> None:
        """Take note of an operation that the driver has taken."""
        return

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:
        """
        Take note of an operation that has ended.

        :param result: bytes, the new descriptor of ``"openat"``, 0 of what has none; or ``-errno``
        :param completed_ns: when the event loop learnt of it, by :func:`time.perf_counter_ns`
        """
        return

    def cancellation_submitted(self, operation: OperationTrace) -> None:
        """Take note that the driver was asked to cancel an operation; how that ended, its result tells."""
        return

    def inline_read(self, fd: int, offset: int, length: int, result: int) -> None:
        """
        Take note of an attempt to read from the page cache (``RWF_NOWAIT``), which is no operation.

        :param result: bytes, or ``-errno``: then an operation follows
        """
        return


_HOOKS: Final[dict[Any, str]] = {hook: name for name, hook in vars(Instrument).items() if not name.startswith("_")}
_OF_OPERATIONS: Final[frozenset[Any]] = frozenset(_HOOKS) - {Instrument.manager_opened, Instrument.manager_closed}


class Instruments:
    """The instruments of one manager, by what each of them overrides."""

    __slots__ = ("_listeners",)

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        """
        Look at what each overrides.

        :raises TypeError: if one lacks a method
        """
        # {method of Instrument: [(instrument, its own)]}
        self._listeners: dict[Any, list[tuple[Instrument, Callable[..., None]]]] = {hook: [] for hook in _HOOKS}
        for instrument in instruments:
            for hook, name in _HOOKS.items():
                method: Callable[..., None] | None = getattr(instrument, name, None)
                if not callable(method):
                    raise TypeError(
                        f"instruments: {instrument!r} has no method {name}(): derive it from anyio_uring.Instrument"
                    )
                if getattr(method, "__func__", method) is not hook:
                    self._listeners[hook].append((instrument, method))

    def listens(self, hook: Callable[..., None]) -> bool:
        """Whether an instrument overrides this method of :class:`Instrument`."""
        return bool(self._listeners[hook])

    def listens_to_operations(self) -> bool:
        """Whether an instrument wants to hear of more than the manager's beginning and end."""
        return any(map(self.listens, _OF_OPERATIONS))

    def tell(self, hook: Callable[Concatenate[Any, _P], None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Call this method of :class:`Instrument` on all who override it; who fails is not called again."""
        for instrument, method in self._listeners[hook]:
            try:
                method(*args, **kwargs)
            except Exception:
                self._remove(instrument)
                _LOGGER.exception("an instrument failed and is not called again: %r", instrument)

    def _remove(self, instrument: Instrument) -> None:
        for hook, listeners in self._listeners.items():
            self._listeners[hook] = [listener for listener in listeners if listener[0] is not instrument]
