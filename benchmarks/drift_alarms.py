"""Measure false alarms of the drift alarm over years of daily checks, and the days until planted drifts are found.

    python -m benchmarks.drift_alarms [YEARS]

quiet    YEARS years of 365 daily checks of one champion without drift; at most 5% of them may have an alarm
         grows    every day adds rows to the data that the champion was trained on
         window   the data of a day are those of the last 30 days
planted  SEARCHES runs of each drift, from the first day on and after 180 quiet days; days until it is found

A table of three columns (a normal one, a skewed one with gaps, four categories, one of them rare), 20 new training rows a day and
400 that the champion was trained on; digits, of which 10 come a day. The statistics are those of `remint monitor`
(evaluation/drift.py) and the alarm is its alarm (evaluation/alarm.py). Examples are drawn anew, so which of them are new is known
and is not searched for; rank tests of tables are computed from values that stay sorted, and tests/unit/test_benchmarks_drift.py
holds them against evaluation/drift.py. Beside it, on the same days:

    5% a day    the same statistics, each day at 5%
    Evidently   the default rules of Evidently 0.6 for a reference of at most 1,000 rows, as its documentation states them: each
                day's rows against the former ones, two-sample Kolmogorov-Smirnov for numbers, chi-squared for categories,
                0.05 for each column. A data set drifts if half of its columns do; "any" if one does. RIVAL_YEARS years.

Writes docs/results/drift_alarms.json and .png; ends with status 1 if a bound is missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from matplotlib.figure import Figure
from scipy.stats import binom, binomtest

from benchmarks.drift_days import DAILY, DAYS, PLANTS, WINDOW, Stream, daily, digits, evidently, table
from benchmarks.pipelines import ROOT, line, save_figure, write
from remint.data import sources
from remint.errors import DataError
from remint.evaluation import alarm, drawing
from remint.records import Drift
from remint.settings.dataset import DatasetSettings

YEARS, RIVAL_YEARS, SEARCHES, QUIET_DAYS = 1000, 50, 50, 180
RULES = ("alarm", "5% a day", "Evidently", "Evidently, any")


def first_alarms(
    stream: Stream, window: int | None, *, start: int = 1, rival: bool = False, stop: bool = False
) -> dict[str, int | None]:
    """Return the first day, from ``start`` on, on which each rule has an alarm.

    ``rival``: try Evidently's rules too; ``stop``: end as soon as every rule that is tried has an alarm.
    """
    tried = [rule for rule in RULES if rival or "Evidently" not in rule]
    first: dict[str, int | None] = dict.fromkeys(RULES)
    for day, p in enumerate(daily(stream, window, start), start):
        columns = evidently(stream, day) if rival and first["Evidently"] is None else []
        fires = {
            "alarm": alarm.rises(Drift(former="", present="", comparable=True, summary="", p=p), day),
            "5% a day": p is not None and p < alarm.RATE,
            "Evidently": bool(columns) and sum(p < 0.05 for p in columns) >= len(columns) / 2,
            "Evidently, any": bool(columns) and min(columns) < 0.05,
        }
        for rule, fired in fires.items():
            if fired and first[rule] is None:
                first[rule] = day
        if stop and all(first[rule] is not None for rule in tried):
            break
    return first


QUIET: dict[str, tuple[Any, int | None]] = {"grows": (table, None), "window": (table, WINDOW), "digits, grows": (digits, None)}


def _year(name: str, year: int) -> dict[str, int | None]:
    make, window = QUIET[name]
    return first_alarms(make(np.random.default_rng((1, year))), window, rival=make is table and year < RIVAL_YEARS)


def quiet(all_years: int, pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """Yield the share of quiet years with an alarm, by rule. Evidently's rules are tried in the first years only."""
    for name, (make, _) in QUIET.items():
        years = all_years if make is table else all_years // 10  # images have no fast path
        found: list[dict[str, int | None]] = []
        for first in pool.map(partial(_year, name), range(years), chunksize=10):
            found.append(first)
            if len(found) % 50 == 0:
                print(f"{name}: {len(found)} of {years} years", flush=True)
        yield quiet_row(name, found)


def quiet_row(name: str, found: list[dict[str, int | None]]) -> dict[str, Any]:
    years = len(found)
    counts = {rule: sum(first[rule] is not None for first in found) for rule in RULES}
    shares = {rule: count / (min(years, RIVAL_YEARS) if "Evidently" in rule else years) for rule, count in counts.items()}
    shares = {rule: share for rule, share in shares.items() if QUIET[name][0] is table or "Evidently" not in rule}
    interval = binomtest(counts["alarm"], years).proportion_ci(method="wilson")
    row = {"case": f"quiet, {name}", "years": years, "days a year": 365 if QUIET[name][0] is table else 119, **shares}
    row["interval"] = [round(float(interval.low), 4), round(float(interval.high), 4)]
    return row | {"held": bool(counts["alarm"] <= binom.ppf(0.975, years, alarm.RATE))}


