"""Terminal output during and after a run: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from remint.runtime import json_log

if TYPE_CHECKING:
    from remint.promotion.outcome import Outcome

out = Console(
    highlight=False, width=None if sys.stdout.isatty() else 160
)  # fixed for a pipe or a log, so that tables do not wrap
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 160)

DOING = {
    "fetch": "fetches new objects from the bucket",
    "ask": "looks up earlier results in DVC",
    "data": "versions the data",
    "prepare": "prepares the data",
    "features": "learns the features for distances",
    "train": "trains",
    "evaluate": "evaluates on held-out data",
    "calibrate": "scores the calibration split",
    "push": "pushes data to the remote",
    "register": "registers",
    "judge": "is compared with the champion",
    "monitor": "judges the champion on today's data",
    "settle": "writes the decision to the ledger",
    "publish": "publishes the champion",
}


def say(message: str) -> None:
    if json_log.is_wanted():
        json_log.say(message, sys.stderr)
    else:
        err.print(f"[dim]{escape(message)}[/dim]")


def error(message: str) -> None:
    if json_log.is_wanted():
        print(json_log.line(message, "ERROR"), file=sys.stderr)
    else:
        err.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)


class Display:
    """Progress of the running pipelines: a bar each on a terminal, else a line per step and one every ten seconds."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=err, transient=True) if err.is_terminal and not json_log.is_wanted() else None
        self.lines: dict[str, TaskID] = {}
        self.last: dict[str, float] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Display:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def __call__(self, pipeline: str, event: str, fields: dict[str, Any]) -> None:
        """Show one event (a listener of flows/server/progress.py)."""
        with self.lock:
            text = self._text(event, fields)
            if text is None or (json_log.is_wanted() and event != "progress"):
                return  # Prefect's log has the events of a run
            if event == "notice":
                say(f"{pipeline}: {text}")  # above the bars, where it stays
            elif self.bars:
                self._bar(pipeline, text, fields)
            elif event != "progress" or time.monotonic() - self.last.get(pipeline, 0.0) > 10.0:
                self.last[pipeline] = time.monotonic()
                say(f"{pipeline}: {text}")

    def _bar(self, pipeline: str, text: str, fields: dict[str, Any]) -> None:
        assert self.bars is not None
        if pipeline not in self.lines:
            self.lines[pipeline] = self.bars.add_task(pipeline, total=None, text="")
        self.bars.update(self.lines[pipeline], text=text, completed=fields.get("step", 0), total=fields.get("steps"))

    def _text(self, event: str, fields: dict[str, Any]) -> str | None:
        if event == "progress":
            numbers = [
                f"{key} {value:.3g}"
                for key, value in fields.items()
                if isinstance(value, float) and key not in ("seconds", "left")
            ]
            numbers += [f"{fields['metric']}, {duration(fields['left'])} left"] if "left" in fields else []
            steps = f" {fields['step']}/{fields['steps']}" if "steps" in fields else ""
            return f"{DOING.get(fields['name'], fields['name'])}{steps}  {'  '.join(numbers)}".rstrip()
        if event == "step":
            return DOING[fields["name"]]
        if event == "notice":
            return str(fields["text"])
        if event == "workspace":
            return f"builds commit {fields['commit']}" + (" (with uncommitted changes)" if fields["dirty"] else "")
        if event == "ran" and fields["name"] == "fetch":
            return f"{fields['fetched']} of {fields['objects']} objects fetched, {fields['removed']} removed"
        if event == "ran" and fields["name"] == "train" and not fields["trained"]:
            return "restored from DVC's cache: nothing to train"
        if event == "ran" and fields["name"] == "train" and fields["why"]:
            return f"training ended early, {fields['ended']}: {fields['why']}"
        if event == "registered":
            return f"registered as {fields['version']}"
        if event == "decided":
            return str(fields["verdict"])
        return None


def duration(seconds: float) -> str:
    """Return an estimated duration in seconds, minutes or hours."""
    unit, size = next(((name, size) for name, size in (("h", 3600), ("min", 60)) if seconds >= 2 * size), ("s", 1))
    return f"about {seconds / size:.0f} {unit}"


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many of all examples are done: a bar on a terminal, else a line every ten seconds."""
    if err.is_terminal:
        with Progress(
            TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), console=err, transient=True
        ) as bars:
            bar = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)
        return
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10.0:
            last = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    yield tell


VERDICT_STYLE = {"promoted": "green", "kept": "yellow", "refused": "red", "awaiting_approval": "cyan", "awaiting_shadow": "cyan"}


def summary(outcomes: list[Outcome]) -> None:
    """Print one table: pipeline, dataset version, metrics with intervals, verdict, version."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for column in ("pipeline", "data", "metric", "value", "95% interval", "unit", "verdict", "version", "in production"):
        table.add_column(column, no_wrap=True)
    for outcome in outcomes:
        verdict = outcome.decision.verdict
        shown = f"[{VERDICT_STYLE.get(verdict, 'white')}]{verdict}[/]" + (" (before)" if outcome.unchanged else "")
        first = [outcome.pipeline, outcome.dataset_version[:10]]
        last = [shown, outcome.ref, outcome.champion_ref]
        for value in outcome.metrics.values():
            interval = f"{value.low:.3f} .. {value.high:.3f}"
            table.add_row(*first, value.name, f"{value.value:.3f}", interval, value.unit, *last)
            first, last = ["", ""], ["", "", ""]
        for name, value in outcome.context.items():  # in brackets: values to compare with, not of the model
            if name.startswith("probe_"):
                continue  # the report compares them (evaluation/representation.py)
            interval = f"{value.low:.3f} .. {value.high:.3f}"
            row = (f"({value.name})", f"{value.value:.3f}", interval, value.unit)
            table.add_row("", "", *(f"[dim]{cell}[/dim]" for cell in row))
    out.print(table)


def counted(number: int, noun: str) -> str:
    """Return number and noun: 1 row, 2 rows."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def reasons(outcome: Outcome) -> None:
    """Print why a version was not promoted: each rule with the numbers of both sides."""
    verdict = outcome.decision.verdict
    said = verdict.replace("_", " ")
    said = said.replace("awaiting", "awaits") if said.startswith("awaiting") else f"was {said}"
    out.print(f"\n{outcome.ref} {said}:")
    rules = outcome.decision.rules
    for rule in rules:
        waits = verdict == f"awaiting_{rule.rule}"
        state = "[green]holds[/green]" if rule.passed else "[cyan]waits[/cyan]" if waits else "[red]fails[/red]"
        out.print(f"  {state}  {escape(rule.reason)}", soft_wrap=True)
    for reason in outcome.decision.reasons:  # a reason of a person, or one outside the rules
        if reason not in {rule.reason for rule in rules}:
            out.print(f"         {escape(reason)}", soft_wrap=True)


def table(columns: list[str], rows: list[list[str]]) -> None:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    out.print(grid)
