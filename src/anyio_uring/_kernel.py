"""What a report asks of the extension: which set-ups the kernel allows, and which liburing it was built with.

Knows the extension's answers; it does not know who asks, or what is done about them.
"""

from __future__ import annotations

from ._ring import extension


def liburing_version() -> str:
    """
    Return the version of liburing that the extension was built with.

    :raises UringUnavailableError: if there is no extension
    """
    lib, _ = extension()
    return "{}.{}".format(*divmod(int(lib.au_liburing_version()), 1000))


def try_setup(flags: int = 0) -> int:
    """
    Set up a small ring with these ``IORING_SETUP_*`` bits, and close it.

    :return: 0, or the errno that the kernel gave
    :raises UringUnavailableError: if there is no extension
    """
    lib, ffi = extension()
    out = ffi.new("au_ring **")
    answer: int = lib.au_open(out, 8, 16, flags, 0, 0)
    if answer == 0:
        lib.au_close(out[0])
    return -answer
