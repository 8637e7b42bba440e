import os
import sys

from setuptools import setup

# What pyproject.toml cannot say: the extension is built on Linux alone; elsewhere all runs on threads.
HAS_RING = sys.platform == "linux" and not os.environ.get("ANYIO_URING_WITHOUT_EXTENSION")
setup(cffi_modules=["src/anyio_uring/_ffi_build.py:ffibuilder"] if HAS_RING else [])
