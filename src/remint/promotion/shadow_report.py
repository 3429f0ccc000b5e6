"""Report of a shadow: how a version answered copies of requests, beside the champion's answers to the same copies.

    shadow_error_rate       share of the copies that it answered with an error or with values that are not finite;
                            interval of Clopper and Pearson (1934)
    shadow_latency          its seconds over the champion's, the median over the copies; interval by order statistics
    shadow_score_distance   largest difference between the distributions of log p under the two (Kolmogorov-Smirnov),
                            one example of each copy; interval by the inequality of Dvoretzky, Kiefer and Wolfowitz
                            with Massart's constant (1990), which holds for any dependence between the two

Each interval is one of 95% at least, for any distribution. Anybody can send requests, so such a metric can refuse a version and
never makes it better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from remint.records import MetricValue, Record
from remint.settings.shadow import LEVEL, distance_reach
from remint.stores.ledger.shadow_counts import Pair, ShadowCounts

REPORT = "shadow.json"  # beside the version's decision
LEAST_PAIRS = 6  # copies from which on the extremes of their ratios hold the median with 95%


class ShadowReport(Record):
    """Answers of a version that awaits shadow, over all servers."""

    model: str
    version: int
    champion: int  # that answered the people
    request: str  # hash of the ledger's row by which the version awaits shadow
    began: str  # ISO 8601, UTC; "": no server counted
    ended: str
    hosts: tuple[str, ...]
    n: int  # copies
    dropped: int  # copies that found the queue full
    errors: dict[str, int]  # by method and kind
    metrics: dict[str, MetricValue]  # a metric without values is missing

    def text(self) -> str:
        """Return the counts in one clause."""
        if not self.n:
            return "no server asked it"
        where = f"{self.hosts[0]}" if len(self.hosts) == 1 else f"{len(self.hosts)} hosts"
        window = f"{self.began[:16].replace('T', ' ')} to {self.ended[:16].replace('T', ' ')} UTC"
        failed = f", {sum(self.errors.values()):,} with an error" if self.errors else ""
        return f"{self.n:,} copies of requests on {where}, {window}{failed}"


def summarise(model: str, version: int, champion: int, request: str, parts: Sequence[ShadowCounts]) -> ShadowReport:
    """Return the report over the parts of all servers."""
    errors: Counter[str] = Counter()
    for part in parts:
        errors.update(part.errors)
    n = sum(part.copies for part in parts)
    measured = [
        _error_rate(errors.total(), n),
        _latency([pair for part in parts for pair in part.seconds]),
        _score_distance([pair for part in parts for pair in part.scores]),
    ]
    return ShadowReport(
        model=model,
        version=version,
        champion=champion,
        request=request,
        began=min((part.began for part in parts), default=""),
        ended=max((part.ended for part in parts), default=""),
        hosts=tuple(sorted({part.host for part in parts})),
        n=n,
        dropped=sum(part.dropped for part in parts),
        errors=dict(sorted(errors.items())),
        metrics={value.name: value for value in measured if value is not None},
    )


def _error_rate(errors: int, n: int) -> MetricValue | None:
    if not n:
        return None
    from scipy.stats import binomtest  # a second to import

    limits = binomtest(errors, n).proportion_ci(1.0 - LEVEL, "exact")
    return _metric("shadow_error_rate", errors / n, float(limits.low), float(limits.high), n)


def _latency(seconds: Sequence[Pair]) -> MetricValue | None:
    if len(seconds) < LEAST_PAIRS:
        return None
    from scipy.stats import binom

    ratio_N = np.sort([version / champion for champion, version in seconds])
    n = len(ratio_N)
    place = int(binom.ppf(LEVEL / 2.0, n, 0.5)) - 1  # the median is below this ratio with 2.5% at most
    return _metric("shadow_latency", float(np.median(ratio_N)), float(ratio_N[place]), float(ratio_N[n - 1 - place]), n, "times")


def _score_distance(scores: Sequence[Pair]) -> MetricValue | None:
    if not scores:
        return None
    champion_N, version_N = np.sort(np.asarray(scores, np.float64), axis=0).T
    all_M, n = np.concatenate([champion_N, version_N]), len(champion_N)
    below = [np.searchsorted(side_N, all_M, "right") / n for side_N in (champion_N, version_N)]
    distance = float(np.abs(below[0] - below[1]).max())
    reach = distance_reach(n)
    return _metric("shadow_score_distance", distance, max(0.0, distance - reach), min(1.0, distance + reach), n)


def _metric(name: str, value: float, low: float, high: float, n: int, unit: str = "") -> MetricValue:
    return MetricValue(name=name, value=value, low=low, high=high, n=n, seed=0, unit=unit)
