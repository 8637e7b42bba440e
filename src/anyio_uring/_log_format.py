"""How an append-only log looks as bytes: the file's header, the frame of a record, and what is valid.

It knows bytes; it knows nothing of files, tasks or who reads and writes.

A log is a header of 40 bytes and records one behind the other, without padding; zeros behind the last one
are space that was allocated ahead.  All numbers are little-endian::

    header   magic 8 | version 4 | mark 4 | salt 8 | base 8 | record_length_max 4 | CRC-32 of these 4
    record   mark 4 | length 4 | unsynced 4 | CRC-32 4 | the record's bytes

*Offsets* count from the start of the first file, and go on from file to file where a log is rotated: a file's
``base`` is what its positions lack of that, and 0 in the first one, where an offset is a position.

*mark* and *salt* are random, and each file has its own; the mark has no zero byte, so no record, not even an
empty one, looks like allocated space.  A record's checksum covers the salt and the record's offset, too: what
an earlier life of a disk block left there, or what was copied from elsewhere, is not taken for valid.

*unsynced* says how far behind a record's offset the log was known to be durable when it was written.  That
tells a torn tail from a damaged log (:func:`suspects`): the kernel writes the pages of one commit in any
order, so a valid record behind an invalid one proves nothing; but a record that was written after the invalid
one had been synced does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

import attrs

_HEADER: Final = struct.Struct("<8sI4sQQI")
_CHECKSUM: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<4sIII")
# What of a frame is checked in front of the record itself: salt, offset, length, unsynced.
_CHECKED: Final = struct.Struct("<QQII")

_MAGIC: Final = b"anyiolog"
_VERSION: Final = 1

HEADER_SIZE: Final = _HEADER.size + _CHECKSUM.size
FRAME_SIZE: Final = _FRAME.size
# A reader holds a record in memory before it knows that its length is valid.
RECORD_LENGTH_MAX: Final = 1 << 30
# A log of as many bytes as a file has at most (off_t) would take centuries; behind it frames could not hold an offset.
_BASE_MAX: Final = (1 << 63) - 1
# What the field holds at most; it then says nothing.
_UNSYNCED_MAX: Final = 0xFFFF_FFFF

_pack_frame: Final = _FRAME.pack
_unpack_frame: Final = _FRAME.unpack_from
_pack_checked: Final = _CHECKED.pack


class InvalidHeaderError(Exception):
    """A file does not begin as a log does; the message says how."""


@attrs.frozen
class FileHeader:
    """
    What is true of all records of one file.

    :ivar mark: what each of its records begins with
    :ivar salt: what each checksum includes
    :ivar base: offset of the file's first byte
    :ivar record_length_max: bytes of its longest possible record
    """

    mark: bytes
    salt: int
    base: int
    record_length_max: int

    def to_bytes(self) -> bytes:
        """Return the header as the file has it."""
        fields = _HEADER.pack(_MAGIC, _VERSION, self.mark, self.salt, self.base, self.record_length_max)
        return fields + _CHECKSUM.pack(crc32(fields))

    @property
    def first(self) -> int:
        """Offset of the file's first record."""
        return self.base + HEADER_SIZE


def new_header(first: int, record_length_max: int) -> FileHeader:
    """Return the header of a new file, whose first record has this offset."""
    mark = os.urandom(4).replace(b"\0", b"\1")
    return FileHeader(mark, int.from_bytes(os.urandom(8), "little"), first - HEADER_SIZE, record_length_max)


def parse_header(data: bytes) -> FileHeader | None:
    """
    Return the header that a file begins with; ``None`` if the file was being created when the system stopped.

    :param data: the file's first bytes, more than ``HEADER_SIZE`` of them unless it is shorter
    :raises InvalidHeaderError: if it is something else's file, or damaged
    """
    # The header is durable before anything is behind it: a creation leaves a part of it, or as many zeros at most.
    if not data.strip(b"\0"):
        if len(data) > HEADER_SIZE:
            raise InvalidHeaderError(
                "this is no log: it begins with zeros, more than a creation that was cut short leaves"
            )
        return None
    known = _MAGIC + _VERSION.to_bytes(4, "little")
    if len(data) < HEADER_SIZE and known.startswith(data[: len(known)]):
        return None
    if len(data) < HEADER_SIZE or not data.startswith(_MAGIC):
        raise InvalidHeaderError("this is no log: it does not begin as one")
    _, version, mark, salt, base, record_length_max = _HEADER.unpack_from(data)
    (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    if checksum != crc32(data[: _HEADER.size]):
        raise InvalidHeaderError("the log's header is damaged: its checksum is wrong")
    if version != _VERSION:
        raise InvalidHeaderError(f"the log has version {version} of the format, and this library reads {_VERSION}")
    if base > _BASE_MAX or not 0 < record_length_max <= RECORD_LENGTH_MAX:
        raise InvalidHeaderError(
            f"the log's header cannot be: its first offset is {base}, its longest record has {record_length_max} bytes"
        )
    return FileHeader(mark, salt, base, record_length_max)


def frame(header: FileHeader, offset: int, unsynced: int, record: bytes) -> bytes:
    """
    Return what stands in front of a record.

    :param unsynced: bytes between ``offset`` and what is known to be durable
    """
    length = len(record)
    unsynced = min(unsynced, _UNSYNCED_MAX)
    checksum = crc32(record, crc32(_pack_checked(header.salt, offset, length, unsynced)))
    return _pack_frame(header.mark, length, unsynced, checksum)


class Parsed(NamedTuple):
    """
    What the start of some bytes holds.

    ``records`` are the valid ones, with their offsets; ``end`` is the offset behind the last of them; ``needed``
    is how many bytes from there on would show the next one whole, and 0 if what is there is none.
    """

    records: list[tuple[int, bytes]]
    end: int
    needed: int


def parse(header: FileHeader, data: bytes, offset: int) -> Parsed:
    """
    Return the whole, valid records that some bytes of a file begin with.

    :param offset: of the first byte
    """
    records: list[tuple[int, bytes]] = []
    mark, salt, length_max = header.mark, header.salt, header.record_length_max
    unpack, pack, crc = _unpack_frame, _pack_checked, crc32  # 0.1 us of 1.2 for a small record
    at, size = 0, len(data)
    while at + FRAME_SIZE <= size:
        found, length, unsynced, checksum = unpack(data, at)
        if found != mark or length > length_max:
            return Parsed(records, offset + at, 0)
        start = at + FRAME_SIZE
        end = start + length
        if end > size:
            return Parsed(records, offset + at, FRAME_SIZE + length)
        record = data[start:end]
        if crc(record, crc(pack(salt, offset + at, length, unsynced))) != checksum:
            return Parsed(records, offset + at, 0)
        records.append((offset + at, record))
        at = end
    return Parsed(records, offset + at, FRAME_SIZE)


def suspects(header: FileHeader, data: bytes, offset: int, damage: int) -> Iterator[tuple[int, int]]:
    """
    Find what would prove, if it is a valid record, that something invalid in front of it had been durable.

    :param offset: of the first byte
    :param damage: offset of what is invalid
    :return: of each the offset and the size, frame and record
    """
    at = data.find(header.mark)
    while 0 <= at <= len(data) - FRAME_SIZE:
        _, length, unsynced, _ = _unpack_frame(data, at)
        if length <= header.record_length_max and unsynced < _UNSYNCED_MAX and offset + at - unsynced > damage:
            yield offset + at, FRAME_SIZE + length
        at = data.find(header.mark, at + 1)
