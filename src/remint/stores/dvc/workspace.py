"""dvc in one checkout: its addresses, its steps, and what it holds of former ones."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
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
from remint.stores.dvc import presence
from remint.stores.dvc.lock import in_order, locked, md5_on_disk, outputs
from remint.stores.dvc.settings import addresses, workspace_environment

# dvc in a process of its own that ends with us: a flow that is killed leaves no trainer behind.
DVC = in_workspace("from dvc.cli import main\nsys.exit(main(sys.argv[1:]))")

RESOLVE = "resolve"  # stage that writes what the others depend on
FORMER = "remint-former"  # folder of a workspace for what an older dvc.lock names

OnEvent = Callable[[dict[str, Any]], None]


class Workspace:
    """dvc in one checkout.

    Arguments: ``folder`` the checkout, ``home`` where cache, remote and checkpoints are, ``logs`` a folder for
    what dvc and the steps print, ``scratch`` a folder that stands for the home's in all but the remote: steps then find
    no cache and no checkpoint of anybody's, and leave none.
    """

    def __init__(self, folder: Path, home: Home, logs: Path, scratch: Path | None = None) -> None:
        self.folder, self.logs = folder, logs
        self.home = Home(home.repository, scratch) if scratch else home
        logs.mkdir(parents=True, exist_ok=True)
        addresses(home, folder, cache=self.home.dvc / "cache" if scratch else None)

    def restore(self, target: str) -> bool:
        """Restores ``target`` and all before it from the run cache. False where a step would have to run."""
        would_run = False

        def watch(event: dict[str, Any]) -> None:
            nonlocal would_run
            would_run = would_run or event["event"] == "would_run"

        try:
            self._dvc("ask", "repro", target, on_event=watch, env={RESTORE_ONLY: "1"})
        except VersioningError:
            if would_run:
                return False
            raise
        return True

    def reproduce(self, step: str, name: str, on_event: OnEvent) -> bool:
        """Runs one step, or restores it. True where it ran. Raises the error that ended the step."""
        ran = False

        def watch(event: dict[str, Any]) -> None:
            nonlocal ran
            ran = ran or event["event"] == "started"
            on_event(event)

        self._dvc(step, "repro", "--single-item", f"{step}@{name}", on_event=watch)
        return ran

    def resolve(self) -> None:
        """Writes what each step depends on beside its data, once a checkout. Commits of before this stage have none."""
        if RESOLVE in self._stages() and not (self.folder / "outs/resolved").exists():
            self._dvc(RESOLVE, "repro", "--single-item", RESOLVE)

    def key(self, step: str, dataset: str, pipeline: str) -> str:
        """The name of a step in the checkout's dvc.yaml after its @: the pipeline's, or the dataset's (older features)."""
        return pipeline if self._stages()[step]["foreach"] == "${pipelines}" else dataset

    def _stages(self) -> dict[str, Any]:
        stages: dict[str, Any] = load_safe_yaml((self.folder / "dvc.yaml").read_text())["stages"]
        return stages

    def renew(self, step: str, name: str, on_event: OnEvent) -> None:
        """Runs one step whatever dvc remembers; it remembers nothing of it. Raises the error that ended the step."""
        self._dvc(step, "repro", "--force", "--no-run-cache", "--no-commit", "--single-item", f"{step}@{name}", on_event=on_event)

    def pull(self, *targets: str) -> None:
        """Brings what the checkout's dvc.lock says that these steps made: cache, else remote. Raises VersioningError."""
        self._dvc("pull", "pull", "--force", *targets)

    def lock(self) -> Path:
        """The checkout's dvc.lock, the same to the byte whichever of its steps ran and which were restored."""
        lock = self.folder / "dvc.lock"
        lock.write_text(in_order(lock.read_text()))
        return lock

    def push(self, *stages: str) -> None:
        """Copies what the remote lacks of the outputs of these steps, file by file (dvc's own push looks for listings only).

        Raises VersioningError where it is out of reach, or where the cache has not all of it whole.
        """
        presence.complete(self.home, [md5 for stage in stages for md5 in self._made(stage).values()], *self._place("push"))

    def whole(self, *stages: str) -> list[str]:
        """Holds every byte that these steps made against this checkout's dvc.lock; what had to be mended, a sentence each.

        What is damaged goes from checkout and cache, and comes back from whichever of cache and remote has it whole. Raises
        IntegrityError where neither has: the next run makes it again.
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
        with suppress(VersioningError):  # what it did not bring is seen below
            self._dvc("mend", "checkout", "--force", stage)
        if any(md5_on_disk(self.folder / path) != md5 for path, md5 in damaged.items()):
            raise IntegrityError(
                f"{named} was damaged after {stage} made it, and neither cache nor remote has it whole{remote_failed}: it was "
                "removed; run again, which makes it again"
            )
        whence = "remote" if found.brought else "cache"
        return f"{named} was damaged after {stage} made it, and was brought back whole from the {whence}"

    def _place(self, label: str) -> tuple[Path, Path]:
        """Whose stores dvc is asked about, and where it writes its words."""
        return self.folder, self.logs / f"{label}.log"

    def _made(self, stage: str) -> dict[str, str]:
        return outputs(self.folder / "dvc.lock", stage)

    def former(self, lock: Path, stage: str) -> Path:
        """What ``stage`` had made when ``lock`` (a dvc.lock) was written, in a folder of this workspace: cache, else remote.

        Raises VersioningError where the lock does not name it, or neither has it whole.
        """
        made, place = locked(lock, stage), self.folder / FORMER
        (self.folder / f"{FORMER}.dvc").write_text(json.dumps({"outs": [{**made, "path": FORMER}]}))
        self._dvc("former", "pull", "--force", f"{FORMER}.dvc")
        if md5_on_disk(place) != made["md5"]:  # the cache is damaged, which dvc takes for whole
            presence.mend(self.home, [made["md5"]], *self._place("former"))
            shutil.rmtree(place, ignore_errors=True)
            self._dvc("former", "pull", "--force", f"{FORMER}.dvc")
        return place

    def _dvc(self, label: str, *arguments: str, on_event: OnEvent | None = None, env: Mapping[str, str] | None = None) -> None:
        self._free()
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
            raise StepError(f"dvc {' '.join(arguments)} was killed (signal {-status}): run again (all of it: {log})")
        if status:
            raise VersioningError(f"dvc {' '.join(arguments)} failed: {last_error_line(log)} (all of it: {log})")

    def _free(self) -> None:
        """Takes away a lock file that a killed dvc left half written, at which every later one fails.

        A checkout is one job's, which calls dvc once at a time: nobody holds it.
        """
        path = self.folder / ".dvc/tmp/rwlock"
        try:
            json.loads(path.read_bytes())
        except FileNotFoundError:
            pass
        except ValueError:
            path.unlink()


def last_error_line(log: Path) -> str:
    """The last line of a log that says something, for an error of one line."""
    said = log.read_text(errors="replace") if log.exists() else ""
    if s3_distrusted(said):
        return TRUST_S3
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR") or "Error" in line]
    return (telling or lines or ["it said nothing"])[-1].removeprefix("ERROR: ")
