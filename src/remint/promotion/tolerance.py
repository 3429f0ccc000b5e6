"""What a metric may differ by between two machines, as it is recorded with each version.

Sums are taken in another order on another processor, and a training makes another model of them, as another seed would.
So where the pipeline's seeds were measured (remint spread) two trainings may differ by what two of them do, in 95% of
pairs: t(n - 1) sqrt(2) s. Where nobody has, by half the width of the metric's 95% interval, which knows nothing of the
training's own chance and is therefore only a stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remint.promotion.paired import seed_margin
from remint.records import MetricValue, SeedSpread

TWO_SIDED = 0.975  # of a difference that may have either sign: 5% of pairs differ by more
FEWEST_SEEDS = 3


def tolerances(metrics: Mapping[str, MetricValue], spread: SeedSpread | None, recipe: str) -> dict[str, dict[str, Any]]:
    """By metric: ``within`` what it may differ, in its own unit, and ``from`` what that was taken.

    ``spread``: the newest of the pipeline; ``recipe``: that of the version, as in SeedSpread. A spread of another recipe
    says nothing.
    """
    found = {}
    for name, value in metrics.items():
        seeds = spread.values.get(name, ()) if spread and spread.recipe == recipe else ()
        if len(seeds) >= FEWEST_SEEDS:
            found[name] = {"within": seed_margin(seeds, TWO_SIDED), "from": f"seed spread of {len(seeds)} seeds"}
        else:
            found[name] = {"within": (value.high - value.low) / 2.0, "from": "95% interval"}
    return found
