"""Allowed difference of a metric between two machines, recorded with each version.

Another processor sums in another order, and the training then gives another model, as another seed would. If the pipeline's
seeds were measured (remint spread), two trainings may differ as two of these seeds do in 95% of pairs: t(n - 1) sqrt(2) s.
Otherwise they may differ by half the width of the metric's 95% interval. That is only a substitute: it leaves out the
randomness of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remint.promotion.paired import seed_margin
from remint.records import MetricValue
from remint.settings.judging import MIN_SEEDS
from remint.stores.ledger.spreads import SeedSpread

TWO_SIDED = 0.975  # of a difference that may have either sign: 5% of pairs differ by more


def tolerances(metrics: Mapping[str, MetricValue], spread: SeedSpread | None, recipe: str) -> dict[str, dict[str, Any]]:
    """Return for each metric ``within``, the allowed difference in its unit, and ``from``, the source of that number.

    ``spread``: the newest of the pipeline; ``recipe``: that of the version, as in SeedSpread. A spread of another recipe is
    not used.
    """
    found = {}
    for name, value in metrics.items():
        seeds = spread.values.get(name, ()) if spread and spread.recipe == recipe else ()
        if len(seeds) >= MIN_SEEDS:
            found[name] = {"within": seed_margin(seeds, TWO_SIDED), "from": f"seed spread of {len(seeds)} seeds"}
        else:
            found[name] = {"within": (value.high - value.low) / 2.0, "from": "95% interval"}
    return found
