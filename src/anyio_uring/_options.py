"""What a caller may choose when opening a manager, validated before anything is opened.

Knows names, types and ranges; it does not know what a driver does with them.
A new option is one field of :class:`UringOptions`: default, check, how it is written down.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from ._config import Switch, as_bool, as_int, check_variables, read_environment, read_toml, variable, written

DriverName = Literal["uring", "threads"]
DriverChoice = Literal["auto", "uring", "threads"]
CheckpointPolicy = Literal["always", "budget"]

DRIVER_VARIABLE: Final = variable("driver")
# io_uring_setup(2): IORING_MAX_ENTRIES.
DEPTH_MAX: Final = 32768
# Ferrite's keys for what is not built here yet: {key: the option that will have it}.
_LATER: Final = {
    "uring_sqpoll": "sqpoll",
    "uring_sqpoll_idle_ms": "sqpoll_idle_ms",
    "uring_fixed_buffers": "fixed_buffers",  # Switch(off=0, on=...), as it has a count beside it
    "uring_fixed_buffer_count": "fixed_buffers",
    "uring_fixed_buffer_size": "fixed_buffer_size",  # converter=parse_size
    "uring_fixed_files": "fixed_files",  # Switch(off=0, on=...)
}


def _check_depth(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be an int between 1 and {DEPTH_MAX}, not {value!r}")
    if not 1 <= value <= DEPTH_MAX:
        raise ValueError(f"{attribute.name} must be between 1 and {DEPTH_MAX}, not {value}")


def _check_driver(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("auto", "uring", "threads"):
        raise ValueError(f'{attribute.name} must be "auto", "uring" or "threads", not {value!r}')


def _check_checkpoint(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("always", "budget"):
        raise ValueError(f'{attribute.name} must be "always" or "budget", not {value!r}')


def _check_bool(_options: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be true or false, not {value!r}")


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
    """``"uring"``, ``"threads"`` or ``"auto"``.  In TOML also ``uring_enabled``: ``false`` means ``"threads"``."""
    checkpoint: CheckpointPolicy = attrs.field(default="always", validator=_check_checkpoint, metadata=written(str))
    """``"always"``, or ``"budget"``: cached reads go on for a bounded time without a schedule point."""
    nowait: bool = attrs.field(default=True, validator=_check_bool, metadata=written(as_bool))
    """Whether small reads ask the page cache first (``RWF_NOWAIT``)."""

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
        return cls(**read_toml(cls, path, table, _LATER))

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
        return attrs.evolve(defaults or cls(), **read_environment(fields, environ))

    def _with_driver_variable(self, environ: Mapping[str, str] = os.environ) -> UringOptions:
        """Return these options with ``ANYIO_URING_DRIVER`` in place of ``driver="auto"``."""
        if self.driver != "auto":
            return self
        values: dict[str, Any] = read_environment([attrs.fields(UringOptions).driver], environ)
        return attrs.evolve(self, **values)
