"""A manager's statistics as OpenTelemetry metrics: ``open_uring(instruments=[Metrics()])``.

Needs the extra ``otel``, which installs OpenTelemetry's API; the program chooses the SDK and the exporter.
The metrics are observable: they are read when an exporter asks, in its own thread, and cost an operation
nothing.  The attribute ``anyio_uring.driver`` says which driver worked; managers on the same one are added up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider

from ._instruments import Instrument, ManagerView
from ._stats import IoStatistics

__all__ = ("Metrics",)

# {field of IoStatistics: (unit, description)}; sums over managers, those that have ended included
_COUNTERS: Final = {
    "submissions": ("{operation}", "Operations handed to the driver."),
    "completions": ("{operation}", "Operations whose result has come back."),
    "syscalls": ("{call}", "Kernel entries."),
    "bytes_read": ("By", "Bytes that reads gave."),
    "bytes_written": ("By", "Bytes that writes took."),
    "short_reads": ("{operation}", "Reads that gave less than was asked."),
    "short_writes": ("{operation}", "Writes that took less than was given."),
    "cancellations": ("{operation}", "Operations that the driver was asked to cancel."),
    "cancellations_effective": ("{operation}", "Operations that were cancelled."),
    "resubmissions": ("{operation}", "Operations asked again."),
    "inline_reads": ("{read}", "Reads that the page cache answered at once."),
    "inline_misses": ("{read}", "Reads for which that was tried in vain."),
    "overflows": ("{overflow}", "Overflows of the completion queue."),
    "fallback_operations": ("{operation}", "Operations that threads carried out for want of a ring."),
}
# The same, of open managers alone.
_LEVELS: Final = {
    "in_flight": ("{operation}", "Operations that the driver holds."),
    "waiting": ("{caller}", "Callers that wait for room."),
}
_QUANTILES: Final = {"0.5": "p50_us", "0.9": "p90_us", "0.99": "p99_us", "1": "max_us"}


class Metrics(Instrument):
    """
    Observable instruments named ``anyio_uring.`` and a field of :class:`anyio_uring.IoStatistics`.

    One object serves any number of managers, of any threads; make one for each meter provider, for
    OpenTelemetry ignores the second of two instruments that have the same name.

    Managers that have ended stay in the sums, so that no counter ever falls.
    ``anyio_uring.latency``, in microseconds, exists for managers opened with ``latency=True``, by
    ``quantile``; with several managers on one driver, the slowest one's counts.
    """

    __slots__ = ("_ended", "_lock", "_open")

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        """
        Make the instruments.

        :param meter_provider: whose they are; by default the program's global one
        """
        # Exporters ask in threads of their own.
        self._lock = threading.Lock()
        self._open: list[ManagerView] = []
        # {driver: {field: sum over the managers that have ended}}
        self._ended: dict[str, dict[str, int]] = {}
        meter = (meter_provider or get_meter_provider()).get_meter("anyio_uring")
        for name, (unit, text) in _COUNTERS.items():
            meter.create_observable_counter(f"anyio_uring.{name}", [self._sums(name)], unit, text)
        for name, (unit, text) in _LEVELS.items():
            meter.create_observable_up_down_counter(f"anyio_uring.{name}", [self._sums(name)], unit, text)
        meter.create_observable_gauge(
            "anyio_uring.in_flight_max", [self._observe_most], "{operation}", "The most operations held at once."
        )
        meter.create_observable_gauge(
            "anyio_uring.average_batch_size", [self._observe_batches], "{operation}", "Operations per kernel entry."
        )
        meter.create_observable_gauge(
            "anyio_uring.latency", [self._observe_latency], "us", "From submission to completion, by quantile."
        )

    def manager_opened(self, manager: ManagerView) -> None:
        """Begin to observe a manager."""
        with self._lock:
            self._open.append(manager)

    def manager_closed(self, manager: ManagerView) -> None:
        """Keep a manager's last counters."""
        statistics = manager.statistics()
        with self._lock:
            self._open.remove(manager)
            sums = self._ended.setdefault(statistics.driver, dict.fromkeys(_COUNTERS, 0))
            for name in _COUNTERS:
                sums[name] += getattr(statistics, name)

    def _sums(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [_observation(value, driver) for driver, value in self._sum(name).items()]

        return observe

    def _sum(self, name: str) -> dict[str, int]:
        with self._lock:
            managers = self._open.copy()
            sums = {driver: ended.get(name, 0) for driver, ended in self._ended.items()}
        # One that ends in this moment still has its counters.
        for manager in managers:
            sums[manager.driver] = sums.get(manager.driver, 0) + getattr(manager.statistics(), name)
        return sums

    def _by_driver(self) -> dict[str, list[IoStatistics]]:
        with self._lock:
            managers = self._open.copy()
        found: dict[str, list[IoStatistics]] = {}
        for manager in managers:
            found.setdefault(manager.driver, []).append(manager.statistics())
        return found

    def _observe_most(self, _options: CallbackOptions) -> Iterable[Observation]:
        for driver, statistics in self._by_driver().items():
            yield _observation(max(each.in_flight_max for each in statistics), driver)

    def _observe_batches(self, _options: CallbackOptions) -> Iterable[Observation]:
        calls = self._sum("syscalls")
        for driver, submissions in self._sum("submissions").items():
            yield _observation(submissions / calls[driver] if calls.get(driver) else 0.0, driver)

    def _observe_latency(self, _options: CallbackOptions) -> Iterable[Observation]:
        for driver, statistics in self._by_driver().items():
            measured = [each.latency for each in statistics if each.latency is not None and each.latency.count]
            if measured:
                for quantile, name in _QUANTILES.items():
                    slowest = max(attrs.asdict(latency)[name] for latency in measured)
                    yield _observation(slowest, driver, quantile=quantile)


def _observation(value: float, driver: str, **attributes: Any) -> Observation:
    return Observation(value, {"anyio_uring.driver": driver, **attributes})
