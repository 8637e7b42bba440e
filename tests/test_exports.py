"""The public surface."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import anyio_uring


def test_all_is_a_sorted_tuple_of_documented_names() -> None:
    assert isinstance(anyio_uring.__all__, tuple)
    assert list(anyio_uring.__all__) == sorted(anyio_uring.__all__)
    for name in anyio_uring.__all__:
        assert name == "FileDescriptor" or inspect.getdoc(getattr(anyio_uring, name)), name


def test_every_public_method_is_documented() -> None:
    for cls in (
        anyio_uring.AsyncIoManager,
        anyio_uring.BatchError,
        anyio_uring.ColdTierReader,
        anyio_uring.UringOptions,
        anyio_uring.Instrument,
    ):
        for name, member in vars(cls).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, (property, classmethod))):
                assert inspect.getdoc(member), f"{cls.__name__}.{name}"


def test_nothing_public_is_left_out() -> None:
    # Modules that were imported are no names of the package: anyio_uring.otel is there for who imports it.
    public = {
        name
        for name, value in vars(anyio_uring).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(anyio_uring.__all__)


def test_every_module_says_what_it_is_for() -> None:
    for module in pkgutil.iter_modules(anyio_uring.__path__, "anyio_uring."):
        if module.name not in {"anyio_uring._ffi_build", "anyio_uring._demo_command"}:
            assert importlib.import_module(module.name).__doc__, module.name


def test_the_command_line_needs_the_standard_library_alone() -> None:
    code = "import sys, anyio_uring.__main__; assert not {'trio', 'rich', 'click'} & set(sys.modules), set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_does_not_import_trio_or_the_extension() -> None:
    code = (
        "import sys, anyio_uring; "
        "assert not {'trio', 'rich', 'click', 'opentelemetry', 'anyio_uring._native._lib'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
