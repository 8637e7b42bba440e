"""The part of the build that pyproject.toml cannot say: the extension is built on Linux alone."""
import sys

from setuptools import setup

setup(cffi_modules=["src/anyio_uring/_ffi_build.py:ffibuilder"] if sys.platform == "linux" else [])
