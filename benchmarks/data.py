"""
The files that are read and written: made here, and checked here.

Every block of 4 KiB is its own number, 512 times over, so whoever read a block can tell whether it
is the right one, and all of it.  Knows nothing of cases and participants.
"""

from __future__ import annotations

import os

BLOCK = 4096
_WORD = 8
_WORDS = BLOCK // _WORD
SMALL_FILES = 256


class WrongBytesError(Exception):
    """What was read is not what is in the file."""


def block(number: int) -> bytes:
    """Return the content of a block."""
    return number.to_bytes(_WORD, "little") * _WORDS


def check(data: bytes | bytearray | memoryview, offset: int, size: int) -> None:
    """
    Check what was read at ``offset``: its length, its first block and its last.

    :raises WrongBytesError: if it is not what the file has there
    """
    if len(data) != size:
        raise WrongBytesError(f"{len(data)} bytes instead of {size} at offset {offset}")
    for position in {0, size - BLOCK}:
        if bytes(data[position : position + BLOCK]) != block((offset + position) // BLOCK):
            raise WrongBytesError(f"wrong bytes at offset {offset + position}")


def make_file(path: str, size: int) -> None:
    """Make the big file, unless it is there; on the disk, not only in the page cache."""
    if os.path.exists(path) and os.path.getsize(path) == size:
        return
    with open(f"{path}.part", "wb", buffering=1 << 20) as file:
        file.writelines(block(number) for number in range(size // BLOCK))
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.part", path)


def make_small_files(directory: str) -> list[str]:
    """Make small files, each of one block, which is its own number."""
    os.makedirs(directory, exist_ok=True)
    paths = [os.path.join(directory, str(number)) for number in range(SMALL_FILES)]
    for number, path in enumerate(paths):
        make_small_file(path, number)
    return paths


def make_small_file(path: str, number: int) -> None:
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.write(block(number))


def warm(path: str) -> None:
    """Bring a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def evict(descriptor: int) -> None:
    """Drop a file from the page cache."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
