"""Error level of a question that is asked again and again: each try gets a share, and all shares together are 1.

The shares fall slowly, as 1 / (k log(k + 1)^2) does (Javanmard & Montanari, Online rules for control of false discovery rate
and false discovery exceedance, 2018): the hundredth try has more left than under 1 / k^2, and no last try is planned.
"""

from __future__ import annotations

import math

TOTAL = 3.3877355  # sum of 1 / (k log(k + 1)^2) over k = 1, 2, ..


def share(number: float) -> float:
    """Return the share of the whole level for try ``number``, counted from 1. It may lie between two whole numbers."""
    return 1.0 / (TOTAL * number * math.log1p(number) ** 2)
