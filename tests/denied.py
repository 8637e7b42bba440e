"""Denials of system calls by a seccomp filter, for programs that tests start."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The same numbers on every architecture since the tables were unified.
NUMBERS = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
# linux/bpf_common.h and linux/seccomp.h
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def deny(name: str, code: int) -> None:
    """Make a system call fail with an errno, in this process and for good."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (LOAD_WORD, 0, 0, 0),  # the call's number
            (JUMP_IF_EQUAL, 0, 1, NUMBERS[name]),
            (RETURN, 0, 0, ERRNO | code),
            (RETURN, 0, 0, ALLOW),
        )
    )
    memory = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.byref(Program(4, ctypes.addressof(memory)))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def is_denied(name: str, code: int) -> bool:
    """Whether a bare call, with arguments that can do nothing, gives this errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(NUMBERS[name], -1, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == code)
