"""All checks of an audit, with a finding for each store that fails, and the safe repairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remint.errors import LedgerError, RemintError
from remint.maintenance.audit import commits, data, ledger, places, registry, runs
from remint.maintenance.audit.fault import Fault, Finding, unreachable
from remint.promotion import roots
from remint.promotion.retraining import raw_data
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores.ledger.chain import Ledger
from remint.stores.mlflow import Tracking, inventory
from remint.stores.mlflow.inventory import Run, StoredVersion
from remint.stores.open import open_drift_checks, open_ledger, open_seen_examples, open_serving_events, open_tracking

SETTLE = 2.0  # seconds that a job has to update MLflow after it has written a row

Say = Callable[[str], None]


def quiet(_text: str) -> None:
    """Ignore progress messages."""


@dataclass(frozen=True)
class Audit:
    """Result of an audit: the faults, and the numbers of checked models, versions and roots."""

    faults: list[Fault]
    models: int = 0
    versions: int = 0
    roots: int = 0  # the versions among them whose bytes were read

    @property
    def findings(self) -> list[Finding]:
        return [found.finding for found in self.faults]

    def to_json(self) -> list[dict[str, Any]]:
        return [finding.to_json() for finding in self.findings]

    def with_faults(self, more: Iterable[Fault]) -> Audit:
        """Return this audit with more faults."""
        return replace(self, faults=[*self.faults, *more])


def findings(home: Home, *, deep: bool = False, say: Say = quiet) -> list[Finding]:
    """Return all findings in this home's stores. Changes nothing. Prefect's part is in flows/stack/audit.py."""
    return run_audit(home, deep=deep, say=say).findings


def run_audit(home: Home, *, deep: bool = False, say: Say = quiet) -> Audit:
    """Run all checks. Changes nothing.

    ``deep``: read the bytes of all versions, not only of the roots, load the roots in a new process, and compare the bytes on
    DVC's remote with their digests.
    """
    book, found = _ledger(home)
    store = open_tracking(home)
    try:
        say("asking MLflow for its runs and versions")
        folders, known = list(inventory.run_folders(store)), inventory.runs(store)
        names = store.names()
        held = [each for name in names for each in inventory.versions(store, name)]
    except RemintError as error:
        return Audit([*found, unreachable("MLflow", error), *_of_this_machine(home)])
    why, unknown = _roots(home, held)
    found += [*unknown, *registry.lost_roots(why, held)]
    data_paths = _raw_data(home)
    found += _guarded("raw data in git", commits.raw_files(home, store, [each.version for each in held], data_paths))
    found += _versions(home, store, held, known, why, data_paths, deep=deep, say=say)
    found += _guarded("MLflow's runs", runs.stale(store))
    found += _guarded("MLflow's files", registry.orphans(store, folders, known, held))
    if book is not None:
        for model in sorted({*names, *book.models()}):
            found += _decisions(home, store, book, model)
    found += _guarded("git", commits.refs(home, _built_from(home, held)))
    roots_held = sum(each.version.ref in why for each in held)
    return Audit([*found, *_of_this_machine(home)], len(names), len(held), roots_held)


def _built_from(home: Home, held: Sequence[StoredVersion]) -> set[str]:
    """Return the commits that versions were built from, and that live jobs are building."""
    alive = jobs.alive(home)
    if any("commit" not in job.facts for job in alive):
        time.sleep(SETTLE)  # the job is making its commit
    return {each.version.commit for each in held} | {job.facts.get("commit", "") for job in alive}


def _ledger(home: Home) -> tuple[Ledger | None, list[Fault]]:
    try:
        return open_ledger(home), []
    except RemintError as error:
        return None, [unreachable("the ledger", error)]


def _raw_data(home: Home) -> list[Path]:
    try:
        return raw_data(home.repository)
    except RemintError:
        return []  # a params.yaml that is not readable is reported by every run


def _roots(home: Home, held: Sequence[StoredVersion]) -> tuple[dict[str, str], list[Fault]]:
    """Return the reason of each root. If the ledger cannot be read, every version counts as a root and is fully checked."""
    try:
        return roots.root_reasons(home), []
    except RemintError as error:
        everything = {each.version.ref: "a version, which may be the champion" for each in held}
        return everything, [unreachable("the roots (champions and rollback targets)", error)]


def _versions(
    home: Home,
    store: Tracking,
    held: Sequence[StoredVersion],
    known: Mapping[str, Run],
    why: Mapping[str, str],
    data_paths: Sequence[Path],
    *,
    deep: bool,
    say: Say,
) -> list[Fault]:
    """Check versions against their runs, files, data and commits: roots by their bytes, the others by listings."""
    needed = [each for each in held if each.version.ref in why]
    others = [each for each in held if each.version.ref not in why]
    found = [*registry.keys(held, why), *_guarded("MLflow's runs", registry.runs_of(store, held, known, why))]
    began = time.monotonic()
    for place, each in enumerate(held if deep else needed, start=1):
        version, root = each.version, why.get(each.version.ref, "")
        say(f"verifying {version.ref}, {place} of {len(held if deep else needed)}")
        found += _guarded(f"the files of {version.ref}", registry.check_bytes(home, store, each, root, load=deep and bool(root)))
        if root:
            found += _guarded(f"the calibration of {version.ref}", registry.check_calibration(store, version))
            found += _guarded(f"the commit of {version.ref}", commits.present(home, store, version, data_paths))
    if others and not deep:
        say(f"listing the files of {len(others)} more versions")
        found += registry.check_listing(home, store, others)
    outputs, unread = data.locks(store, [each.version for each in needed])
    say(f"looking for {len(outputs)} outputs on DVC's remote")
    found += [*unread, *_guarded("DVC's remote", data.missing(home, outputs, read=deep))]
    if held:
        spent = time.monotonic() - began
        say(f"{len(held)} versions in {spent:.1f} s, {spent / len(held):.2f} s each; the bytes of {len(needed)} were read")
    return found


def _decisions(home: Home, store: Tracking, book: Ledger, model: str) -> list[Fault]:
    """Check the ledger of one model and MLflow's copy of it. Check again if a live job may be updating the two."""

    def look() -> list[Fault]:
        return [
            *_guarded(f"the ledger of {model}", _followed(store, book, model)),
            *_guarded(f"the tries of {model}", ledger.tries(book, open_seen_examples(home), model)),
            *_guarded(f"the serving events of {model}", ledger.serving(open_serving_events(home), model)),
            *_guarded(f"the drift checks of {model}", ledger.drift(open_drift_checks(home), model)),
        ]

    found = look()
    if found and jobs.alive(home):
        time.sleep(SETTLE)
        found = look()
    return found


