"""One descriptor that is readable while there is something to do, and what waits for other descriptors.

Knows ``epoll(7)``: such a descriptor is readable itself while one that it watches is ready, so no thread is needed.
Of rows it knows nothing but their descriptor and direction.
"""

from __future__ import annotations

import os
import select
from typing import Any, Final

from anyio_uring._requests import WRITES, AnyRequest

_LEVEL: Final = 1


class Readiness:
    """What a driver's ``fileno()`` is, and the rows whose descriptor was not ready."""

    __slots__ = ("_epoll", "_event", "_is_set", "_parked")

    def __init__(self) -> None:
        """
        Open it.

        :raises NotImplementedError: if the system has no epoll
        :raises OSError: if there are too many descriptors
        """
        if not hasattr(select, "epoll"):
            raise NotImplementedError("a fake ring needs epoll(7), which only Linux has")
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._epoll = select.epoll()
            self._epoll.register(self._event, select.EPOLLIN)
        except OSError:
            os.close(self._event)
            raise
        self._is_set = False
        # {descriptor: [(row, what it waits for)]}, in the order in which they came
        self._parked: dict[int, list[tuple[Any, int]]] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def signal(self, *, is_set: bool) -> None:
        """Be readable, or not, whatever the watched descriptors do."""
        if is_set and not self._is_set:
            os.eventfd_write(self._event, _LEVEL)
        elif self._is_set and not is_set:
            os.eventfd_read(self._event)
        self._is_set = is_set

    def park(self, row: Any, request: AnyRequest) -> bool:
        """Watch a row's descriptor; False if that is not possible."""
        events = select.EPOLLOUT if request.opcode in WRITES else select.EPOLLIN
        self._parked.setdefault(request.fd, []).append((row, events))
        if self._watch(request.fd):
            return True
        self._forget(request.fd, row)
        return False

    def remove(self, row: Any) -> None:
        """Do not wait for this one any more."""
        self._forget(row.request.fd, row)
        self._watch(row.request.fd)

    def pop_ready(self) -> list[Any]:
        """Return the rows whose descriptor has become ready, which are not parked any more."""
        if not self._parked:
            return []
        ready: list[Any] = []
        for fd, events in self._epoll.poll(0):
            if fd == self._event:
                continue
            # An error or a hang-up is for both directions.
            others = {select.EPOLLIN: select.EPOLLOUT, select.EPOLLOUT: select.EPOLLIN}
            found = [row for row, wanted in self._parked.get(fd, ()) if events & ~others[wanted]]
            for row in found:
                self._forget(fd, row)
            self._watch(fd)
            ready += found
        return ready

    def close(self) -> None:
        self._epoll.close()
        os.close(self._event)

    def _forget(self, fd: int, row: Any) -> None:
        left = [entry for entry in self._parked[fd] if entry[0] is not row]
        if left:
            self._parked[fd] = left
        else:
            del self._parked[fd]

    def _watch(self, fd: int) -> bool:
        """Watch a descriptor for what its rows wait for, or not at all; False if it cannot be watched."""
        events = 0
        for _, wanted in self._parked.get(fd, ()):
            events |= wanted
        try:
            try:
                if events:
                    self._epoll.modify(fd, events)
                else:
                    self._epoll.unregister(fd)
            except FileNotFoundError:  # it is not watched: never was, or was closed meanwhile
                if events:  # pragma: no branch - a number that means another file by now, and nobody waits
                    self._epoll.register(fd, events)
        except OSError:
            return False  # EBADF: closed meanwhile; EPERM: a device without poll
        return True
