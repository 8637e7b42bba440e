"""The per-operation event and the doorbell, and what they assume of anyio."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from anyio_uring._waiters import PlainSleeper, _is_native, current_loop, sleep

from .helpers import asyncio_only, every_loop, until

anyio_backend = every_loop

pytestmark = pytest.mark.anyio


def test_outside_an_event_loop_there_is_nothing_to_wait_with() -> None:
    with pytest.raises(RuntimeError, match="inside asyncio or trio"):
        current_loop()


@asyncio_only
async def test_cancellations_of_anyio_are_told_from_asyncios_own() -> None:
    """They differ by their message alone: if anyio changes it, this test says so."""
    seen: list[bool] = []

    async def sleep_long() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as exc:
            seen.append(_is_native(exc))
            raise

    with anyio.move_on_after(0):
        await sleep_long()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleep_long)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    for message in ((), ("please",), (None,), (5,)):
        native = asyncio.ensure_future(sleep_long())
        await asyncio.sleep(0)
        native.cancel(*message)
        await asyncio.wait([native])
    assert seen == [False, False, True, True, True, True]


async def test_a_wait_ends_when_woken() -> None:
    loop, sleeper = current_loop(), PlainSleeper()
    woken: list[Any] = []

    async def wait() -> None:
        woken.append(await sleep(loop, sleeper, lambda _: True))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        loop.wake(sleeper)
    assert woken == [None]


async def test_a_wait_that_can_be_undone_is_cancelled_at_once() -> None:
    loop, sleeper = current_loop(), PlainSleeper()
    asked: list[Any] = []

    def abort(who: PlainSleeper) -> bool:
        asked.append(who)
        return True

    with anyio.CancelScope() as scope:
        scope.cancel()
        await sleep(loop, sleeper, abort)
    assert scope.cancelled_caught
    assert asked == [sleeper]


async def test_a_wait_that_cannot_be_undone_goes_on_and_holds_the_cancellation() -> None:
    loop, sleeper = current_loop(), PlainSleeper()
    asked: list[Any] = []

    def abort(who: PlainSleeper) -> bool:
        asked.append(who)
        return False

    async def wait() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            cancellation = await sleep(loop, sleeper, abort)
            assert cancellation is not None
            cancellation.deliver()

    scopes: list[anyio.CancelScope] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        scopes[0].cancel()
        await until(lambda: bool(asked))
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert not scopes[0].cancelled_caught
        loop.wake(sleeper)
    assert scopes[0].cancelled_caught
    assert asked == [sleeper]  # once, though anyio cancels again and again


async def test_who_is_called_behind_cancellations_wakes_others_behind_them() -> None:
    """A task whose scope is cancelled already, and a doorbell rung by somebody else just before."""
    loop = current_loop()
    doorbell = loop.doorbell()
    log: list[str] = []

    async def owner() -> None:
        await doorbell.wait()
        log.append("early")
        await doorbell.wait()
        log.append("late")

    async def waiter() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            doorbell.ring()
            loop.call_behind_cancellations(doorbell.ring)
            try:
                await sleep(loop, PlainSleeper(), lambda _: True)
            finally:
                log.append("cancelled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(waiter)
        await until(lambda: "cancelled" in log)
        while "late" not in log:  # rings before the owner has run are one
            doorbell.ring()
            await anyio.lowlevel.checkpoint()
    assert log[-1] == "late"
    assert "cancelled" in log[:-1]


async def test_a_doorbell_rung_before_the_wait_is_heard(driver: Any) -> None:
    doorbell = current_loop().doorbell()
    doorbell.ring()
    doorbell.ring()
    await doorbell.wait()
    rung = []

    async def wait() -> None:
        await doorbell.wait()
        rung.append(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert rung == []
        doorbell.ring()
    assert rung == [1]
