"""What the server counts, for Prometheus: the stock server's names where it has them, and more."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

LATENCY_MICROSECONDS = [10 * 1.8**i for i in range(33)]  # as the stock server's
QUEUE_SECONDS = [0.0001 * 2**i for i in range(18)]
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # say no more

REQUEST_COUNT = ":tensorflow:serving:request_count"


class Metrics:
    """One server's; nothing is shared between two in a process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests: Tally[tuple[str, str]] = Tally()
        self.request_latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Microseconds from a request's arrival to its answer",
            ["model_name", "API", "entrypoint"],
            buckets=LATENCY_MICROSECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "muprover_network_queue_seconds",
            "From a request's arrival until its batch begins",
            buckets=QUEUE_SECONDS,
            registry=registry,
        )

        def counter(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"muprover_network_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"muprover_network_{name}", what, ["model_name"], registry=registry)

        self.batches = counter("batches", "Batches run", ("function",))
        self.batch_rows = counter("batch_rows", "Rows of these, padding included", ("function",))
        self.padded_rows = counter("padded_rows", "Rows that were padding", ("function",))
        self.simulations = counter("simulations", "Simulations of searches that were asked for")
        self.load_failures = counter(
            "load_failures", "Attempts to load a version that failed", ("model_name",)
        )
        self.compile_seconds = counter("compile_seconds", "Seconds spent compiling")
        self.loaded_version = gauge("loaded_version", "The newest version that is served")
        self.version_age = gauge("version_age_seconds", "Since that version was written")

    def count_request(self, model: str, status: str, entrypoint: str, seconds: float) -> None:
        """Notes one Predict that was answered with `status`."""
        self._requests[model, status] += 1
        self.request_latency.labels(model, "Predict", entrypoint).observe(seconds * 1e6)

    def set_version(self, model: str, number: int, created: float) -> None:
        self.loaded_version.labels(model).set(number)
        self.version_age.labels(model).set_function(_seconds_since(created))

    def forget_model(self, model: str) -> None:
        for metric in (self.loaded_version, self.version_age):
            metric.remove_by_labels({"model_name": model})

    def render(self) -> bytes:
        """All of it, in Prometheus' text format."""
        lines = [f"# TYPE {REQUEST_COUNT} counter"]
        for (model, status), count in list(self._requests.items()):
            lines.append(
                f'{REQUEST_COUNT}{{model_name="{_escape(model)}",status="{status}"}} {count}'
            )
        text: bytes = prometheus_client.generate_latest(self.registry)
        return text + "\n".join([*lines, ""]).encode()


def _seconds_since(moment: float) -> Callable[[], float]:
    return lambda: time.time() - moment


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
