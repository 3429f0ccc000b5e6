"""Metrics of REMINT_HOME on the exporter's host: its disk, and the last audit there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime

from prometheus_client.core import Metric

from remint.maintenance.audit.last import last
from remint.maintenance.metrics.catalogue import gauge, label
from remint.runtime.home import Home, nearest_existing


def of_home(home: Home) -> Iterator[Metric]:
    """Read this host's folder."""
    free, at, findings = (gauge(f"remint_{name}") for name in ("home_free_bytes", "audit_timestamp_seconds", "audit_findings"))
    free.add_metric([], shutil.disk_usage(nearest_existing(home.path)).free)
    audit = last(home)
    at.add_metric([], datetime.fromisoformat(audit.at).timestamp() if audit else 0.0)
    for kind, count in (audit.findings if audit else {}).items():
        findings.add_metric([label(kind)], count)
    yield from (free, at, findings)
