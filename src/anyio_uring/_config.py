"""Options as they are written down: TOML tables, environment variables, sizes with a unit.

Knows files, texts, and how to name the place of a bad value.  It does not know which options there
are: the fields of an attrs class say that (:mod:`anyio_uring._options`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Union

import attrs

PREFIX: Final = "ANYIO_URING_"
# Variables of the test runner, of testing.FakeRing, of logging and of the build: they are no options.
_NO_OPTIONS: Final = frozenset(
    {"ANYIO_URING_EXPECT", "ANYIO_URING_FAKE_SEED", "ANYIO_URING_LOG", "ANYIO_URING_WITHOUT_EXTENSION"}
)

_UNITS: Final = {
    "": 1,
    "B": 1,
    "KB": 1 << 10,
    "KIB": 1 << 10,
    "MB": 1 << 20,
    "MIB": 1 << 20,
    "GB": 1 << 30,
    "GIB": 1 << 30,
}
_BOOLS: Final = {"true": True, "1": True, "false": False, "0": False}
_WRITTEN: Final = "anyio_uring.written"


@attrs.frozen
class Switch:
    """
    A TOML key that turns an option on or off.

    :ivar off: the option's value for ``false``, whatever other keys say
    :ivar on: its value for ``true`` where no other key gives one
    """

    off: object
    on: object


@attrs.frozen
class _Written:
    """How one option is written down, besides by its own name in TOML."""

    text: Callable[[str], object]
    keys: Mapping[str, Union[Switch, None]]


def written(text: Callable[[str], object], keys: Mapping[str, Union[Switch, None]] | None = None) -> dict[str, Any]:
    """
    Return the metadata of an option's field.

    :param text: makes a value of the environment variable's text; what it cannot read it returns as it
        is, so that the field's validator says what is allowed
    :param keys: further TOML keys of this option: a switch, or ``None`` for the option's own value
    """
    return {_WRITTEN: _Written(text, keys or {})}


def as_int(text: str) -> int | str:
    """Return a whole number, or the text if it is none."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else text


def as_bool(text: str) -> bool | str:
    """Return true or false, or the text if it is neither."""
    return _BOOLS.get(text.lower(), text)


def parse_size(value: int | str) -> int:
    """
    Return a number of bytes: of an int, or of a text such as ``"64KiB"``.

    ``KB`` means 1024 bytes, as ``KiB`` does; so do ``MB`` and ``GB`` with their powers.

    :raises TypeError: if it is neither an int nor a text
    :raises ValueError: if it is no size of 1 byte or more
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f'a size must be an int or a text such as "64KiB", not {value!r}')
    number, unit = value, ""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+) ?([A-Za-z]*)", value.strip())
        number, unit = (int(match[1]), match[2].upper()) if match else (0, "")
    if unit not in _UNITS or int(number) < 1:
        raise ValueError(
            'a size must be 1 or more, as a number of bytes or with a unit: "4096", "64KiB" or "64KB" (both 65536), '
            f'"16MiB", "1GiB"; not {value!r}'
        )
    return int(number) * _UNITS[unit]


def read_toml(cls: type, path: str | os.PathLike[str], table: str) -> dict[str, Any]:
    """
    Return the options that a table of a TOML file gives.

    :param table: its name, with dots for a table within a table
    :raises ValueError: naming the file, the key and what is allowed
    """
    place = f"{os.fspath(path)}: [{table}]"
    # {key: (its option, how it sets it)}
    known: dict[str, tuple[attrs.Attribute[Any], Switch | None]] = {}
    for field in attrs.fields(cls):
        known[field.name] = field, None
        known.update((key, (field, how)) for key, how in _how(field).keys.items())
    values: dict[str, Any] = {}
    switched_on: dict[str, Any] = {}
    switched_off: dict[str, Any] = {}
    first: dict[str, str] = {}  # {option: the key that gave it}
    for key, value in _load(path, table).items():
        name = f"{place} {key}"
        if key not in known:
            raise ValueError(f"{name}: there is no such option; {_allowed(known)}")
        field, how = known[key]
        with naming(name):
            if how is None:
                if field.name in first:
                    raise ValueError(f"{name}: {first[field.name]} sets the same option: give one of them")
                first[field.name] = key
                values[field.name] = _checked(field, name, value)
            elif not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
            elif value:
                switched_on[field.name] = how.on
            else:
                switched_off[field.name] = how.off
    return {**switched_on, **values, **switched_off}


def read_environment(fields: Iterable[attrs.Attribute[Any]], environ: Mapping[str, str]) -> dict[str, Any]:
    """
    Return the options that environment variables give; one that is set to nothing gives none.

    :raises ValueError: naming the variable and what is allowed
    """
    values: dict[str, Any] = {}
    for field in fields:
        text = environ.get(variable(field.name))
        if text:
            name = f"the environment variable {variable(field.name)}"
            with naming(name):
                values[field.name] = _checked(field, name, _how(field).text(text))
    return values


def check_variables(fields: Iterable[attrs.Attribute[Any]], environ: Mapping[str, str]) -> None:
    """
    Look for variables that look like options and are none.

    :raises ValueError: naming the first of them and what is allowed
    """
    known = {variable(field.name) for field in fields}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known | _NO_OPTIONS:
            raise ValueError(f"the environment variable {name}: there is no such option; {_allowed(known)}")


def variable(option: str) -> str:
    """Return the environment variable of an option."""
    return PREFIX + option.upper()


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Say in an error where what is wrong was written down, if it does not begin with that itself."""
    try:
        yield
    except (TypeError, ValueError) as exc:
        message = str(exc)
        raise ValueError(message if message.startswith(place) else f"{place}: {message}") from exc


def _how(field: attrs.Attribute[Any]) -> _Written:
    how: _Written = field.metadata[_WRITTEN]
    return how


def _checked(field: attrs.Attribute[Any], name: str, value: object) -> object:
    """Convert and check one value as the class would, but in errors call it as its author did."""
    convert: Any = field.converter
    if convert is not None:
        value = convert(value)
    if field.validator is not None:
        field.validator(None, field.evolve(name=name), value)
    return value


def _allowed(names: Iterable[str]) -> str:
    return f"there are {', '.join(sorted(names))}"


def _load(path: str | os.PathLike[str], table: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - only who has a file pays for it
    else:  # pragma: no cover - Python 3.10
        try:
            import tomli as tomllib  # noqa: PLC0415
        except ModuleNotFoundError as exc:
            raise ModuleNotFoundError(
                "before Python 3.11 reading TOML needs tomli: pip install 'anyio_uring[toml]'", name="tomli"
            ) from exc
    with open(path, "rb") as file:
        try:
            found: Any = tomllib.load(file)
        except (ValueError, RecursionError) as exc:  # the latter of arrays within arrays, a thousand deep
            raise ValueError(f"{os.fspath(path)} is no TOML: {exc}") from exc
    for part in table.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, dict):
        return found
    raise ValueError(f"{os.fspath(path)}: there is no table [{table}]")