def _followed(store: Tracking, book: Ledger, model: str) -> Iterator[Fault]:
    try:
        rows = book.rows(model)
    except LedgerError:
        rows = None  # a row is damaged: ``ledger.chain`` names it
    versions = [each.version for each in inventory.versions(store, model)]
    damaged = list(ledger.chain(book, model, versions))
    yield from damaged
    if rows is not None:
        for found in (*ledger.aliases(store, model, rows, versions), *ledger.tags(store, rows, versions)):
            yield ledger.without_repair(found) if damaged else found


def _of_this_machine(home: Home) -> list[Fault]:
    return [*places.workspaces(home), *places.temporary(home)]


def _guarded(thing: str, check: Iterable[Fault]) -> list[Fault]:
    """Return the faults of a check, and a fault for its store if that is out of reach."""
    found: list[Fault] = []
    try:
        found.extend(check)
    except RemintError as error:
        found.append(unreachable(thing, error))
    return found


def repair(found: Audit, again: Callable[[], Audit], say: Say = quiet) -> Audit:
    """Make the safe repairs, and audit again. Return the repaired findings, then the remaining ones.

    ``again`` repeats the audit.
    """
    mended = []
    for each in found.faults:
        if each.mend is None:
            continue
        try:
            each.mend()
        except RemintError as error:
            say(f"{each.finding.thing} was not repaired: {error}")
        else:
            mended.append(each.finding)
    left = again() if mended else found
    still = {(each.kind, each.thing) for each in left.findings}
    repaired = [each.model_copy(update={"repaired": True}) for each in mended if (each.kind, each.thing) not in still]
    return replace(left, faults=[*map(Fault, repaired), *left.faults])
