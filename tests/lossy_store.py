"""What a disk holds, in two versions: what programs see, and what a crash leaves.

A model of the promises of POSIX alone, not of one filesystem's kindness: the data of a file is durable when the file
was synced, and a name when its directory was, each without the other.  Knows no FUSE, no faults and no locks.
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
import stat
from collections.abc import Callable, Iterator
from typing import Literal, Union

import attrs

Loss = Literal["drop", "tear"]
# Of a file: bytes at an offset, or a new length.
Change = Union[tuple[int, bytes], int]


def _apply(content: bytearray, change: Change) -> None:
    if isinstance(change, int):
        content[change:] = bytes(max(change - len(content), 0))
        return
    offset, data = change
    if data:
        content.extend(bytes(max(offset - len(content), 0)))
        content[offset : offset + len(data)] = data


@attrs.define(eq=False)
class Node:
    """
    A file, a directory or a symbolic link.

    :ivar content: what programs see
    :ivar durable: what is left by a crash that takes all that was not synced
    :ivar pending: what lies between the two, in order
    """

    number: int
    mode: int
    target: str = ""
    content: bytearray = attrs.field(factory=bytearray)
    durable: bytearray = attrs.field(factory=bytearray)
    durable_mode: int = attrs.field(default=attrs.Factory(lambda self: self.mode, takes_self=True))
    pending: list[Change] = attrs.field(factory=list)

    def change(self, change: Change) -> None:
        _apply(self.content, change)
        self.pending.append(change)

    def sync(self, *, data_only: bool) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()
        if not data_only:
            self.durable_mode = self.mode

    def fail_to_sync(self) -> None:
        """
        Lose what was to be synced, but not the file's length.

        Linux calls the pages clean: it may show them still, until it drops them, and a later sync succeeds without.
        """
        length = len(self.content)
        self.pending.clear()
        self.content = bytearray(self.durable)
        self.change(length)

    def crash(self, keep: Callable[[Change], Change | None]) -> None:
        for change in self.pending:
            kept = keep(change)
            if kept is not None:
                _apply(self.durable, kept)
        self.pending.clear()
        self.content = bytearray(self.durable)
        self.mode = self.durable_mode


# {name: its node, or None where there is none}: what one operation changed at once.
Renaming = dict[str, Union[Node, None]]


class Store:
    """
    Files and directories by their absolute path.

    :ivar names: what programs see
    """

    def __init__(self) -> None:
        self._last_number = 1
        # A generation for each crash: handles from before it are dead.
        self.crashes = 0
        self.wipe()

    def wipe(self) -> None:
        """Begin anew, with an empty directory."""
        self.names: dict[str, Node] = {"/": Node(1, stat.S_IFDIR | 0o755)}
        self._durable_names = dict(self.names)
        self._pending: list[Renaming] = []
        self.crashes += 1

    @property
    def used(self) -> int:
        """Bytes that the contents of all named files take."""
        return sum(len(node.content) for node in {id(node): node for node in self.names.values()}.values())

    # --- names ----------------------------------------------------------------------------------

    def find(self, path: str) -> Node:
        """Return what has this name, or raise ENOENT."""
        try:
            return self.names[path]
        except KeyError:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def children(self, path: str) -> Iterator[str]:
        return (posixpath.basename(name) for name in self.names if name != "/" and posixpath.dirname(name) == path)

    def links(self, node: Node) -> int:
        return sum(other is node for other in self.names.values())

    def create(self, path: str, mode: int, target: str = "") -> Node:
        if path in self.names:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._last_number += 1
        node = Node(self._last_number, mode, target)
        self._rename({path: node})
        return node

    def link(self, path: str, new: str) -> None:
        node = self.find(path)
        if new in self.names:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        self._rename({new: node})

    def remove(self, path: str) -> None:
        if stat.S_ISDIR(self.find(path).mode) and any(self.children(path)):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._rename({path: None})

    def rename(self, old: str, new: str, *, noreplace: bool) -> None:
        node = self.find(old)
        if stat.S_ISDIR(node.mode):
            raise OSError(errno.EOPNOTSUPP, "this model renames no directories", old)
        if noreplace and new in self.names:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        # Two names of one file: rename(2) does nothing.
        if self.names.get(new) is not node:
            self._rename({old: None, new: node})

    def _rename(self, change: Renaming) -> None:
        _rename(self.names, change)
        self._pending.append(change)

    def sync_directory(self, path: str) -> None:
        rest: list[Renaming] = []
        for change in self._pending:
            if any(posixpath.dirname(name) == path for name in change):
                _rename(self._durable_names, change)
            else:
                rest.append(change)
        self._pending = rest

    # --- the crash ------------------------------------------------------------------------------

    def crash(self, loss: Loss, seed: int) -> None:
        """
        Take what was not durable.

        ``"drop"`` takes all of it.  ``"tear"`` leaves of every write all, nothing or a first part, whatever became
        of those before it, as if the disk had reordered them; and of the names the first few changes, in order, as
        a journal does.
        """
        chance = random.Random(seed)

        def keep(change: Change) -> Change | None:
            fate = "drop" if loss == "drop" else chance.choice(("drop", "keep", "tear"))
            if fate == "drop":
                return None
            if fate == "keep" or isinstance(change, int):
                return change
            offset, data = change
            return offset, data[: chance.randint(0, len(data))]

        # Of names that were removed again, too: what is left of the pending changes may end before that.
        changed = [node for change in self._pending for node in change.values() if node is not None]
        nodes = {node.number: node for node in (*self.names.values(), *self._durable_names.values(), *changed)}
        for change in self._pending[: 0 if loss == "drop" else chance.randint(0, len(self._pending))]:
            _rename(self._durable_names, change)
        for _, node in sorted(nodes.items()):
            node.crash(keep)
        self._pending.clear()
        self.names = dict(self._durable_names)
        self.crashes += 1


def _rename(names: dict[str, Node], change: Renaming) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
