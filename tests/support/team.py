"""Team repository: this working tree as one commit, with trainings of a few steps."""

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
from remint.settings.params import Params, read_params, validate_params, write_params

SOURCE = Path(__file__).parents[2]
REMINT = str(Path(sys.executable).parent / "remint")
SMALL: dict[str, dict[str, Any]] = {  # models that train in a second
    "flow": {"couplings": 2, "hidden": 16},
    "flow_matching": {"hidden": 16, "layers": 1},
    "vae": {"latent": 4, "hidden": 32, "layers": 1},
    "gan": {"latent": 8, "hidden": 32, "layers": 2},
    "vaegan": {"latent": 4, "hidden": 32, "layers": 1},
}

forked_programs: Path | None = None  # the folder of preloaded.programs; None: every command is a new process


@dataclass
class Team:
    """A repository and its command line."""

    folder: Path
    api: str | None = None  # address of a running Prefect server; None: each run starts a temporary one

    def environment(self) -> dict[str, str]:
        prefixes = (
            "REMINT_",
            "PREFECT_",
            "MLFLOW_TRACKING",
            "PYTHONDONTWRITEBYTECODE",
        )  # the last one: a dozen processes share compiled files
        kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
        # /bin/sh stays as the parent of its command, while bash replaces itself. dvc's processes must die in both cases.
        path = f"{Path(REMINT).parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "SHELL": "/bin/sh", "COLUMNS": "200", "PATH": path, **({"PREFECT_API_URL": self.api} if self.api else {})}

    def programs(self, *, new: bool = False) -> tuple[str, dict[str, str]]:
        """Return the program remint and the environment of its processes. ``new``: use new processes even if others are forked."""
        environment = self.environment()
        folder = None if new else forked_programs
        if folder is None:
            return REMINT, environment
        return str(folder / "remint"), {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}

    def remint(
        self, *arguments: str, status: int = 0, cwd: Path | None = None, new: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end and compare its exit status with the expected one. ``new``: see ``programs``."""
        program, environment = self.programs(new=new)
        done = subprocess.run(
            [program, *arguments],
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

    def start(self, *arguments: str, log: Path, new: bool = True, **more: str) -> subprocess.Popen[bytes]:
        """Start one command. ``more``: environment."""
        program, environment = self.programs(new=new)
        with log.open("wb") as output:
            return subprocess.Popen(
                [program, *arguments], cwd=self.folder, env={**environment, **more}, stdout=output, stderr=output
            )

    def sh(self, command: str, *, new: bool = True) -> str:
        _, environment = self.programs(new=new)
        return subprocess.run(
            ["sh", "-c", command], cwd=self.folder, env=environment, check=True, capture_output=True, text=True
        ).stdout

    def state(self) -> str:
        """Return the user's state that a job must not change: files, index, branches."""
        return self.sh(
            "git ls-files -co --exclude-standard -z | sort -z | xargs -0 sha256sum; sha256sum .git/index; git for-each-ref refs/heads; cat .git/HEAD"
        )


def shorten_trainings(content: dict[str, Any]) -> dict[str, Any]:
    """Shorten the trainings to a few steps, and relax the rules so that they pass."""
    for pipeline in content["pipelines"].values():
        pipeline["model"] |= SMALL[pipeline["family"]]
        pipeline["training"] |= {"steps": 60, "validate_every": 20, "checkpoint_every": 20}
        pipeline["evaluation"] |= {"samples": 64, "draws": 8}
        if "iwae" in pipeline["evaluation"]["metrics"]:
            pipeline["evaluation"]["importance_samples"] = 20
        pipeline["promotion"]["require"] = {metric: {"max": 1e6} for metric in pipeline["promotion"]["require"]}
        pipeline["promotion"]["improve"].pop("margin", None)  # after so few steps a better model is easy to train
        pipeline.pop("schedule", None)
    return content


def scheduled(**schedules: dict[str, Any]) -> Params:
    """Return the settings of this working tree with these schedules only."""
    content = read_params(SOURCE)
    for name, pipeline in content["pipelines"].items():
        pipeline["schedule"] = schedules.get(name.replace("-", "_"), {})
    return validate_params(content)


def copy_sources(folder: Path) -> None:
    """Copy this working tree without the tests."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=SOURCE, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    for name in filter(None, names):
        if (SOURCE / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCE / name, folder / name)


def make_team(folder: Path) -> Team:
    """Make a repository with one commit of this working tree and quick trainings."""
    copy_sources(folder)
    write_params(shorten_trainings(read_params(folder)), folder)
    team = Team(folder)
    team.sh(
        "git init -q -b main && git config user.email a@example.org && git config user.name A && git add -A && git commit -qm first"
    )
    return team


def copy_team(template: Path, folder: Path, api: str | None = None) -> Team:
    """Copy a team, and change the absolute addresses in MLflow's database to the copy."""
    from tests.support.promotion_cases import copy_home

    shutil.copytree(template, folder, symlinks=True, ignore=lambda path, _: {".remint"} if path == str(template) else set())
    copy_home(Home(template, template / ".remint"), folder / ".remint")
    return Team(folder, api)
