"""dvc in one checkout: its steps, their outputs, and outputs of older jobs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, RemintError, StepError, VersioningError, by_name
from remint.runtime import processes
from remint.runtime.addresses import TRUST_S3, s3_distrusted
from remint.runtime.events import EVENTS, RESTORE_ONLY
from remint.runtime.home import Home
from remint.runtime.parent import in_workspace
from remint.runtime.yaml import load_safe_yaml
from remint.stores.dvc import presence, travel
from remint.stores.dvc.lock import locked, md5_on_disk, outputs, sort_stages
from remint.stores.dvc.settings import addresses, workspace_environment

# dvc in a child process that ends with this process: a killed flow leaves no trainer behind. Its progress bar takes the cache's
# path for a format string, and would fail on braces.
DVC = in_workspace("""
from dvc.cli import main
from dvc_data.hashfile._progress import QueryingProgress as Bar
begin = Bar.__init__
escape = lambda text: text and text.replace("{", "{{").replace("}", "}}")
Bar.__init__ = lambda bar, *given, name=None, **named: begin(bar, *given, name=escape(name), **named)
sys.exit(main(sys.argv[1:]))
""")

RESOLVE = "resolve"  # stage that writes the settings on which the others depend
OLDER_OUTPUT = "remint-former"  # folder of a workspace for an output of an older dvc.lock

OnEvent = Callable[[dict[str, Any]], None]


class Workspace:
    """dvc in one checkout.

    Arguments: ``folder`` the checkout, ``home`` the home with cache, remote and checkpoints, ``logs`` a folder for the output
    of dvc and the steps, ``scratch`` a folder that replaces the home except for the remote: steps then neither find nor leave
    a cache or a checkpoint. ``git``: the checkout is a repository of git.
    """

    def __init__(self, folder: Path, home: Home, logs: Path, scratch: Path | None = None, git: bool = True) -> None:
        self.folder, self.logs = folder, logs
        self.home = Home(home.repository, scratch) if scratch else home
        logs.mkdir(parents=True, exist_ok=True)
        addresses(home, folder, cache=self.home.dvc / "cache" if scratch else None, git=git)

    def restore(self, target: str, *options: str) -> bool:
        """Restore ``target`` and all steps before it from the run cache. Return False if a step would have to run.

        ``options``: of dvc repro; with --single-item only ``target`` is restored.
        """
        would_run = False

        def watch(event: dict[str, Any]) -> None:
            nonlocal would_run
            would_run = would_run or event["event"] == "would_run"

        try:
            self._dvc("ask", "repro", *options, target, on_event=watch, env={RESTORE_ONLY: "1"})
        except VersioningError:
            if would_run:
                return False
            raise
        return True

    def reproduce(self, step: str, name: str, on_event: OnEvent, env: Mapping[str, str] | None = None) -> bool:
        """Run one step, or restore it. Return whether it ran. Raises the error that ended the step."""
        ran = False

        def watch(event: dict[str, Any]) -> None:
            nonlocal ran
            ran = ran or event["event"] == "started"
            on_event(event)

        self._dvc(step, "repro", "--single-item", f"{step}@{name}", on_event=watch, env=env)
        return ran

    def offer(self, stage: str, inputs: Sequence[str], code: Path) -> travel.Offer:
        """Fetch the result of a stage if the remote has it, else send the outputs of the stages ``inputs``, and ``code``."""
        made = [md5 for each in inputs for md5 in self._made(each).values()]
        return travel.offer(self.home, stage, made, code, *self._place("travel"))

    def recall(self, stage: str) -> bool:
        """Fetch the result of a stage from the remote to the cache. Return whether the cache has it now."""
        return travel.recall(self.home, stage, *self._place("travel"))

    def record(self, stage: str) -> None:
        """Send the result of a stage to the remote."""
        travel.record(self.home, stage, *self._place("travel"))

    def checkpoints(self, key: str, folder: Path) -> travel.Checkpoints:
        """Return the checkpoints of one training, in a folder here and on the remote."""
        return travel.Checkpoints(self.home, key, folder, *self._place("checkpoints"))

    def resolve(self) -> None:
        """Write the settings on which each step depends, once per checkout. Do nothing if the commit has no such stage."""
        if self.has(RESOLVE) and not (self.folder / "outs/resolved").exists():
            self._dvc(RESOLVE, "repro", "--single-item", RESOLVE)

    def key(self, step: str, dataset: str, pipeline: str) -> str:
        """Return the part after @ of a step's name in the checkout's dvc.yaml: the pipeline, or the dataset (older features)."""
        return pipeline if self._stages()[step]["foreach"] == "${pipelines}" else dataset

    def has(self, step: str) -> bool:
        """Return whether the checkout's dvc.yaml has this step: a commit may be older than a step."""
        return step in self._stages()

    def _stages(self) -> dict[str, Any]:
        stages: dict[str, Any] = load_safe_yaml((self.folder / "dvc.yaml").read_text())["stages"]
        return stages

    def run_uncached(self, step: str, name: str, on_event: OnEvent, env: Mapping[str, str]) -> None:
        """Run one step without dvc's run cache, and do not record it there. Raises the error that ended the step."""
        target = f"{step}@{name}"
        self._dvc(step, "repro", "--force", "--no-run-cache", "--no-commit", "--single-item", target, on_event=on_event, env=env)

    def pull(self, *targets: str) -> None:
        """Fetch these steps' outputs, by the checkout's dvc.lock, from the cache, else the remote. Raises VersioningError."""
        self._dvc("pull", "pull", "--force", *targets)

    def lock(self) -> Path:
        """Return the checkout's dvc.lock with sorted stages: its bytes do not depend on which steps ran or were restored."""
        lock = self.folder / "dvc.lock"
        lock.write_text(sort_stages(lock.read_text()))
        return lock

    def push(self, *stages: str) -> None:
        """Copy missing files of these steps' outputs to the remote (dvc's own push looks for listings only).

        Raises VersioningError if the remote is out of reach, or the cache does not have all of them intact.
        """
        presence.complete(self.home, [md5 for stage in stages for md5 in self._made(stage).values()], *self._place("push"))

    def repair_outputs(self, *stages: str) -> list[str]:
        """Compare every byte of these steps' outputs with this checkout's dvc.lock. Return a sentence for each repair.

        Damaged files are removed from checkout and cache, and restored from an intact copy in the cache or on the remote.
        Raises IntegrityError if there is none: the next run makes the outputs again.
        """
        mended = []
        for stage in stages:
            damaged = {path: md5 for path, md5 in self._made(stage).items() if md5_on_disk(self.folder / path) != md5}
            if damaged:
                mended.append(self._mend(stage, damaged))
        return mended

    def _mend(self, stage: str, damaged: Mapping[str, str]) -> str:
        named = " and ".join(damaged)
        found = presence.mend(self.home, list(damaged.values()), *self._place("mend"))
        for path in damaged:
            place = self.folder / path
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        remote_failed = f" (the remote: {found.unavailable_reason})" if found.unavailable_reason else ""
        with suppress(VersioningError):  # missing files are found below
            self._dvc("mend", "checkout", "--force", stage)
        if any(md5_on_disk(self.folder / path) != md5 for path, md5 in damaged.items()):
            raise IntegrityError(
                f"{named} was damaged after {stage} made it, and neither the cache nor the remote has an intact copy"
                f"{remote_failed}: it was removed; run again to make a new one"
            )
        whence = "remote" if found.brought else "cache"
        return f"{named} was damaged after {stage} made it, and was restored from the {whence}"

    def _place(self, label: str) -> tuple[Path, Path]:
        """Return the checkout and the log file for a call of ``presence``."""
        return self.folder, self.logs / f"{label}.log"

    def _made(self, stage: str) -> dict[str, str]:
        return outputs(self.folder / "dvc.lock", stage)

    def fetch_output(self, lock: Path, stage: str) -> Path:
        """Fetch the output of ``stage`` in an older dvc.lock (``lock``) from the cache, else the remote. Return its folder.

        Raises VersioningError if the lock does not name it, or if there is no intact copy.
        """
        made, place = locked(lock, stage), self.folder / OLDER_OUTPUT
        (self.folder / f"{OLDER_OUTPUT}.dvc").write_text(json.dumps({"outs": [{**made, "path": OLDER_OUTPUT}]}))
        self._dvc("former", "pull", "--force", f"{OLDER_OUTPUT}.dvc")
        if md5_on_disk(place) != made["md5"]:  # the cache is damaged, and dvc does not notice
            presence.mend(self.home, [made["md5"]], *self._place("former"))
            shutil.rmtree(place, ignore_errors=True)
            self._dvc("former", "pull", "--force", f"{OLDER_OUTPUT}.dvc")
        return place

    def _dvc(self, label: str, *arguments: str, on_event: OnEvent | None = None, env: Mapping[str, str] | None = None) -> None:
        self._remove_stale_lock()
        log, events = self.logs / f"{label}.log", self.logs / f"{label}.jsonl"
        events.unlink(missing_ok=True)
        errors: list[RemintError] = []

        def watch(event: dict[str, Any]) -> None:
            if event["event"] == "error":
                errors.append(by_name(event["kind"], event["message"]))
            elif on_event is not None:
                on_event(event)

        status = processes.run_process(
            [sys.executable, "-c", DVC, *arguments],
            cwd=self.folder,
            env={**os.environ, **workspace_environment(self.folder, self.home), EVENTS: str(events), **(env or {})},
            log=log,
            events=events,
            on_event=watch,
        )
        if errors:
            raise errors[0]
        if status < 0:
            raise StepError(f"dvc {' '.join(arguments)} was killed (signal {-status}): run again (full output: {log})")
        if status:
            raise VersioningError(f"dvc {' '.join(arguments)} failed: {last_error_line(log)} (full output: {log})")

    def _remove_stale_lock(self) -> None:
        """Remove a lock file that a killed dvc left half written: every later dvc would fail on it.

        Nothing holds it: a checkout belongs to one job, which makes one call of dvc at a time.
        """
        path = self.folder / ".dvc/tmp/rwlock"
        try:
            json.loads(path.read_bytes())
        except FileNotFoundError:
            pass  # no dvc was killed
        except ValueError:
            path.unlink()


def last_error_line(log: Path) -> str:
    """Return the last error line of a log, for a one-line message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    if s3_distrusted(text):
        return TRUST_S3
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or "Error" in line]
    return (errors or lines or ["no output"])[-1].removeprefix("ERROR: ")
