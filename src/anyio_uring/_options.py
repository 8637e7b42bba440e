"""What a caller may choose when opening a manager, validated before anything is opened.

Knows names, types and ranges; it does not know what a driver does with them.
A new option is one field of :class:`UringOptions`: default, check, how it is written down.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol, Union

import attrs

from ._config import (
    Switch,
    as_bool,
    as_int,
    check_variables,
    naming,
    parse_size,
    read_environment,
    read_toml,
    variable,
    written,
)
from ._fixed_buffers import check_pool

DriverName = Literal["uring", "threads", "fake"]


class DriverSource(Protocol):
    """What opens a driver of its own: :class:`anyio_uring.testing.FakeRing`."""

    def open_driver(self, options: UringOptions) -> Any:
        """Return a new driver, a :class:`anyio_uring._driver.Driver`."""
        ...

    def note(self, exc: BaseException) -> None:
        """Add to an exception that leaves the manager's block what helps to reproduce it."""
        ...


DriverChoice = Union[Literal["auto", "uring", "threads"], DriverSource]
CheckpointPolicy = Literal["always", "budget"]

DRIVER_VARIABLE: Final = variable("driver")
# io_uring_setup(2): IORING_MAX_ENTRIES.
DEPTH_MAX: Final = 32768
# The kernel's msecs_to_jiffies() takes more than an int holds for "for ever".
SQPOLL_IDLE_MS_MAX: Final = 2**31 - 1
# The kernel takes 32 bits, and knows which of these CPUs exist.
CPU_MAX: Final = 2**31 - 1
# What Ferrite's configuration has in its example, and the default of buffer_pool().
FIXED_BUFFERS_ON: Final = 64
# Ferrite's configuration says yes or no; and the kernel's IORING_MAX_FIXED_FILES.
FIXED_FILES_ON: Final = 1024
FIXED_FILES_MAX: Final = 1 << 20


