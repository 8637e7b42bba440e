"""The tests of conformance and cancellation once more, on rings opened with ``sqpoll`` and with ``restrict``."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from anyio_uring import AsyncIoManager, open_uring

from . import test_cancellation, test_conformance
from .test_conformance import fd, streams

__all__ = ("fd", "streams")

pytestmark = pytest.mark.anyio

# These move gigabytes, or take 20,000 steps, to test what no mode has a part in.
LEFT_OUT = {
    "test_more_than_one_system_call_can_transfer",
    "test_twenty_thousand_reads_through_a_ring_of_eight",
}


def _with_a_driver(module: Any) -> dict[str, Any]:
    """Return the tests of a module that open a manager, directly or through a fixture."""
    return {
        name: test
        for name, test in vars(module).items()
        if name.startswith("test_")
        and name not in LEFT_OUT
        and {"io", "driver"} & {*inspect.signature(test).parameters}
    }


globals().update(_with_a_driver(test_conformance))
globals().update(_with_a_driver(test_cancellation))


@pytest.fixture(params=["sqpoll", "restrict"], autouse=True)
def opening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the tests open their managers in this mode."""
    mode: dict[str, Any] = {request.param: True}
    opening = partial(open_uring, **mode)
    for module in (test_conformance, test_cancellation):
        monkeypatch.setattr(module, "open_uring", opening)
    return opening


@pytest.fixture(scope="session", params=["uring"])
def driver(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def io(opening: Any, driver: Any) -> AsyncIterator[AsyncIoManager]:
    async with opening(driver=driver, nowait=False) as manager:
        yield manager
        assert manager.statistics().in_flight == 0, "C10: the test left something in flight"
