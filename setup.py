import sys

from setuptools import setup

# What pyproject.toml cannot say: the extension is built on Linux alone; elsewhere all runs on threads.
setup(cffi_modules=["src/anyio_uring/_ffi_build.py:ffibuilder"] if sys.platform == "linux" else [])
