"""What a ring cannot carry out: a thread driver beside it, under the same contract.

Started with the first such call, and ended with the manager.  It knows owners of drivers; what a call is, and why
the ring cannot carry it out, it does not know.
"""

from __future__ import annotations

from collections.abc import Callable

from ._completion_task import CompletionTask
from ._driver import Driver
from ._requests import Requests
from ._waiters import Loop


class ThreadCalls:
    """
    A second owner, with a thread driver.

    Not ``anyio.to_thread``: a native asyncio cancellation would end that wait, and what the thread opens would be
    lost (C7, C9); and what still waits for a thread could not be cancelled.
    """

    __slots__ = ("_loop", "_main", "_make_driver", "_start", "_task")

    def __init__(self, main: CompletionTask, loop: Loop, make_driver: Callable[[], Driver]) -> None:
        """
        Start nothing yet.

        :param main: whose thread, process and life it shares
        """
        self._main = main
        self._loop = loop
        self._make_driver = make_driver
        self._start: Callable[[CompletionTask], None] | None = None
        self._task: CompletionTask | None = None

    def open(self, start: Callable[[CompletionTask], None]) -> None:
        """
        Take note of how an owner's task is started.

        :param start: in a task group that lasts until :meth:`aclose` has returned
        """
        self._start = start

    @property
    def completions(self) -> int:
        """Calls carried out so far."""
        return 0 if self._task is None else self._task.statistics().completions

    async def perform(self, requests: Requests, *, is_certain: bool = False) -> list[int]:
        """Carry out requests as :meth:`CompletionTask.perform` does."""
        self._main.check()
        if self._task is None:
            assert self._start is not None, "the manager is not open"
            self._task = CompletionTask(self._make_driver(), self._loop)
            self._start(self._task)
        return await self._task.perform(requests, is_certain=is_certain)

    async def aclose(self) -> None:
        """End it, as :meth:`CompletionTask.aclose` does."""
        if self._task is not None:
            await self._task.aclose()