def _check_depth(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be an int between 1 and {DEPTH_MAX}, not {value!r}")
    if not 1 <= value <= DEPTH_MAX:
        raise ValueError(f"{attribute.name} must be between 1 and {DEPTH_MAX}, not {value}")


def _check_count(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be an int, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{attribute.name} must be 0 or more, not {value}")


def _check_driver(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, str):
        if value not in ("auto", "uring", "threads"):
            raise ValueError(f'{attribute.name} must be "auto", "uring" or "threads", not {value!r}')
    elif isinstance(value, type) or not callable(getattr(value, "open_driver", None)):
        raise TypeError(
            f'{attribute.name} must be "auto", "uring", "threads" or a FakeRing of anyio_uring.testing, not {value!r}'
        )


def _check_checkpoint(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("always", "budget"):
        raise ValueError(f'{attribute.name} must be "always" or "budget", not {value!r}')


def _check_bool(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be true or false, not {value!r}")


def _check_sqpoll_idle_ms(_options: object, _attribute: object, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"sqpoll_idle_ms must be an int, not {type(value).__name__}")
    if not 1 <= value <= SQPOLL_IDLE_MS_MAX:
        raise ValueError(f"sqpoll_idle_ms must be between 1 and {SQPOLL_IDLE_MS_MAX}, not {value}")


# `options` are None where a value is checked alone, as it stands in a file: what it needs beside it is not known yet.
def _check_sqpoll_cpu(options: UringOptions | None, _attribute: attrs.Attribute[int | None], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"sqpoll_cpu must be the number of a CPU or None, not {type(value).__name__}")
    if not 0 <= value <= CPU_MAX:
        raise ValueError(f"sqpoll_cpu must be between 0 and {CPU_MAX}, not {value}")
    if options is not None and not options.sqpoll:
        raise ValueError("sqpoll_cpu says where the kernel polls: it needs sqpoll=True")


def _check_iopoll(options: UringOptions | None, attribute: attrs.Attribute[bool], value: object) -> None:
    _check_bool(options, attribute, value)
    if value and options is not None and options.nowait:
        raise ValueError("iopoll=True reads past the page cache, and nowait=True asks it first: leave one of them out")


@attrs.frozen(kw_only=True)
class UringOptions:
    """
    The options of a manager, checked; :func:`open_uring` takes them as keywords or as this.

    :raises ValueError: if one is out of range
    :raises TypeError: if one is of a wrong type
    """

    depth: int = attrs.field(default=256, validator=_check_depth, metadata=written(as_int, {"uring_queue_depth": None}))
    """How many operations may be in flight, 1 to 32768.  In TOML also ``uring_queue_depth``."""
    driver: DriverChoice = attrs.field(
        default="auto",
        validator=_check_driver,
        metadata=written(str, {"uring_enabled": Switch(off="threads", on="auto")}),
    )
    """
    ``"uring"``, ``"threads"`` or ``"auto"``, or a :class:`anyio_uring.testing.FakeRing`, which neither TOML nor the
    environment can name.  In TOML also ``uring_enabled``: ``false`` means ``"threads"``.
    """
    checkpoint: CheckpointPolicy = attrs.field(default="always", validator=_check_checkpoint, metadata=written(str))
    """``"always"``, or ``"budget"``: cached reads go on for a bounded time without a schedule point."""
    nowait: bool | None = attrs.field(
        default=None, validator=attrs.validators.optional(_check_bool), metadata=written(as_bool)
    )
    """
    Whether small reads ask the page cache first (``RWF_NOWAIT``); left out, yes, except on a ring with
    ``sqpoll`` or ``iopoll``.
    """
    sqpoll: bool = attrs.field(default=False, validator=_check_bool, metadata=written(as_bool, {"uring_sqpoll": None}))
    """Whether a thread of the kernel takes operations from the ring.  In TOML also ``uring_sqpoll``."""
    sqpoll_idle_ms: int = attrs.field(
        default=1000, validator=_check_sqpoll_idle_ms, metadata=written(as_int, {"uring_sqpoll_idle_ms": None})
    )
    """Milliseconds without an operation after which it sleeps.  In TOML also ``uring_sqpoll_idle_ms``."""
    sqpoll_cpu: int | None = attrs.field(default=None, validator=_check_sqpoll_cpu, metadata=written(as_int))
    """The CPU that it is bound to; none if left out."""
    iopoll: bool = attrs.field(default=False, validator=_check_iopoll, metadata=written(as_bool))
    """Whether devices are asked for completions instead of interrupting (``O_DIRECT`` alone)."""
    restrict: bool = attrs.field(default=False, validator=_check_bool, metadata=written(as_bool))
    """Whether the kernel refuses on this ring what this library does not use."""
    latency: bool = attrs.field(default=False, validator=_check_bool, metadata=written(as_bool))
    """Whether to measure how long operations take: :attr:`IoStatistics.latency`."""
    fixed_buffers: int = attrs.field(
        default=0,
        validator=_check_count,
        metadata=written(
            as_int, {"uring_fixed_buffers": Switch(off=0, on=FIXED_BUFFERS_ON), "uring_fixed_buffer_count": None}
        ),
    )
    """
    How many buffers the manager's own pool has; 0: there is none.  In TOML also ``uring_fixed_buffer_count``,
    and ``uring_fixed_buffers``: ``true`` means 64 if no count is given, ``false`` none.
    """
    fixed_buffer_size: int = attrs.field(
        default=65536, converter=parse_size, metadata=written(str, {"uring_fixed_buffer_size": None})
    )
    """Bytes in each, or a text with a unit.  In TOML also ``uring_fixed_buffer_size``."""

    fixed_files: int = attrs.field(
        default=0,
        validator=[_check_count, attrs.validators.le(FIXED_FILES_MAX)],
        metadata=written(as_int, {"uring_fixed_files": Switch(off=0, on=FIXED_FILES_ON)}),
    )
    """
    How many files can be registered at once, up to 1048576; 0: 1024, if any are.  In TOML also
    ``uring_fixed_files``: ``true`` means 1024, from the beginning.
    """

    def __attrs_post_init__(self) -> None:
        check_pool(self.fixed_buffers, self.fixed_buffer_size)

    def asks_page_cache(self, driver: DriverName) -> bool:
        """
        Whether small reads are tried with ``RWF_NOWAIT`` first: ``nowait``, or what is best if that is left out.

        With SQPOLL it is not, for each attempt is a kernel entry, which SQPOLL is there to save; threads
        have nothing to save.  IOPOLL has no use for the page cache.
        """
        if self.nowait is not None:
            return self.nowait
        return not self.iopoll and not (self.sqpoll and driver == "uring")

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], table: str = "io") -> UringOptions:
        """
        Read the options from a table of a TOML file; what it leaves out keeps its default.

        Keys are the names of the options; Ferrite's ``uring_enabled`` and ``uring_queue_depth`` are
        understood, too.  Before Python 3.11 this needs the extra ``toml``.

        :param table: its name, with dots for a table within a table: ``"tool.app.io"``
        :raises OSError: if the file cannot be read
        :raises ValueError: if it is no TOML, has no such table, or has an unknown key or a bad value;
            the message names the file, the key and what is allowed
        """
        values = read_toml(cls, path, table)
        with naming(f"{os.fspath(path)}: [{table}]"):
            return cls(**values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, *, defaults: UringOptions | None = None) -> UringOptions:
        """
        Read the options from environment variables: ``ANYIO_URING_DEPTH`` for ``depth``, and so on.

        One that is not set, or set to nothing, leaves what it is in ``defaults``.

        :param defaults: what the variables override, for instance the options of a file
        :raises ValueError: if a variable is unknown or has a bad value; the message names it and what is
            allowed
        """
        fields = attrs.fields(cls)
        check_variables(fields, environ)
        values = read_environment(fields, environ)
        with naming(f"the environment variables {', '.join(map(variable, values))}"):
            return attrs.evolve(defaults or cls(), **values)

    def _with_driver_variable(self, environ: Mapping[str, str] = os.environ) -> UringOptions:
        """Return these options with ``ANYIO_URING_DRIVER`` in place of ``driver="auto"``."""
        if self.driver != "auto":
            return self
        values: dict[str, Any] = read_environment([attrs.fields(UringOptions).driver], environ)
        return attrs.evolve(self, **values)
