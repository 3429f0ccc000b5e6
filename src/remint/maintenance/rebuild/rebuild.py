"""One rebuild, from start to end."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remint.errors import RemintError
from remint.maintenance.rebuild import build, environment, record
from remint.maintenance.rebuild.compare import Difference, Facts, Rule, compare
from remint.records import Record
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags
from remint.stores.open import open_tracking

EVIDENCE = "rebuild.json"


class Rebuild(Record):
    """Result of one rebuild: both sides and their differences."""

    model: str  # NAME/7
    commit: str
    dirty: bool
    identical: bool
    reproduced: bool  # all differences are allowed
    rule: Rule
    recorded: Facts
    rebuilt: Facts
    differences: tuple[Difference, ...]
    environment: tuple[environment.Change, ...]
    tolerance: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    seconds: dict[str, float]  # by step


def rebuild(home: Home, ref: str, listener: build.Listener) -> Rebuild:
    """Build a version again and compare. This takes as long as the training did; ``listener`` gets the progress.

    The result is stored with the version too: as rebuild.json of its MLflow run, and in the tag ``rebuilt``.

    Raises NotFoundError for an unknown version, RepositoryError if its commit is not available, IntegrityError if its records
    are damaged, ResourceError if this machine has too few devices, and the errors of its steps.
    """
    store = open_tracking(home)
    version = store.version(ref)
    with ExitStack() as stack:
        job = stack.enter_context(jobs.live(home, pipeline=version.name, commit=version.commit, rebuild=version.ref))
        folder = home.workspaces / job.id
        stack.callback(git.remove, folder)
        recorded = record.fetch(store, version, job.folder / "version")
        again = build.Build(home, recorded, folder, job.folder, listener)
        build.check_machine(recorded, lambda text: again.tell("notice", text=text))
        with again.timed("commit", f"checks out commit {version.commit[:10]}" + " (with uncommitted changes)" * version.dirty):
            build.check_out(again, store)
        absent = version.tags.not_installed
        differing = environment.python(version.tags.python) + environment.packages(
            folder / "constraints.txt", absent if absent is None else absent.split()
        )
        if differing:
            again.tell("notice", text=_words(differing))
        rebuilt = build.run_steps(again)
        found = compare(recorded.facts, rebuilt, recorded.tolerance)
        answer = Rebuild(
            model=version.ref,
            commit=version.commit,
            dirty=version.dirty,
            identical=found.identical,
            reproduced=found.reproduced,
            rule=found.rule,
            recorded=recorded.facts,
            rebuilt=rebuilt,
            differences=found.differences,
            environment=(*environment.machine(recorded.facts.fingerprint, rebuilt.fingerprint), *differing),
            tolerance=recorded.tolerance,
            notes=recorded.notes,
            seconds=again.seconds,
        )
        failed = _keep(store, version, answer, job.folder / EVIDENCE)
    return answer.model_copy(update={"notes": (*answer.notes, failed)}) if failed else answer


def _words(differing: list[environment.Change]) -> str:
    named = ", ".join(f"{each.name} {each.recorded} -> {each.here}" for each in differing[:3])
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f"the environment differs from the recorded one: {named}{more}"


def _keep(store: Tracking, version: ModelVersion, answer: Rebuild, path: Path) -> str | None:
    """Store the result with the version. Return a note if that fails; the result is still valid."""
    verdict = "identical" if answer.identical else "within tolerance" if answer.reproduced else "not reproduced"
    answer.write(path)
    try:
        store.attach(version, {EVIDENCE: path})
        store.set_tags(version, VersionTags(rebuilt=f"{datetime.now(UTC).isoformat(timespec='seconds')} {verdict}"))
    except RemintError as error:
        return f"the result could not be stored with the version: {error}"
    return None
