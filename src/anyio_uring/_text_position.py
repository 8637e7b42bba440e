"""Positions in text: a byte offset, and what it takes to decode from there; packed as ``io.TextIOWrapper`` packs it.

It knows incremental decoders and bytes; it knows no file.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

# Bits of each field, as the C implementation has them.  A decoder's flags may have more: those of the stateful Asian
# encodings have 64, to which the newline decoder adds one.  The rest of them comes last, where the built-in file
# has no room.
_OFFSET_BITS: Final = 64
_FIELD_BITS: Final = 32
_FIELD_MASK: Final = (1 << _FIELD_BITS) - 1
# Below it, bytes are decoded one by one: finding out by halves costs more.
_BYTES_ONE_BY_ONE: Final = 16


@attrs.frozen
class TextPosition:
    """
    Where a character stands.

    :ivar offset: byte of the file from which to decode
    :ivar flags: the decoder's state there; that it holds back no bytes there is what makes it a place to begin
    :ivar bytes_to_feed: bytes to decode from there
    :ivar chars_to_skip: characters of those that are before this one
    :ivar needs_end: whether these bytes have to be decoded as the last ones
    """

    offset: int
    flags: int = 0
    bytes_to_feed: int = 0
    chars_to_skip: int = 0
    needs_end: bool = False

    def pack(self) -> int:
        """Return it as the number that ``tell()`` gives."""
        flags, more_flags = self.flags & _FIELD_MASK, self.flags >> _FIELD_BITS
        rest = (flags, self.bytes_to_feed, self.chars_to_skip, int(self.needs_end), more_flags)
        return self.offset + sum(part << _OFFSET_BITS + i * _FIELD_BITS for i, part in enumerate(rest))

    @classmethod
    def unpack(cls, cookie: int) -> TextPosition:
        """Undo :meth:`pack`."""
        fields = [cookie >> _OFFSET_BITS + i * _FIELD_BITS & _FIELD_MASK for i in range(4)]
        flags, bytes_to_feed, chars_to_skip, needs_end = fields
        flags |= cookie >> _OFFSET_BITS + 4 * _FIELD_BITS << _FIELD_BITS
        return cls(cookie & (1 << _OFFSET_BITS) - 1, flags, bytes_to_feed, chars_to_skip, bool(needs_end))


def locate(decoder: Any, offset: int, flags: int, data: bytes, chars: int) -> TextPosition:
    """
    Find the position behind the first ``chars`` characters of bytes.

    :param decoder: an incremental decoder that nobody else uses
    :param offset: of the first byte in the file
    :param flags: the decoder's state before it
    :raises OSError: if the bytes have not so many characters
    """
    begin, flags, done = _last_beginning_before(decoder, flags, data, chars)
    return _walk(decoder, begin, flags, data, chars=chars - done, offset=offset)


def _last_beginning_before(decoder: Any, flags: int, data: bytes, chars: int) -> tuple[int, int, int]:
    """Return a place to begin, not far before the wanted character: its index, the flags and characters before it."""
    begin, end, done = 0, len(data), 0
    while end - begin > _BYTES_ONE_BY_ONE:
        middle = (begin + end) // 2
        count, held_back, flags_there = _decode(decoder, flags, data[begin:middle])
        if held_back:
            middle -= held_back
            count, held_back, flags_there = _decode(decoder, flags, data[begin:middle])
        if done + count >= chars:
            end = middle
        elif held_back or middle <= begin:
            break
        else:
            begin, flags, done = middle, flags_there, done + count
    return begin, flags, done


def _decode(decoder: Any, flags: int, data: bytes) -> tuple[int, int, int]:
    """Return how many characters these bytes are, how many bytes are held back, and the flags behind them."""
    decoder.setstate((b"", flags))
    count = len(decoder.decode(data))
    held_back, flags_there = decoder.getstate()
    return count, len(held_back), flags_there


def _walk(decoder: Any, begin: int, flags: int, data: bytes, *, chars: int, offset: int) -> TextPosition:
    """Decode byte by byte until the wanted character, taking note of the last place to begin."""
    decoder.setstate((b"", flags))
    fed = decoded = 0
    needs_end = False
    if chars:
        for index in range(begin, len(data)):
            fed += 1
            decoded += len(decoder.decode(data[index : index + 1]))
            held_back, flags_there = decoder.getstate()
            if not held_back and decoded <= chars:
                begin, flags, chars = index + 1, flags_there, chars - decoded
                fed = decoded = 0
            if decoded >= chars:
                break
        else:
            decoded += len(decoder.decode(b"", True))
            needs_end = True
            if decoded < chars:
                raise OSError("can't reconstruct logical file position")
    if not chars:
        return TextPosition(offset + begin, flags)
    return TextPosition(offset + begin, flags, fed, chars, needs_end)
