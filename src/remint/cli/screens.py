"""Text output of the commands: one function per command, which prints its answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from remint.cli.terminal import counted, out, reasons, summary, table

if TYPE_CHECKING:  # a command imports what it needs when it runs
    from remint.maintenance.audit import Audit
    from remint.maintenance.audit.fault import Finding
    from remint.maintenance.doctor import Symptom
    from remint.maintenance.gc import Collection, Garbage
    from remint.maintenance.rebuild import Rebuild
    from remint.maintenance.state import Imported, State
    from remint.promotion.monitoring import Monitoring
    from remint.promotion.outcome import Outcome
    from remint.promotion.queries import History, VersionEntry
    from remint.promotion.side_by_side import Comparison
    from remint.promotion.spread import SpreadReport
    from remint.promotion.why import Why
    from remint.runtime.home import Home

SHOWN = 10  # largest things per store that remint gc shows


def outcomes(home: Home, done: list[Outcome]) -> None:
    """Print the summary of a run: table, reasons, pictures and pages, next commands."""
    from remint.promotion import gallery

    out.print()
    summary(done)
    for outcome in done:
        if outcome.unchanged:
            done_now = (
                f"it was trained again, with the same weights as {outcome.ref}"
                if outcome.trained
                else f"data, settings and code of its training are those of {outcome.ref}: nothing was trained"
            )
            out.print(f"\n{outcome.pipeline}: {done_now}; {outcome.champion_ref} is in production.")
        if outcome.decision.verdict != "promoted":
            reasons(outcome)
    out.print()
    for picture in gallery.compare(home, done):
        out.print(f"Samples beside real data: {picture}", soft_wrap=True)
    for outcome in done:
        out.print(f"Report: {outcome.report}", soft_wrap=True)
    out.print(next_commands(done[0]), soft_wrap=True)


def monitoring(answer: Monitoring) -> None:
    """Print the answer of a check of the champion on today's data."""
    out.print(escape(answer.text), soft_wrap=True)
    for value in answer.check.metrics.values() if answer.check else ():
        out.print(f"{value.name} on today's held-out examples: {value.text()}", soft_wrap=True)
    if answer.state in ("drifted", "still_drifted"):
        out.print(f"Next: remint run {answer.pipeline}, whose verdict closes the alarm", soft_wrap=True)


def next_commands(outcome: Outcome) -> str:
    """Return the line of commands that may follow a run."""
    name = outcome.model
    ref = name if outcome.champion else outcome.ref
    return f"Next: remint why {ref}   remint sample {ref}   remint history {name}   remint up"


