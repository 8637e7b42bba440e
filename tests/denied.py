"""What takes from a process what it could have: system calls, resources, /proc; for programs that tests start.

Each function takes something away for good, and raises if it is still there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import socket
import struct
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The same numbers on every architecture since the tables were unified.
NUMBERS = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
# linux/bpf_common.h and linux/seccomp.h
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
UNKNOWN = -1  # __NR_SCMP_ERROR of seccomp.h

# linux/sched.h and linux/mount.h
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 16384, 1 << 18


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
    assert is_denied(name, code), "the denial did not take place"


def is_denied(name: str, code: int) -> bool:
    """Whether a bare call, with arguments that can do nothing, gives this errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(NUMBERS[name], -1, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == code)


def allow_only(names: list[str]) -> None:
    """Let every system call but these fail with EPERM, in this thread and those it starts, for good."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ERRNO | errno.EPERM))
    for name in names:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        assert number != UNKNOWN, f"there is no system call {name}"
        # Below 0: one that this architecture does not have.
        if number >= 0 and seccomp.seccomp_rule_add(context, ctypes.c_uint32(ALLOW), number, 0):
            raise AssertionError(f"no rule for {name}")
    if seccomp.seccomp_load(context):
        raise AssertionError("the filter could not be loaded")
    with contextlib.suppress(PermissionError):
        socket.socket().close()
        raise AssertionError("a socket, which was not allowed")


def drop_privileges() -> None:
    """Become a user that has no other process, and no right to anything; who is none of root's stays as is."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(100_000 + os.getpid())  # RLIMIT_NPROC counts a user's threads, all over the system
    with contextlib.suppress(PermissionError):
        os.setuid(0)
        raise AssertionError("the privileges are still there")


def limit_locked_memory(size: int) -> None:
    """Allow this many bytes of locked memory; without privileges."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))
    drop_privileges()
    with mmap.mmap(-1, 2 * size) as memory:
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        is_locked = libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(2 * size)) == 0
        assert not is_locked, "the limit of locked memory does not hold"


def use_up_descriptors(left: int = 0) -> list[int]:
    """Let no more than ``left`` descriptors be free; return those that are in the way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 30, hard))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for _ in range(left):
        os.close(taken.pop())
    return taken


def refuse_threads() -> None:
    """Let no thread be started, without privileges."""
    drop_privileges()
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        return
    raise AssertionError("a thread was started in spite of RLIMIT_NPROC")


def own_mounts() -> bool:
    """Give this process a table of mounts of its own, that it may change; False if that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) and libc.unshare(CLONE_NEWNS | CLONE_NEWUSER):
        return False
    return not libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def mount_memory(path: str, size: int, *, read_only: bool = False) -> None:
    """Mount a filesystem of this many bytes (in memory); or make the one that is there read-only."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_REMOUNT | MS_RDONLY if read_only else 0
    if libc.mount(b"tmpfs", path.encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def hide_proc() -> None:
    """Let /proc be an empty directory."""
    mount_memory("/proc", 4096)
    assert not os.listdir("/proc"), "/proc is still there"


def is_out_of_descriptors() -> bool:
    """Whether none can be opened."""
    try:
        os.close(os.open("/dev/null", os.O_RDONLY))
    except OSError as exc:
        return exc.errno == errno.EMFILE
    return False
