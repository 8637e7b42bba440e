"""Build script of the compiled extension: cffi, API mode, over liburing.

It declares and checks; it knows nothing of the library's behaviour.
setuptools runs it through ``cffi_modules`` in ``setup.py``.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "_native"
REMEDY = (
    "anyio_uring's extension needs a C compiler and liburing 2.3 or newer with its headers: "
    "install gcc and liburing-dev (Debian, Ubuntu, Alpine), liburing-devel (Fedora, RHEL, openSUSE) "
    "or liburing (Arch), then build again."
)


def require_liburing() -> None:
    """Stop the build with one sentence where a compiler or liburing is missing."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = shlex.split(os.environ.get("CPPFLAGS", "") + " " + os.environ.get("CFLAGS", ""))
    # io_uring_submit_and_get_events arrived with liburing 2.3.
    source = "#include <liburing.h>\nint (*oldest)(struct io_uring *) = io_uring_submit_and_get_events;\n"
    command = [*compiler, *flags, "-fsyntax-only", "-Werror", "-x", "c", "-"]
    try:
        check = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(REMEDY) from None
    if check.returncode:
        raise SystemExit(REMEDY)


require_liburing()
ffibuilder = FFI()
ffibuilder.cdef((NATIVE / "au_ring.h").read_text(encoding="utf-8"))
ffibuilder.set_source(
    "anyio_uring._native._lib",
    '#include <stdint.h>\n#include "au_ring.h"\n',
    sources=[f"src/anyio_uring/_native/{name}.c" for name in ("au_ring", "au_bytes", "au_system")],
    include_dirs=["src/anyio_uring/_native"],
    depends=["src/anyio_uring/_native/au_ring.h"],
    libraries=["uring"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
