"""Measure how often honest tables are refused for leakage, and how often planted copies are found.

    python -m benchmarks.leakage [TABLES]

honest   independent rows of each kind of table, divided as a dataset is; the share of TABLES (fewer above 1,000 rows) that the
         gate's rule refuses: at most 1%
planted  the same with copies of training rows in place of PLANTED of the held-out rows; the share of TABLES that is refused,
         and the smallest share of copies that could be told from chance. At least 95% for 1,000 rows and more of a kind whose
         independent rows do not repeat

Prints a table, and writes docs/results/leakage.json; ends with status 1 if a bound is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.pipelines import write
from remint.data import columns, identity, splits
from remint.data.arrays import SPLITS, Split
from remint.evaluation import leakage
from remint.records import Column, DataSpec
from remint.settings.judging import PromotionSettings
from remint.settings.split import SplitSettings

TABLES = 200
ROWS = (30, 100, 300, 1_000, 3_000, 10_000, 100_000)
PLANTED = 0.02
LIMIT = float(PromotionSettings.model_fields["leakage"].default)
FALSE, FOUND = 0.01, 0.95

Array = np.ndarray[Any, Any]
Draw = Callable[[np.random.Generator, int], list[Array]]
CATEGORIES = tuple("abcdefgh")


def price(g: np.random.Generator, n: int) -> Array:
    return np.round(g.lognormal(3.0, 1.0, size=n), 2)


KINDS: dict[str, tuple[str, Draw]] = {  # n: a numeric column, c: a categorical one
    "one normal": ("n", lambda g, n: [g.normal(size=n)]),
    "two normal": ("nn", lambda g, n: list(g.normal(size=(2, n)))),
    "four normal": ("nnnn", lambda g, n: list(g.normal(size=(4, n)))),
    "eight normal": ("n" * 8, lambda g, n: list(g.normal(size=(8, n)))),
    "heavy tails": ("nn", lambda g, n: list(g.standard_cauchy(size=(2, n)))),
    "prices": ("n", lambda g, n: [price(g, n)]),
    "category, age, price": ("cnn", lambda g, n: [g.integers(8, size=n), g.integers(18, 90, size=n), price(g, n)]),
    "two categories, price": ("ccn", lambda g, n: [g.integers(4, size=n), g.integers(3, size=n), price(g, n)]),
    "counts": ("nnn", lambda g, n: list(g.poisson(3.0, size=(3, n)).astype(float))),
    "few rows": ("cc", lambda g, n: list(g.integers(5, size=(2, n)))),
    "missing": ("nn", lambda g, n: [np.where(g.random(n) < 0.3, np.nan, x_N) for x_N in g.normal(size=(2, n))]),
}  # fmt: skip
REPEATING = {"one normal", "prices", "category, age, price", "two categories, price", "counts", "few rows", "missing"}


def table(kind: str, rows: int, seed: int) -> tuple[DataSpec, Split, Split]:
    """Return the spec, the held-out and the training rows of one table."""
    kinds, draw = KINDS[kind]
    x_ND = np.stack(draw(np.random.default_rng(seed), rows), axis=1).astype(np.float64)
    described = tuple(
        Column(name=str(d), categories=CATEGORIES)
        if kinds[d] == "c"
        else Column(name=str(d), mean=float(np.nanmean(x_ND[:, d])), scale=float(np.nanstd(x_ND[:, d])) or 1.0, missing=True)
        for d in range(len(kinds))
    )
    split_N = splits.assign(
        identity.digests(identity.canonical_rows(x_ND, described), seed, occurrences=False), SplitSettings(seed=seed)
    )
    x_ND = columns.standardise(x_ND, described)
    parts = {name: Split(x_ND[split_N == index], None) for index, name in enumerate(SPLITS)}
    return DataSpec(shape=(len(kinds),), columns=described), parts["held_out"], parts["train"]


def plant(held_out: Split, train: Split, seed: int) -> Split:
    """Return the held-out rows with PLANTED of them replaced by training rows."""
    generator = np.random.default_rng(seed)
    count = max(1, round(PLANTED * len(held_out)))
    x_ND = held_out.x_NX.copy()
    x_ND[generator.choice(len(x_ND), count, replace=False)] = train.x_NX[generator.choice(len(train), count, replace=False)]
    return Split(x_ND, None)


def measure(kind: str, rows: int, tables: int) -> dict[str, Any]:
    refused = found = 0
    least = []
    for seed in range(tables):
        spec, held_out, train = table(kind, rows, seed)
        if not len(held_out) or not len(train):
            continue
        refused += leakage.find(held_out, train, spec).leakage.share > LIMIT
        planted = leakage.find(plant(held_out, train, seed), train, spec).leakage
        found += planted.share > LIMIT
        least.append(planted.least)
    return {"kind": kind, "rows": rows, "tables": tables, "refused": refused, "found": found, "least": float(np.median(least))}


def missed(row: dict[str, Any]) -> bool:
    """Return whether a bound is shown to be missed, at a level of 1%."""
    often = binomtest(row["refused"], row["tables"], FALSE, alternative="greater").pvalue < 0.01
    seldom = binomtest(row["found"], row["tables"], FOUND, alternative="less").pvalue < 0.01
    return bool(often or (seldom and row["rows"] >= 1_000 and row["kind"] not in REPEATING))


def main(tables: int = TABLES) -> int:
    print(f"{'table':24}{'rows':>9}{'refused':>10}{'found':>10}{'least share':>13}")
    results = []
    for kind in KINDS:
        for rows in ROWS:
            row = measure(kind, rows, tables if rows <= 1_000 else max(4, tables * 1_000 // rows))
            results.append(row)
            shares = (f"{row[key] / row['tables']:.1%}" for key in ("refused", "found"))
            print(f"{kind:24}{rows:9,}" + "".join(f"{share:>10}" for share in shares) + f"{row['least']:13.2%}", flush=True)
    write("leakage", results)
    return int(any(missed(row) for row in results))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
