"""Prometheus metrics of a server, in a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from remint.serving.app.follow import Follower
from remint.serving.app.slot import Slot


class Requests:
    """Counts and seconds of requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("model", "method", "status")
        self.requests = Counter("remint_requests", "Requests that were answered or refused.", labels, registry=self.registry)
        self.seconds = Histogram("remint_request_seconds", "Seconds of a request.", labels[:2], registry=self.registry)

    @contextmanager
    def watch(self, model: str, method: str) -> Iterator[Callable[[int], None]]:
        """Time a request. Call what is yielded with its status; without that it counts as 500."""
        began, status = time.monotonic(), 500

        def outcome(code: int) -> None:
            nonlocal status
            status = code

        try:
            yield outcome
        except Exception as error:
            status = getattr(error, "status_code", 500)
            raise
        finally:
            self.requests.labels(model, method, str(status)).inc()
            self.seconds.labels(model, method).observe(time.monotonic() - began)

    def refused(self, status: int) -> None:
        """Count a request that was refused before its path was looked at."""
        self.requests.labels("", "", str(status)).inc()

    def page(self) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class Metrics(Requests, Collector):
    """Requests, and the state of each name when it is asked for."""

    def __init__(self, slots: dict[str, Slot], follower: Follower) -> None:
        super().__init__()
        self.slots, self.follower = slots, follower
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {
            "remint_version": GaugeMetricFamily("remint_version", "Number of the version that is served.", labels=["model"]),
            "remint_waiting": GaugeMetricFamily("remint_waiting", "Requests that wait.", labels=["model"]),
            "remint_busy_seconds": GaugeMetricFamily("remint_busy_seconds", "Seconds of answering.", labels=["model"]),
            "remint_refused_version": GaugeMetricFamily(
                "remint_refused_version", "Version that failed its checks, as a champion or a shadow.", labels=["model"]
            ),
            "remint_shadow_version": GaugeMetricFamily(
                "remint_shadow_version", "Version that answers copies of requests.", labels=["model"]
            ),
            "remint_shadow_copies": GaugeMetricFamily("remint_shadow_copies", "Copies that it was asked.", labels=["model"]),
            "remint_shadow_dropped": GaugeMetricFamily(
                "remint_shadow_dropped", "Copies that found its queue full.", labels=["model"]
            ),
            "remint_following": GaugeMetricFamily(
                "remint_following", "1: the last poll read the ledger and stores.", labels=["model"]
            ),
        }
        for name, slot in self.slots.items():
            refused, shadow = self.follower.refusal(name), slot.shadow
            families["remint_version"].add_metric([name], slot.version.number if slot.version else 0)
            families["remint_waiting"].add_metric([name], slot.waiting)
            families["remint_busy_seconds"].add_metric([name], slot.seconds_busy)
            families["remint_refused_version"].add_metric([name], refused.version if refused else 0)
            families["remint_shadow_version"].add_metric([name], shadow.version.number if shadow else 0)
            families["remint_shadow_copies"].add_metric([name], shadow.copies if shadow else 0)
            families["remint_shadow_dropped"].add_metric([name], shadow.dropped if shadow else 0)
            families["remint_following"].add_metric([name], float(name not in self.follower.problems))
        yield from families.values()
