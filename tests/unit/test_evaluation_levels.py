"""Shares of an error level over many tries."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from remint.evaluation import levels


def test_all_shares_together_are_one() -> None:
    tries = 100_000
    first = math.fsum(levels.share(number) for number in range(1, tries + 1))
    rest = 1.0 / (levels.TOTAL * math.log(tries + 1.5))  # integral of the shares of all later tries
    assert abs(first + rest - 1.0) < 1e-6


def test_shares_fall() -> None:
    shares = [levels.share(number) for number in np.linspace(1.0, 500.0, 1000)]
    assert all(later < earlier for earlier, later in pairwise(shares))
