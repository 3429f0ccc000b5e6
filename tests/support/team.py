"""A team's repository: this working tree as a commit of its own, with trainings of a few steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.runtime.home import Home
from remint.settings.params import read_params, write_params

SOURCE = Path(__file__).parents[2]
REMINT = str(Path(sys.executable).parent / "remint")
SMALL: dict[str, dict[str, Any]] = {  # models that train in a second
    "flow": {"couplings": 2, "hidden": 16},
    "vae": {"latent": 4, "hidden": 32, "layers": 1},
    "gan": {"latent": 8, "hidden": 32, "layers": 2},
    "vaegan": {"latent": 4, "hidden": 32, "layers": 1},
}

forked: Path | None = None  # the folder of preloaded.programs; None: every command is a new process


@dataclass
class Team:
    """A repository and the command line in it."""

    folder: Path
    api: str | None = None  # of a Prefect server that is up; None: each run starts a temporary one

    def environment(self) -> dict[str, str]:
        apart = (
            "REMINT_",
            "PREFECT_",
            "MLFLOW_TRACKING",
            "PYTHONDONTWRITEBYTECODE",
        )  # the last: a dozen processes share what is compiled
        kept = {key: value for key, value in os.environ.items() if not key.startswith(apart)}
        # /bin/sh stays as a parent of what it runs, where bash would be replaced by it: what dvc starts must die all the same.
        path = f"{Path(REMINT).parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "SHELL": "/bin/sh", "COLUMNS": "200", "PATH": path, **({"PREFECT_API_URL": self.api} if self.api else {})}

    def remint(
        self, *arguments: str, status: int = 0, cwd: Path | None = None, new: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end and hold its exit status against the one expected.

        ``new``: in new processes, in a run where others are forked.
        """
        programs = None if new else forked
        environment = self.environment()
        if programs is not None:
            environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            [REMINT if programs is None else str(programs / "remint"), *arguments],
            cwd=cwd or self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.remint(*arguments, "--json").stdout)

    def start(self, *arguments: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                [REMINT, *arguments], cwd=self.folder, env={**self.environment(), **environment}, stdout=output, stderr=output
            )

    def sh(self, command: str) -> str:
        return subprocess.run(
            ["sh", "-c", command], cwd=self.folder, env=self.environment(), check=True, capture_output=True, text=True
        ).stdout

    def state(self) -> str:
        """Everything of a person's that a job could have touched: files, index, branches."""
        return self.sh(
            "git ls-files -co --exclude-standard -z | sort -z | xargs -0 sha256sum; sha256sum .git/index; git for-each-ref refs/heads; cat .git/HEAD"
        )


def quick(content: dict[str, Any]) -> dict[str, Any]:
    """Trainings of a few steps, and rules that they pass."""
    for pipeline in content["pipelines"].values():
        pipeline["model"] |= SMALL[pipeline["family"]]
        pipeline["training"] |= {"steps": 60, "validate_every": 20, "checkpoint_every": 20}
        pipeline["evaluation"] |= {"samples": 64, "draws": 8}
        if "iwae" in pipeline["evaluation"]["metrics"]:
            pipeline["evaluation"]["importance_samples"] = 20
        pipeline["promotion"]["require"] = {metric: {"max": 1e6} for metric in pipeline["promotion"]["require"]}
        pipeline["promotion"]["improve"].pop("margin", None)  # of so few steps better ones are soon made
        pipeline.pop("schedule", None)
    return content


def copy_sources(folder: Path) -> None:
    """Copies what is in this working tree, without the tests."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=SOURCE, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    for name in filter(None, names):
        if (SOURCE / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCE / name, folder / name)


def make_team(folder: Path) -> Team:
    """A commit of what is in this working tree, with quick trainings."""
    copy_sources(folder)
    write_params(quick(read_params(folder)), folder)
    team = Team(folder)
    team.sh(
        "git init -q -b main && git config user.email a@example.org && git config user.name A && git add -A && git commit -qm first"
    )
    return team


def copy_team(template: Path, folder: Path, api: str | None = None) -> Team:
    """A copy of a team, with the absolute addresses in MLflow's database made its own."""
    from tests.support.promotion_cases import copied

    shutil.copytree(template, folder, symlinks=True, ignore=lambda path, _: {".remint"} if path == str(template) else set())
    copied(Home(template, template / ".remint"), folder / ".remint")
    return Team(folder, api)
