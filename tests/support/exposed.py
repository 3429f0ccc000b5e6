"""Values that a Prometheus collector gives, by name and labels."""

from __future__ import annotations

from prometheus_client.registry import Collector

Samples = dict[tuple[str, ...], float]


def samples(collector: Collector) -> Samples:
    """Return each value by its name and the values of its labels, in the order of their names."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in collector.collect()
        for sample in family.samples
    }
