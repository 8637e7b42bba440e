"""Statistics as OpenTelemetry metrics, seen by the SDK's own reader."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Sum

from anyio_uring import IoStatistics, open_uring
from anyio_uring.otel import Metrics

from .helpers import in_flight

pytestmark = pytest.mark.anyio


class Collector:
    """A meter provider of its own, read at will."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def metrics(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        (resource,) = data.resource_metrics
        if not resource.scope_metrics:  # as of opentelemetry 1.20
            return {}
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "anyio_uring"
        return {metric.name.removeprefix("anyio_uring."): metric for metric in scope.metrics}

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        metric = self.metrics().get(name)
        if metric is None:
            return {}
        return {tuple(map(str, point.attributes.values())): point.value for point in metric.data.data_points}


async def test_every_statistic_is_a_metric(driver: Any, path: Path) -> None:
    collector = Collector()
    instrument = Metrics(collector.provider)
    assert collector.metrics() == {}
    with path.open("r+b") as file:
        async with open_uring(driver=driver, latency=True, instruments=[instrument]) as io:
            await io.read(file, 100, 65500)
            await io.read_batch([(file, 10, 0)] * 8)
            await io.write(file, b"12345", 0)
            seen, statistics = collector.metrics(), io.statistics()
            assert seen.keys() == {field.name for field in attrs.fields(IoStatistics)} - {"driver"}
            for name, value in attrs.asdict(statistics).items():
                if name in {"driver", "latency"}:
                    continue
                (point,) = seen[name].data.data_points
                assert point.attributes == {"anyio_uring.driver": driver}
                assert point.value == value, name
            latency = statistics.latency
            assert latency is not None
            assert collector.values("latency") == {
                (driver, "0.5"): latency.p50_us,
                (driver, "0.9"): latency.p90_us,
                (driver, "0.99"): latency.p99_us,
                (driver, "1"): latency.max_us,
            }
            assert seen["bytes_read"].unit == "By"
            assert seen["bytes_read"].description
            assert isinstance(seen["bytes_read"].data, Sum)
            assert seen["bytes_read"].data.is_monotonic
            assert isinstance(seen["in_flight"].data, Sum)
            assert not seen["in_flight"].data.is_monotonic


async def test_managers_are_added_up_and_stay_in_the_sums(driver: Any, path: Path, pipe: tuple[int, int]) -> None:
    collector = Collector()
    instrument = Metrics(collector.provider)
    with path.open("rb") as file:
        async with open_uring(driver=driver, nowait=False, instruments=[instrument]) as first:
            await first.read(file, 10, 0)
            async with open_uring(driver=driver, nowait=False, instruments=[instrument]) as second:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(second.read, pipe[0], 1, -1)
                    await in_flight(second, 1)
                    assert collector.values("in_flight") == {(driver,): 1}
                    tasks.cancel_scope.cancel()
                await second.read(file, 20, 0)
                assert collector.values("bytes_read") == {(driver,): 30}
            assert collector.values("bytes_read") == {(driver,): 30}
            assert collector.values("in_flight") == {(driver,): 0}
            await first.read_batch([(file, 1, 0)] * 3)
        assert collector.values("bytes_read") == {(driver,): 33}
        assert collector.values("submissions") == {(driver,): 6}
        assert collector.values("cancellations_effective") == {(driver,): 1}
        assert collector.values("in_flight_max") == {}
        assert collector.values("latency") == {}


@pytest.mark.ring
async def test_drivers_are_told_apart(path: Path) -> None:
    collector = Collector()
    instrument = Metrics(collector.provider)
    with path.open("rb") as file:
        async with (
            open_uring(driver="uring", instruments=[instrument]) as ring,
            open_uring(driver="threads", instruments=[instrument]) as threads,
        ):
            await ring.read(file, 10, 0)
            await threads.read(file, 20, 0)
    assert collector.values("bytes_read") == {("uring",): 10, ("threads",): 20}


async def test_an_exporter_asks_in_a_thread_of_its_own(driver: Any, path: Path) -> None:
    collector = Collector()
    found: list[Any] = []
    with path.open("rb") as file:
        async with open_uring(driver=driver, instruments=[Metrics(collector.provider)]) as io:
            await io.read(file, 7, 0)
            thread = threading.Thread(target=lambda: found.append(collector.values("bytes_read")))
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
    assert found == [{(driver,): 7}]


async def test_by_default_it_is_the_programs_global_provider(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    monkeypatch.setattr("anyio_uring.otel.get_meter_provider", lambda: collector.provider)
    async with open_uring(driver=driver, instruments=[Metrics()]):
        assert collector.values("submissions") == {(driver,): 0}
    assert metrics.get_meter_provider() is not collector.provider
