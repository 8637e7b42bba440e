"""What a caller may choose when opening a manager, validated before anything is opened.

Knows names, types and ranges; it does not know what a driver does with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, cast

import attrs

DriverName = Literal["uring", "threads"]
DriverChoice = Literal["auto", "uring", "threads"]
CheckpointPolicy = Literal["always", "budget"]

DRIVER_VARIABLE = "ANYIO_URING_DRIVER"
# io_uring_setup(2): IORING_MAX_ENTRIES.
DEPTH_MAX = 32768


def _check_depth(_options: object, _attribute: object, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"depth must be an int, not {type(value).__name__}")
    if not 1 <= value <= DEPTH_MAX:
        raise ValueError(f"depth must be between 1 and {DEPTH_MAX}, not {value}")


def _check_driver(_options: object, _attribute: object, value: object) -> None:
    if value not in {"auto", "uring", "threads"}:
        raise ValueError(f'driver must be "auto", "uring" or "threads", not {value!r}')


def _check_checkpoint(_options: object, _attribute: object, value: object) -> None:
    if value not in {"always", "budget"}:
        raise ValueError(f'checkpoint must be "always" or "budget", not {value!r}')


def _check_bool(_options: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be True or False, not {value!r}")


@attrs.frozen(kw_only=True)
class UringOptions:
    """The options of one manager, checked: :class:`ValueError` or :class:`TypeError` names the bad one."""

    depth: int = attrs.field(default=256, validator=_check_depth)
    driver: DriverChoice = attrs.field(default="auto", validator=_check_driver)
    checkpoint: CheckpointPolicy = attrs.field(default="always", validator=_check_checkpoint)
    nowait: bool = attrs.field(default=True, validator=_check_bool)

    def with_environment(self, environ: Mapping[str, str] = os.environ) -> UringOptions:
        """Return these options with ``ANYIO_URING_DRIVER`` in place of ``driver="auto"``."""
        value = environ.get(DRIVER_VARIABLE, "")
        if not value or self.driver != "auto":
            return self
        if value not in {"auto", "uring", "threads"}:
            raise ValueError(
                f'the environment variable {DRIVER_VARIABLE} must be "auto", "uring" or "threads", not {value!r}'
            )
        return attrs.evolve(self, driver=cast("DriverChoice", value))