def _search(name: str, quiet_days: int, search: int) -> dict[str, int | None]:
    make, plant = PLANTS[name]
    stream = make(np.random.default_rng((2, search)), plant, quiet_days + 1)
    first = first_alarms(stream, None, start=quiet_days + 1, rival=make is table, stop=True)
    return {rule: None if day is None else day - quiet_days for rule, day in first.items()}


def planted(searches: int, pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """Yield the days until each planted drift is found, and in how many runs it is."""
    for name, (make, _) in PLANTS.items():
        for quiet_days in (0, QUIET_DAYS if make is table else QUIET_DAYS // 3):
            yield planted_row(name, quiet_days, list(pool.map(partial(_search, name, quiet_days), range(searches), chunksize=10)))


def planted_row(name: str, quiet_days: int, found: list[dict[str, int | None]]) -> dict[str, Any]:
    row = _row(f"{name}, after {quiet_days} days", [each["alarm"] for each in found])
    for rule in RULES[1:] if PLANTS[name][0] is table else RULES[1:2]:
        row[f"{rule}, median day"] = _row("", [each[rule] for each in found])["median day"]
    print(line(row), flush=True)
    return row


def new_category(searches: int) -> dict[str, Any]:
    """Return the days until a category comes that the schema does not know, in 1% of the rows. The import itself refuses it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schemas").mkdir()
        settings = DatasetSettings(source="a.csv", kind="table")
        for colours, fails in ((["blue", "red"] * 30, False), ([*["blue", "red"] * 30, "mauve"], True)):
            pyarrow.csv.write_csv(pa.table({"age": np.arange(len(colours)) / 7.0, "colour": colours}), folder / "a.csv")
            try:
                sources.snapshot("a", settings, folder, folder / "out", schemas=folder / "schemas")
                assert not fails, "the import took a category that the schema does not have"
            except DataError as error:
                assert fails, error
    generator = np.random.default_rng(3)
    return _row("a new category in 1% of the rows (refused by the import)", [*generator.geometric(1 - 0.99**DAILY, searches)])


def _row(name: str, days: list[int | None]) -> dict[str, Any]:
    known = sorted(int(day) for day in days if day is not None)
    filled = [*known, *[DAYS + 1] * (len(days) - len(known))]
    quantile = [filled[int(share * (len(days) - 1))] for share in (0.5, 0.9)]
    median, late = (day if day <= DAYS else None for day in quantile)
    return {"case": name, "runs": len(days), "found": len(known) / len(days), "median day": median, "90% by day": late}


def main(years: str = str(YEARS)) -> int:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows_ = [*quiet(int(years), pool), *planted(SEARCHES, pool), new_category(SEARCHES)]
    print("\n".join(map(line, rows_)))
    _picture(ROOT / "docs/results/drift_alarms.png", rows_)
    print(f"written: {write('drift_alarms', rows_)}")
    missed = [row["case"] for row in rows_ if not row.get("held", True)]
    print("\n".join(f"MISSED  {name}" for name in missed) or "every bound is held")
    return int(bool(missed))


def _picture(path: Path, found: list[dict[str, Any]]) -> None:
    """Draw the share of quiet years with an alarm, and the days until drifts are found."""
    figure = Figure(figsize=(9.0, 6.4), dpi=drawing.DPI)
    top, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [1, 2]})
    quiet_rows = [row for row in found if "years" in row]
    colours = dict(zip(RULES, (drawing.MODEL, drawing.OTHER, drawing.QUIET, "#c7ced6"), strict=True))
    for place, row in enumerate(reversed(quiet_rows)):
        for offset, rule in zip((0.3, 0.1, -0.1, -0.3), RULES, strict=True):
            if rule in row:
                top.barh(place + offset, max(row[rule], 0.003), 0.18, color=colours[rule])
    top.set_yticks(range(len(quiet_rows)), [row["case"] for row in reversed(quiet_rows)])
    top.axvline(alarm.RATE, color=drawing.INK, lw=1.0, ls=(0, (3, 2)))
    top.set_xlabel("share of years with an alarm; the line is 5%", size=drawing.SMALL)
    for rule, colour in colours.items():
        top.plot([], [], color=colour, lw=4, label=rule)
    top.legend(frameon=False, fontsize=drawing.SMALL, ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    drifts = [row for row in found if "found" in row]
    for place, row in enumerate(reversed(drifts)):
        median, late = row["median day"], row["90% by day"]
        if median is None:
            below.text(DAYS, place, f"{row['found']:.0%} found within a year", ha="right", va="center", size=drawing.SMALL)
            continue
        below.plot([median, late or DAYS], [place] * 2, color=drawing.MODEL, lw=2.5, solid_capstyle="butt")
        below.plot([median], [place], "o", color=drawing.MODEL, ms=5)
    below.set_yticks(range(len(drifts)), [row["case"] for row in reversed(drifts)])
    below.set_xscale("log")
    below.set_xlabel("days until the alarm: median, and line to the day by which 90% have one", size=drawing.SMALL)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
