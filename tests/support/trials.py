"""Counted cases of ``tests/faults``: a few trials in `make test`, all trials in `make soak CASE=.. SEED=..`.

    @pytest.mark.case(7)
    def test_a_signal_leaves_a_whole_checkpoint(trials: Trials) -> None:
        for trial in trials(short=3, full=50):
            step = trial.random.randrange(30)
            ...
            trial.note(lost=0)

A trial is a function of (case, test, seed, number): the seed reproduces a failure. A soak writes a line for each passed trial
to .remint/soak/ and skips those trials the next time. `python -m tests.support.trials` sums the lines into
docs/results/soak.json and the table of docs/reliability/counts.md.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[2] / ".remint/soak"
RESULTS = Path(__file__).parents[2] / "docs/results/soak.json"
PAGE = Path(__file__).parents[2] / "docs/reliability/counts.md"
BEGIN, END = "<!-- soak: written by python -m tests.support.trials -->\n", "<!-- soak: end -->\n"


@dataclass
class Trial:
    """One trial. ``notes``: counts, summed over the trials in the table; most must be zero."""

    number: int
    random: random.Random
    notes: dict[str, float] = field(default_factory=dict)

    def note(self, **counts: float) -> None:
        for name, count in counts.items():
            self.notes[name] = self.notes.get(name, 0) + count


class Trials:
    """Trials of one test. ``soak``: all of them, recorded; else a few. ``part``: (i, n), the numbers equal to i modulo n."""

    def __init__(self, case: int, test: str, seed: int, *, soak: bool, part: tuple[int, int] = (0, 1)) -> None:
        self.case, self.test, self.seed, self.soak, self.part = case, test, seed, soak, part
        self.record = RECORDS / f"{case:02}-{seed}-{hashlib.sha256(test.encode()).hexdigest()[:8]}.jsonl"

    def __call__(self, short: int, full: int) -> Iterator[Trial]:
        """Yield the trials. Print each number, so that the output of a failed test names its trial."""
        count = full if self.soak else short
        first, step = self.part
        for number in sorted(set(range(first, count, step)) - self._done()):
            print(f"case {self.case}, seed {self.seed}, trial {number} of {count}: {self.test}")
            trial = Trial(number, random.Random(f"{self.case} {self.test} {self.seed} {number}"))
            began = time.monotonic()
            yield trial
            if self.soak:
                self._write(trial, count, time.monotonic() - began)

    def _done(self) -> set[int]:
        """Return the numbers of the trials that a soak has recorded."""
        lines = self.record.read_text().splitlines() if self.soak and self.record.exists() else []
        return {json.loads(line)["trial"] for line in lines}

    def _write(self, trial: Trial, count: int, seconds: float) -> None:
        self.record.parent.mkdir(parents=True, exist_ok=True)
        about = {"case": self.case, "test": self.test, "seed": self.seed, "trial": trial.number, "of": count}
        line = {**about, "day": time.strftime("%Y-%m-%d"), "seconds": round(seconds, 2), "notes": trial.notes}
        with self.record.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"case {self.case}: {len(self._done())} of {count}", file=sys.__stderr__, flush=True)


def summed(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum the lines of one test and seed."""
    notes: dict[str, float] = {}
    for line in lines:
        for name, count in line["notes"].items():
            notes[name] = notes.get(name, 0) + count
    last = lines[-1]
    minutes = round(sum(line["seconds"] for line in lines) / 60, 1)
    return {
        **{key: last[key] for key in ("case", "test", "seed", "of", "day")},
        "trials": len(lines),
        "minutes": minutes,
        "notes": notes,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| case | test | trials | counted | seed | day | minutes |", "|---|---|---|---|---|---|---|"]
    for each in results:
        counted = ", ".join(f"{name.replace('_', ' ')} {count:g}" for name, count in each["notes"].items())
        trials = str(each["trials"]) if each["trials"] == each["of"] else f"{each['trials']} of {each['of']}"
        test = each["test"].rsplit("::", 1)[-1]
        lines.append(f"| {each['case']} | `{test}` | {trials} | {counted} | {each['seed']} | {each['day']} | {each['minutes']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Add the newest lines to the results, and write the table."""
    results = (
        {(each["case"], each["test"], each["seed"]): each for each in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    )
    for path in sorted(RECORDS.glob("*.jsonl")):
        found = summed([json.loads(line) for line in path.read_text().splitlines()])
        results[found["case"], found["test"], found["seed"]] = found
    ordered = [results[key] for key in sorted(results)]
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table(ordered) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
