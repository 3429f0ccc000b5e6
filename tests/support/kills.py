"""Retrainings that are killed at a random moment and resumed, for comparison with an undisturbed run.

A moment is an event of the run (a printed line, a new file) plus a delay, at most until the next event of the undisturbed
run. So short phases are hit as often as long ones. One moment of four is drawn from the whole duration instead. The victim
is drawn from the kinds of processes alive at that moment.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from remint.runtime.home import Home
from tests.support import results
from tests.support import team as teams
from tests.support.prefect_server import PrefectServer
from tests.support.processes import command_line, query_or_default
from tests.support.promotion_cases import copy_home
from tests.support.team import REMINT, Team

MARK = "REMINT_TEST_RUN"  # environment variable in every process of one run
PIPELINES = (  # each family, one with two processes, one with a table
    ("digits-vae", ()),
    ("digits-gan", ()),
    ("digits-flow", ()),
    ("digits-flow", ("training.devices=2",)),
    ("digits-vaegan", ()),
    ("cancer-flow", ()),
)
STEPS = ("training.steps=30", "training.validate_every=10", "training.checkpoint_every=5")
KINDS = ("first", "next", "cold", "next", "first", "dirty")
GRACE = 5.0  # seconds after which no process of a killed run may be alive
LIMIT = 300.0  # seconds that any run may take
NEW_FILES = (  # below REMINT_HOME; each new file is an event
    "jobs/*",
    "jobs/*/*",
    "workspaces/*",
    "checkpoints/*/step-*",
    "mlflow/artifacts/*/*",
    "reports/*/*",
    "reports/*/*/*.json",
    "reports/*/*/*.html",
)
PROGRESS = re.compile(r" \d+/\d+ ")


@dataclass(frozen=True)
class Scene:
    """One retraining. ``kind``: ``first`` version, ``next`` to a champion, ``dirty`` (uncommitted work, with a champion), or
    ``cold`` (first version with data that are new to dvc)."""

    pipeline: str
    settings: tuple[str, ...]
    kind: str
    own_server: bool  # a temporary one

    @property
    def command(self) -> list[str]:
        sets = [part for each in (*STEPS, *self.settings) for part in ("--set", each)]
        return ["run", self.pipeline, *sets, "--json"]


def make_scene(number: int) -> Scene:
    """Return scene ``number``: the families in turn; every tenth scene has a temporary server."""
    pipeline, settings = PIPELINES[number % len(PIPELINES)]
    return Scene(pipeline, settings, KINDS[number // len(PIPELINES) % len(KINDS)], own_server=number % 10 == 9)


@dataclass(frozen=True)
class Moment:
    event: str
    delay: float  # seconds

    def __str__(self) -> str:
        return f"{self.delay:.2f} s after {self.event}"


class Run:
    """One `remint run` in a separate process, and its events so far."""

    def __init__(self, team: Team, scene: Scene, log: Path, *, forked: Path | None = None, **more: str) -> None:
        """Start the run. ``forked``: folder of preloaded.programs, for a run that is not killed; ``more``: environment."""
        self.team, self.log, self.mark = team, log, uuid.uuid4().hex
        self.home = team.folder / ".remint"
        self.before = self._files()
        self.began = time.monotonic()
        with log.open("wb") as words, log.with_suffix(".json").open("wb") as answer:
            environment = {**team.environment(), MARK: self.mark, **more}
            if forked is not None:
                environment["PATH"] = f"{forked}{os.pathsep}{environment['PATH']}"
            self.process = subprocess.Popen(
                [REMINT if forked is None else str(forked / "remint"), *scene.command],
                cwd=team.folder,
                env=environment,
                stdout=answer,
                stderr=words,
            )

    def _files(self) -> set[Path]:
        return {path for pattern in NEW_FILES for path in self.home.glob(pattern)}

    def events(self) -> set[str]:
        """Return the printed lines, and the names of the files that appeared since the start."""
        lines = {line for line in self.log.read_text(errors="replace").splitlines() if not PROGRESS.search(line)}
        return {"its start", *lines, *(_name(path.relative_to(self.home)) for path in self._files() - self.before)}

    def wait_for_moment(self, moment: Moment) -> bool:
        """Wait for a moment. Return False if the run ended before it."""
        while moment.event not in self.events():
            if self._over():
                return False
        deadline = time.monotonic() + moment.delay
        while time.monotonic() < deadline:
            if self._over():
                return False
        return self.process.poll() is None

    def _over(self) -> bool:
        time.sleep(0.01)
        assert time.monotonic() - self.began < LIMIT, f"it hangs: {self.log.read_text()}"
        return self.process.poll() is not None

    def timeline(self) -> dict[str, float]:
        """Let the run finish. Return the seconds from the start to each event."""
        seen: set[str] = set()
        times: dict[str, float] = {}
        while not self._over():
            new = self.events() - seen
            seen |= new
            times |= {name: time.monotonic() - self.began for name in sorted(new)[:1]}  # simultaneous events are one moment
        return {**times, "its end": time.monotonic() - self.began}

    def outcome(self) -> Any:
        """Wait for the end and return the printed outcome."""
        self.process.wait(LIMIT)
        assert self.process.returncode == 0, f"exit status {self.process.returncode}\n{self.log.read_text()}"
        (outcome,) = json.loads(self.log.with_suffix(".json").read_text())
        return outcome

    def processes(self) -> list[psutil.Process]:
        """Return every live process of this run, including reparented ones."""
        found = []
        for each in psutil.process_iter():
            try:
                if each.environ().get(MARK) == self.mark and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def kill_one(self, draw: random.Random) -> str:
        """Draw a kind of process and kill one process of it. Return the kind."""
        kinds: dict[str, list[psutil.Process]] = {}
        for each in self.processes():
            try:
                kinds.setdefault(self._kind(each), []).append(each)
            except psutil.NoSuchProcess:
                continue
        kind = draw.choice(sorted(kinds))
        draw.choice(kinds[kind]).kill()
        return kind

    def _kind(self, process: psutil.Process) -> str:
        line = " ".join(command_line(process))
        if process.pid == self.process.pid:
            return "flow"
        if "dvc.cli" in line:
            return "dvc"
        if "uvicorn" in line:
            return "temporary server"
        if "remint.serving.fresh" in line:
            return "fresh process"
        if "remint.distributed.launch" in line:
            return "torchrun"
        if "pipelines." in line:
            return "rank" if "LOCAL_RANK" in query_or_default(process.environ, {}) else "step"
        return "another"

    def orphans(self) -> list[str]:
        """Return the processes that are alive GRACE seconds after the flow's end."""
        self.process.wait(LIMIT)
        deadline = time.monotonic() + (
            GRACE if teams.forked_programs is None else 4 * GRACE
        )  # beside other tests all takes longer
        while (alive := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [self._kind(each) for each in alive]


def _name(path: Path) -> str:
    """Return the name of a new file without the parts that differ between runs: job, training digest, run."""
    parts = path.parts
    if parts[0] == "jobs" and len(parts) == 3:
        return f"jobs/ID/{parts[2]}"
    if parts[0] in ("checkpoints", "reports"):
        return f"{parts[0]}/{parts[-1]}"
    return f"{parts[0]}/ID"


@dataclass(frozen=True)
class Undisturbed:
    """Results and timeline of an undisturbed scene."""

    results: dict[str, Any]
    timeline: dict[str, float]

    def moment(self, draw: random.Random, *, again: bool) -> Moment:
        """Draw a moment. ``again``: for a run that resumes another and does not reach all events of this one."""
        if again or draw.random() < 0.25:
            return Moment("its start", draw.uniform(0.0, self.timeline["its end"] * (0.5 if again else 1.0)))
        events = sorted(self.timeline.items(), key=lambda item: item[1])
        (name, at), (_, following) = draw.choice(list(pairwise(events)))
        return Moment(name, draw.uniform(0.0, following - at))


class Stage:
    """Teams for the kills, each a copy of the scene's initial team; and the undisturbed results of each scene."""

    def __init__(self, empty: Path, folder: Path, server: PrefectServer) -> None:
        self.empty, self.folder, self.server = empty, folder, server
        self.known: dict[Scene, Undisturbed] = {}

    @cached_property
    def with_champions(self) -> Path:
        """Team with a champion of each pipeline."""
        team = Team(self.folder / "judged", api=self.server.url)
        shutil.copytree(self.empty, team.folder, symlinks=True)
        sets = [part for each in (*STEPS, "training.seed=1") for part in ("--set", each)]
        team.remint("run", *dict.fromkeys(name for name, _ in PIPELINES), *sets)
        return team.folder

    def team(self, scene: Scene, name: str) -> Team:
        template = self.with_champions if scene.kind in ("next", "dirty") else self.empty
        folder = self.folder / name
        shutil.copytree(template, folder, symlinks=True, ignore=lambda path, _: {".remint"} if path == str(template) else set())
        copy_home(Home(template, template / ".remint"), folder / ".remint")
        if scene.kind == "first" and self.data_folder(scene).exists():
            shutil.copytree(self.data_folder(scene), folder / ".remint/dvc", dirs_exist_ok=True)
        if scene.kind == "dirty":
            with (folder / "README.md").open("a") as stream:
                stream.write("Not committed.\n")
        return Team(folder, api=None if scene.own_server else self.server.url)

    def data_folder(self, scene: Scene) -> Path:
        """Return the folder for dvc's copy of a pipeline's data and features. A run fills it."""
        return self.folder / f"data-of-{scene.pipeline.partition('-')[0]}"

    def keep_data(self, scene: Scene, team: Team) -> None:
        shutil.copytree(team.folder / ".remint/dvc", self.data_folder(scene))
        for entry in self.data_folder(scene).glob("cache/runs/*/*"):
            if any(re.search("pipelines.(train|evaluate)", path.read_text()) for path in entry.iterdir()):
                shutil.rmtree(entry)

    def undisturbed(self, scene: Scene) -> Undisturbed:
        """Run a scene undisturbed, once. The kind of server changes neither its results nor its events."""
        scene = replace(scene, own_server=False)
        if scene not in self.known:
            team = self.team(scene, f"undisturbed-{len(self.known)}")
            run = Run(team, scene, self.folder / f"{team.folder.name}.log", forked=teams.forked_programs)
            timeline = run.timeline()
            self.known[scene] = Undisturbed(results.retraining_results(team, scene.pipeline, run.outcome()), timeline)
            assert (left := results.leftovers(team)) == [], left
            if not self.data_folder(scene).exists():
                self.keep_data(scene, team)
            shutil.rmtree(team.folder)
        return self.known[scene]

    def kill(self, run: Run, draw: random.Random) -> str:
        """Kill one process of a run, or its server, which is then restarted. Return the kind of victim."""
        if run.team.api is None or draw.random() > 0.08:
            return run.kill_one(draw)
        self.server.kill()
        time.sleep(draw.uniform(0.0, 2.0))
        self.server.start()
        return "server"
