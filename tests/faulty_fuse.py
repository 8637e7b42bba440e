"""A FUSE filesystem that loses what was not synced, and fails when it is told to: ``python -m tests.faulty_fuse DIR``.

It serves a :class:`~tests.lossy_store.Store` at a directory until its standard input ends, and takes commands there:
a line of JSON each, answered by one on its standard output.  :mod:`tests.faulty_disk` is what tests use.

``crash`` and ``crash_before`` switch the machine off: every operation fails with EIO until ``recover``.
Only operations that change something are counted, and can be failed or held back by name: ``COUNTED`` and reads.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import posixpath
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import attrs
import mfusepy

from .lossy_store import Loss, Node, Store

COUNTED: Final = frozenset(
    {
        *("create", "write", "truncate", "fallocate", "fsync", "chmod"),
        *("rename", "unlink", "link", "symlink", "mkdir", "rmdir", "fsyncdir"),
    }
)
# Seconds until a held operation fails by itself: the process that waits for it cannot even be killed.
_HELD_MAX: Final = 30
_RENAME_NOREPLACE: Final = 1
_FALLOC_FL_KEEP_SIZE: Final = 1
_PR_SET_PDEATHSIG: Final = 1


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@attrs.define(eq=False)
class Fault:
    """
    What is to become of operations of one kind.

    :ivar left: how many more are to pass before it strikes
    :ivar times: how often it strikes
    :ivar at: a byte that the operation has to touch; ``None``: any
    """

    operation: str
    code: int
    left: int
    times: int
    at: int | None


@attrs.define(eq=False)
class Faults:
    """What happens to operations on their way to the store."""

    store: Store
    lock: threading.Condition = attrs.field(factory=threading.Condition)
    is_down: bool = False
    seen: list[str] = attrs.field(factory=list)
    faults: list[Fault] = attrs.field(factory=list)
    crash_at: tuple[int, Loss, int] | None = None
    space: int | None = None
    write_max: int | None = None
    read_max: int | None = None
    held: set[str] = attrs.field(factory=set)
    waiting: list[str] = attrs.field(factory=list)
    expired: list[str] = attrs.field(factory=list)

    @contextmanager
    def operation(self, name: str, touched: range | None = None) -> Iterator[None]:
        """Let one operation come to the store, or not; ``touched`` are the bytes that it reads or writes."""
        with self.lock:
            if name in self.held:
                self.waiting.append(name)
                self.lock.notify_all()
                if not self.lock.wait_for(lambda: name not in self.held, _HELD_MAX):
                    self.expired.append(name)
                    raise _error(errno.ETIMEDOUT)
            if name in COUNTED:
                if self.crash_at is not None and len(self.seen) == self.crash_at[0] and not self.is_down:
                    self.crash(*self.crash_at[1:])
                if not self.is_down:
                    self.seen.append(name)
            if self.is_down:
                raise _error(errno.EIO)
            for fault in self.faults:
                is_meant = fault.operation == name and (fault.at is None or (touched and fault.at in touched))
                if is_meant and self._strikes(fault):
                    raise _error(fault.code)
            yield

    @staticmethod
    def _strikes(fault: Fault) -> bool:
        if fault.left:
            fault.left -= 1
            return False
        fault.times -= 1
        return fault.times >= 0

    def crash(self, loss: Loss, seed: int) -> None:
        self.store.crash(loss, seed)
        self.crash_at = None
        self.is_down = True

    def room(self, node: Node, offset: int, size: int) -> int:
        """Return how many bytes of a write there is room for: at least one, or ENOSPC."""
        if self.write_max is not None:
            size = min(size, self.write_max)
        if self.space is not None:
            free = self.space - self.store.used
            size = min(size, max(len(node.content) + free - offset, 0))
            if not size:
                raise _error(errno.ENOSPC)
        return size


class FaultyFilesystem(mfusepy.Operations):
    """The store as FUSE's calls. A handle is a node's number, valid until the next crash."""

    use_ns = True

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._store = faults.store
        self._handles: dict[int, tuple[Node, int]] = {}  # {handle: (node, crashes before it was opened)}
        self._last_handle = 0

    def _open(self, node: Node) -> int:
        self._last_handle += 1
        self._handles[self._last_handle] = node, self._store.crashes
        return self._last_handle

    def _node(self, path: str | None, handle: int | None) -> Node:
        """Return an open file's node, which may have no name any more."""
        if not handle:
            assert path is not None
            return self._store.find(path)
        node, crashes = self._handles[handle]
        if crashes != self._store.crashes:
            raise _error(errno.EIO)
        return node

    def init(self, path: str) -> None:
        """Tell who started this that it is mounted."""
        print(json.dumps("mounted"), flush=True)

    # --- names ----------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self._faults.operation("getattr"):
            node = self._node(path, fh)
            size = len(node.target or node.content)
            return {
                "st_mode": node.mode,
                "st_size": size,
                "st_nlink": self._store.links(node),
                "st_ino": node.number,
                "st_uid": os.getuid(),
                "st_gid": os.getgid(),
                "st_blocks": -(-size // 512),
            }

    def readdir(self, path: str, fh: int) -> Any:
        with self._faults.operation("readdir"):
            # Numbers, too: the C library leaves out an entry whose number is 0.
            nodes = {".": self._store.find(path), "..": self._store.find(posixpath.dirname(path))}
            nodes |= {name: self._store.find(posixpath.join(path, name)) for name in self._store.children(path)}
            return [(name, {"st_mode": node.mode, "st_ino": node.number}, 0) for name, node in nodes.items()]

    def readlink(self, path: str) -> str:
        with self._faults.operation("readlink"):
            return self._store.find(path).target

    def mkdir(self, path: str, mode: int) -> int:
        with self._faults.operation("mkdir"):
            self._store.create(path, stat.S_IFDIR | mode)
        return 0

    def symlink(self, target: str, source: str) -> int:
        with self._faults.operation("symlink"):
            self._store.create(target, stat.S_IFLNK | 0o777, source)
        return 0

    def link(self, target: str, source: str) -> int:
        with self._faults.operation("link"):
            self._store.link(source, target)
        return 0

    def unlink(self, path: str) -> int:
        with self._faults.operation("unlink"):
            self._store.remove(path)
        return 0

    def rmdir(self, path: str) -> int:
        with self._faults.operation("rmdir"):
            self._store.remove(path)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        with self._faults.operation("rename"):
            if flags & ~_RENAME_NOREPLACE:
                raise _error(errno.EINVAL)
            self._store.rename(old, new, noreplace=bool(flags))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        with self._faults.operation("chmod"):
            node = self._store.find(path)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        raise _error(errno.EPERM)

    def utimens(self, path: str, times: Any = None) -> int:
        with self._faults.operation("utimens"):
            self._store.find(path)
        return 0

    def opendir(self, path: str) -> int:
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        with self._faults.operation("fsyncdir"):
            self._store.sync_directory(path)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bavail": 1 << 20, "f_namemax": 255}

    # --- content --------------------------------------------------------------------------------

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        with self._faults.operation("create"):
            return self._open(self._store.create(path, stat.S_IFREG | stat.S_IMODE(mode)))

    def open(self, path: str, flags: int) -> int:
        with self._faults.operation("open"):
            return self._open(self._store.find(path))

    def release(self, path: str, fh: int) -> int:
        with self._faults.lock:
            del self._handles[fh]
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._faults.operation("read", range(offset, offset + size)):
            size = size if self._faults.read_max is None else min(size, self._faults.read_max)
            return bytes(self._node(path, fh).content[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._faults.operation("write", range(offset, offset + len(data))):
            node = self._node(path, fh)
            size = self._faults.room(node, offset, len(data))
            node.change((offset, data[:size]))
            return size

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self._faults.operation("truncate"):
            self._node(path, fh).change(length)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        with self._faults.operation("fallocate"):
            node = self._node(path, fh)
            if mode & ~_FALLOC_FL_KEEP_SIZE:
                raise _error(errno.EOPNOTSUPP)
            end = offset + size
            if end > len(node.content):
                if self._faults.space is not None and self._faults.room(node, offset, size) < size:
                    raise _error(errno.ENOSPC)
                if not mode:
                    node.change(end)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        node: Node | None = None
        try:
            with self._faults.operation("fsync"):
                node = self._node(path, fh)
                node.sync(data_only=bool(datasync))
        except OSError:
            with self._faults.lock:
                if not self._faults.is_down:
                    self._node(path, fh).fail_to_sync()
            raise
        return 0


class FlaggedFuse(mfusepy.FUSE):
    """mfusepy forgets the flags of ``renameat2(2)``."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        return self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)  # type: ignore[no-any-return]


class Control:
    """Commands, as methods; their keywords and answers are JSON."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def operations(self) -> list[str]:
        """Return the names of the counted operations since the last ``reset``."""
        return self._faults.seen

    def reset(self, *, wipe: bool) -> None:
        """Forget every fault and count, and all content, too."""
        faults = self._faults
        if wipe:
            faults.store.wipe()
            faults.is_down = False
        faults.seen.clear()
        faults.faults.clear()
        faults.held.clear()
        faults.expired.clear()
        faults.crash_at = faults.space = faults.write_max = faults.read_max = None
        faults.lock.notify_all()

    def crash(self, loss: Loss, seed: int) -> None:
        self._faults.crash(loss, seed)

    def crash_before(self, count: int, loss: Loss, seed: int) -> None:
        self._faults.crash_at = count, loss, seed

    def has_crashed(self) -> bool:
        return self._faults.is_down

    def recover(self) -> None:
        """Switch on again; return nothing but what is on the disk."""
        self._faults.is_down = False

    def fail(self, operation: str, code: int, nth: int, times: int, at: int | None) -> None:
        self._faults.faults.append(Fault(operation, code, nth - 1, times, at))

    def limit(self, space: int | None, write_max: int | None, read_max: int | None) -> None:
        """Leave room for ``space`` more bytes; take at most ``write_max`` of each write, give ``read_max`` of a read."""
        self._faults.space = None if space is None else self._faults.store.used + space
        self._faults.write_max = write_max
        self._faults.read_max = read_max

    def hold(self, operation: str) -> None:
        self._faults.held.add(operation)
        self._faults.waiting.clear()

    def wait_until_held(self, count: int) -> bool:
        return self._faults.lock.wait_for(lambda: len(self._faults.waiting) >= count, _HELD_MAX)

    def release(self) -> None:
        self._faults.held.clear()
        self._faults.lock.notify_all()

    def expired(self) -> list[str]:
        return self._faults.expired

    def tree(self) -> dict[str, Any]:
        """Return every name with its content, past every cache and fault."""
        return {
            path: node.target or node.content.decode("latin-1")
            for path, node in self._faults.store.names.items()
            if not stat.S_ISDIR(node.mode)
        }


def _serve_commands(control: Control, lock: threading.Condition) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        method: Callable[..., Any] = getattr(control, command.pop("command"))
        with lock:
            answer = method(**command)
        print(json.dumps(answer), flush=True)
    os._exit(0)


def main(directory: str) -> None:
    # Whoever started this is gone: then nobody must wait for an answer that never comes.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faults = Faults(Store())
    commands = threading.Thread(target=_serve_commands, args=(Control(faults), faults.lock), daemon=True)
    commands.start()
    # The kernel is to remember nothing that a crash takes.
    timeouts = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    options = {"foreground": True, "fsname": "faulty", "hard_remove": True, "use_ino": True, **timeouts}
    try:
        FlaggedFuse(FaultyFilesystem(faults), directory, **options)
    except RuntimeError:  # libfuse has said why
        sys.exit(1)


if __name__ == "__main__":
    main(posixpath.abspath(sys.argv[1]))
