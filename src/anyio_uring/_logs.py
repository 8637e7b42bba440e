"""What is logged, as instruments: ``anyio_uring.ring`` at DEBUG, ``anyio_uring.operations`` at TRACE.

The loggers are asked for their level once, when a manager is opened: one that is off costs nothing at
all from then on.  Nothing here is logged above DEBUG, so a program that configures no logging sees nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

import attrs

from ._instruments import Instrument, ManagerView, OperationTrace
from ._options import DriverName

LOG_VARIABLE: Final = "ANYIO_URING_LOG"
TRACE: Final = 5  # below logging.DEBUG

_PACKAGE: Final = logging.getLogger("anyio_uring")
_RING: Final = logging.getLogger("anyio_uring.ring")
_OPERATIONS: Final = logging.getLogger("anyio_uring.operations")
_LEVELS: Final = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def configure(environ: Mapping[str, str] = os.environ) -> None:
    """
    Do what ``ANYIO_URING_LOG`` asks for, if it is set: the level, and a handler where the program has none.

    :raises ValueError: if it names no level
    """
    text = environ.get(LOG_VARIABLE)
    if not text:
        return
    if text.lower() not in _LEVELS:
        raise ValueError(f"the environment variable {LOG_VARIABLE} must be one of {', '.join(_LEVELS)}, not {text!r}")
    _PACKAGE.setLevel(_LEVELS[text.lower()])
    if not _PACKAGE.hasHandlers():
        _name_trace()
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        _PACKAGE.addHandler(handler)


def loggers() -> list[Instrument]:
    """Return the instruments whose loggers are on."""
    instruments: list[Instrument] = []
    if _RING.isEnabledFor(logging.DEBUG):
        instruments.append(ManagerLog())
    if _OPERATIONS.isEnabledFor(TRACE):
        _name_trace()
        instruments.append(OperationLog())
    return instruments


def _name_trace() -> None:
    # Unless the program, or another library, has a name for this level.
    if logging.getLevelName(TRACE) == f"Level {TRACE}":
        logging.addLevelName(TRACE, "TRACE")


_NAMES: Final[dict[DriverName, str]] = {"uring": "ring", "threads": "threads", "fake": "fake ring"}


class ManagerLog(Instrument):
    """Logs the beginning and the end of a manager."""

    __slots__ = ()

    def manager_opened(self, manager: ManagerView) -> None:
        features, reason = manager.features, manager.fallback_reason
        fields = {
            "driver": manager.driver,
            "kernel": features.kernel,
            "depth": features.depth,
            "sq_entries": features.sq_entries,
            "cq_entries": features.cq_entries,
            "setup_flags": "|".join(features.setup_flags),
            "sqpoll": "SQPOLL" in features.setup_flags,
            "fallback_reason": reason,
        }
        if manager.driver == "uring":
            _RING.debug(
                "ring opened, depth=%(depth)d, sq_entries=%(sq_entries)d, cq_entries=%(cq_entries)d, "
                "setup_flags=%(setup_flags)s, sqpoll=%(sqpoll)s",
                fields,
                extra=fields,
            )
        elif manager.driver == "fake":
            _RING.debug("fake ring opened, depth=%(depth)d", fields, extra=fields)
        elif reason is None:
            _RING.debug("threads opened, depth=%(depth)d", fields, extra=fields)
        else:
            _RING.debug("fell back to threads, depth=%(depth)d: %(fallback_reason)s", fields, extra=fields)

    def manager_closed(self, manager: ManagerView) -> None:
        fields = attrs.asdict(manager.statistics(), recurse=False)
        what = _NAMES[manager.driver]
        counters = ", ".join(f"{name}={value}" for name, value in fields.items() if name != "driver")
        _RING.debug("%s closed, %s", what, counters, extra=fields)


class OperationLog(Instrument):
    """Logs every operation, every batch and every read that the page cache answered."""

    __slots__ = ()

    def batch_submitted(self, count: int) -> None:
        if count > 1:
            _OPERATIONS.log(TRACE, "batch of %d submitted", count, extra={"count": count})

    def operation_submitted(self, operation: OperationTrace) -> None:
        fields = attrs.asdict(operation)
        message = "submitted %(opcode)s, user_data=%(user_data)d, offset=%(offset)d, length=%(length)d"
        _OPERATIONS.log(TRACE, message, fields, extra=fields)

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:
        fields = {**attrs.asdict(operation), "result": result, "completed_ns": completed_ns}
        _OPERATIONS.log(TRACE, "completed, user_data=%(user_data)d, result=%(result)d", fields, extra=fields)

    def cancellation_submitted(self, operation: OperationTrace) -> None:
        fields = attrs.asdict(operation)
        _OPERATIONS.log(TRACE, "submitted cancel, user_data=%(user_data)d", fields, extra=fields)

    def inline_read(self, fd: int, offset: int, length: int, result: int) -> None:
        fields = {"opcode": "read", "fd": fd, "offset": offset, "length": length, "result": result}
        message = "inline read, offset=%(offset)d, length=%(length)d, result=%(result)d"
        _OPERATIONS.log(TRACE, message, fields, extra=fields)
