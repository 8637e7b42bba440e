"""Random interleavings of operations, cancellations, closes and failures, on a simulated kernel and on real ones."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_uring.testing import FakeRing

from .machine import FAULTS, PLACE, VERBS, run_program


def _step(name: str, *arguments: Any, **keywords: Any) -> Any:
    return st.tuples(st.just(name), *arguments, st.fixed_dictionaries(keywords))


_START = _step(
    "start",
    st.sampled_from(VERBS),
    st.integers(1, PLACE),
    st.integers(1, 5),
    is_native=st.booleans(),
    on_file=st.booleans(),
)
_STEPS = st.lists(
    st.one_of(
        _START,
        _step(
            "race",
            st.sampled_from(VERBS),
            st.integers(1, PLACE),
            st.integers(1, 5),
            st.integers(1, 6),
            is_native=st.booleans(),
            on_file=st.booleans(),
        ),
        _step("cancel", st.integers(0, 10), st.sampled_from(["scope", "deadline", "twice"])),
        _step("turns", st.integers(0, 8)),
        _step("feed", st.integers(1, 20)),
        _step("set_faults", st.integers(0, len(FAULTS) - 1)),
        _step("close_file"),
        _step("finish"),
    ),
    min_size=10,
    max_size=60,
)


def _run(driver: Any, backend: str, depth: int, steps: list[Any]) -> None:
    anyio.run(run_program, driver, depth, steps, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(seed=st.integers(0, 2**32 - 1), depth=st.integers(1, 12), steps=_STEPS)
def test_on_a_simulated_kernel(backend: str, seed: int, depth: int, steps: list[Any]) -> None:
    before = os.listdir("/proc/self/fd")
    _run(FakeRing(seed), backend, depth, steps)
    assert os.listdir("/proc/self/fd") == before, "a descriptor was left open, or closed twice"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=settings().max_examples // 8)
@given(depth=st.integers(1, 12), steps=_STEPS)
def test_on_a_real_driver(driver: Any, backend: str, depth: int, steps: list[Any]) -> None:
    _run(driver, backend, depth, steps)