def models(found: list[VersionEntry], newest: int | None) -> None:
    """Print a table of versions, newest first. Mark metrics on other data than a model's newest version has.

    ``newest``: limit per model; None: all.
    """
    latest = {version.name: version for version in reversed(found)}
    other = {version.ref for version in found if version.dataset_version != latest[version.name].dataset_version}
    rows = [
        [
            version.ref,
            ", ".join(version.aliases),
            version.verdict,
            version.dataset_version[:10],
            version.commit[:10] + (" dirty" if version.dirty else ""),
            version.created[:19],
            "* " * (version.ref in other and bool(version.metrics))
            + "  ".join(f"{name} {v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in version.metrics.items()),
        ]
        for version in found
    ]
    table(["version", "alias", "verdict", "data", "commit", "created (UTC)", "metrics"], rows)
    if other:
        out.print(
            "* measured on other data than the newest version of the model: not comparable with its metrics. A run measures the "
            "champion again on today's data.",
            soft_wrap=True,
        )
    counts = Counter(version.name for version in found)
    cut = [name for name, count in counts.items() if newest is not None and count >= newest]
    if cut:
        out.print(
            f"Only the newest {newest} of {', '.join(cut)}, and those with an alias. --all lists every version.", soft_wrap=True
        )


def why(answer: Why) -> None:
    from remint.promotion.why import sections

    for title, lines in sections(answer):
        out.print(f"[bold]{escape(title)}[/bold]")
        for line in lines:
            out.print(f"  {escape(line)}", soft_wrap=True)


def history(answer: History) -> None:
    rows = [
        [
            str(r["sequence"]),
            str(r["at"])[:19],
            str(r["who"]),
            str(r["action"]),
            f"{answer.model}/{r['version']}",
            version_ref(answer.model, r["champion_after"]),
            str(r["why"]),
        ]
        for r in answer.rows
    ]
    table(["#", "when (UTC)", "who", "what", "version", "champion after", "why"], rows)
    for finding in answer.findings:
        out.print(f"[red]{escape(finding)}[/red]", soft_wrap=True)
    kept = answer.kept_hashes
    against = f", compared with {kept} {'hash' if kept == 1 else 'hashes'} in MLflow," if kept else ""
    verdict = "verifies." if not answer.findings else "does NOT verify."
    out.print(f"\nThe chain of {counted(len(answer.rows), 'row')}{against} {verdict}")


def version_ref(model: str, version: int | None) -> str:
    return f"{model}/{version}" if version is not None else "none"


def spread(answer: SpreadReport) -> None:
    rows = [
        [metric, "  ".join(f"{value:.4f}" for value in values), f"{answer.margins[metric]:.4f}"]
        for metric, values in answer.values.items()
    ]
    seeds = f"with seeds {answer.seeds[0]} to {answer.seeds[-1]}"
    table(["metric", seeds, f"difference of two, {answer.confidence:.0%} bound"], rows)
    with_margin = "with improve: {margin: auto} a challenger must be better by more than this bound"
    out.print(f"\nRecorded for {answer.pipeline}: {with_margin}.\nAs a picture: {answer.picture}", soft_wrap=True)


def comparison(answer: Comparison) -> None:
    from remint.promotion import side_by_side

    for title, columns, rows in side_by_side.tables(answer):
        out.print(f"\n[bold]{title}[/bold]")
        table(columns, rows)
    for note in answer.notes:
        out.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    out.print(f"\nAs a picture: {answer.picture}", soft_wrap=True)


def rebuild(answer: Rebuild) -> None:
    """Print both sides of each thing, differences of the environment, and the verdict with its rule."""
    recorded, rebuilt = answer.recorded, answer.rebuilt
    differing = {each.thing: each.why for each in answer.differences}
    digests = {"data": "dataset", "features": "features", "weights": "weights_sha256"}
    digests |= {"training": "manifest_sha256", "report": "report_sha256"}
    rows = [
        [word, getattr(recorded, key)[:12], getattr(rebuilt, key)[:12], differing.get(key, "identical")]
        for word, key in digests.items()
    ]
    for name in recorded.metrics:
        sides = [f"{side.metrics[name].value:.6g}" if name in side.metrics else "" for side in (recorded, rebuilt)]
        rows.append([name, *sides, differing.get(f"metric {name}", "identical")])
    rows += [
        [each.thing, str(each.recorded), str(each.rebuilt), each.why]
        for each in answer.differences
        if each.thing.startswith("settings ")
    ]
    out.print(f"[bold]{answer.model}[/bold], rebuilt from commit {answer.commit[:10]}\n")
    table(["", "recorded", "rebuilt", ""], rows)
    for each in answer.environment:
        out.print(escape(f"{each.name} is {each.here} here, and was {each.recorded}"), soft_wrap=True)
    for note in answer.notes:
        out.print(escape(note), soft_wrap=True)
    machine = "the same machine and build" if answer.rule == "identity" else "another machine or build"
    word = "identical" if answer.identical else "within tolerance" if answer.reproduced else "NOT reproduced"
    demand = "every byte must be the same" if answer.rule == "identity" else "each metric must be within its tolerance"
    out.print(f"\n{answer.model}: {word}. On {machine} {demand}.", soft_wrap=True)


def audit(looked: Audit) -> None:
    """Print each finding in three lines, sorted by kind, and the numbers of findings and notes."""
    found = looked.findings
    _findings(found)
    notes = [finding for finding in found if finding.note]
    left = [finding for finding in found if not finding.repaired and not finding.note]
    seen = f"{counted(looked.versions, 'version')} of {counted(looked.models, 'model')}, {looked.roots} read to the last byte"
    seen += f"; {counted(len(notes), 'note')}" * bool(notes)
    if len(found) == len(notes):
        out.print(f"nothing wrong: {seen}", soft_wrap=True)
        return
    safe = sum(finding.safe for finding in left)
    repaired = len(found) - len(left) - len(notes)
    mended = f"{repaired} repaired, " if repaired else ""
    advice = f"; remint audit --repair mends {safe} of them" if safe else ""
    out.print(f"{mended}{len(left)} left ({seen}){advice}", soft_wrap=True)


def _findings(found: Sequence[Finding]) -> None:
    kinds = list(dict.fromkeys(finding.kind for finding in found))
    for finding in sorted(found, key=lambda finding: kinds.index(finding.kind)):
        state = " [green](repaired)[/green]" if finding.repaired else " [dim](note)[/dim]" if finding.note else ""
        out.print(f"[bold]{finding.kind}[/bold]  {escape(finding.thing)}{state}\n  {escape(finding.what)}", soft_wrap=True)
        out.print(
            f"  [red]risk[/red]    {escape(finding.risk)}\n  [green]repair[/green]  {escape(finding.repair)}\n", soft_wrap=True
        )


def exported(state: State, folder: Path) -> None:
    """Print the content of an exported state, and the next command."""
    models = f"{counted(sum(state.models.values()), 'version')} of {counted(len(state.models), 'model')}"
    files = f"{counted(state.files, 'file')} ({_size(state.bytes)})"
    out.print(f"{folder}: {models}, {counted(state.rows, 'row')} of the ledger, {files}", soft_wrap=True, markup=False)
    out.print(f"Next, with the addresses of the new stores in the environment: remint import-state {folder}", soft_wrap=True)


def imported(done: Imported) -> None:
    """Print the findings after an import, and what was written."""
    _findings(done.findings)
    models = f"{counted(sum(done.models.values()), 'version')} of {counted(len(done.models), 'model')}"
    if done.ledger or done.mlflow or done.files:
        out.print(f"wrote {counted(done.ledger, 'row')} of the ledger, {done.mlflow} of MLflow, {counted(done.files, 'file')}")
    else:
        out.print("all of it was there already")
    faults = [finding for finding in done.findings if not finding.note]
    verdict = f"{len(faults)} findings: see above, and remint audit" if faults else "nothing wrong"
    out.print(f"{models}; ledger and stores: {verdict}", soft_wrap=True)


def collected(answer: Collection) -> None:
    """Print the things per store that are not needed, with sizes; notes; kept versions; the next step."""
    stores: dict[str, list[Garbage]] = {}
    for each in answer.garbage:
        stores.setdefault(each.store, []).append(each)
    for store, things in stores.items():
        out.print(f"\n[bold]{store}[/bold]: {len(things)} things, {_size(sum(each.bytes for each in things))}")
        shown = sorted(things, key=lambda each: -each.bytes)[:SHOWN]
        table(["thing", "size", ""], [[each.thing, _size(each.bytes), each.why] for each in shown])
        if len(things) > SHOWN:
            out.print(f"and {len(things) - SHOWN} more, which --json lists")
    for note in answer.notes:
        out.print(f"\n[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    total, count = _size(answer.bytes), len(answer.garbage)
    out.print(f"\nKept: {', '.join(root.version.ref for root in answer.roots) or 'no version is a root'}.", soft_wrap=True)
    if answer.damaged is None:
        remove = "to remove them: remint gc --apply, with the same options"
        out.print(f"{count} things that are not needed, {total}; {remove}." if count else "There is nothing to remove.")
        return
    out.print(f"Removed: {count} things, {total}.")
    if answer.damaged:
        for found in answer.damaged:
            out.print(f"[red]now damaged:[/red] {escape(found.thing)}: {escape(found.what)}", soft_wrap=True)
    else:
        out.print("Audited before and after: no root is damaged.")


def doctor(about: str, found: list[Symptom]) -> None:
    """Print the machine in one line, each problem in three, and the number of problems."""
    colours = {"missing": "red", "warning": "yellow", "note": "dim"}
    out.print(f"{escape(about)}\n", soft_wrap=True)
    for each in found:
        colour = colours[each.level]
        out.print(f"[{colour}]{each.level}[/]  {each.about}: {escape(each.what)}", soft_wrap=True)
        out.print(f"  {escape(each.why)}\n  [green]do[/green]  {escape(each.do)}\n", soft_wrap=True)
    wrong = [each for each in found if each.level != "note"]
    out.print(f"{counted(len(wrong), 'thing')} to fix" if wrong else "nothing is missing")


def _size(count: int) -> str:
    """Return a number of bytes with its unit."""
    number, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
