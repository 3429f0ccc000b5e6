"""What is missing on this machine, and how to get it. Looks only: nothing is made, moved or sent.

Each vendor is asked at its own door: MLflow's store in tracking/, DVC's remote in versioning/, S3 in storage/, Prefect in
flows/stack/doctor.py, which puts all of it together for ``remint doctor``.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path
from typing import Literal

from remint.distributed import machine
from remint.errors import RemintError, VersioningError
from remint.maintenance.rebuild import environment
from remint.records import Record
from remint.runtime.home import Home, nearest_existing
from remint.settings.params import Params
from remint.stores import git, s3
from remint.stores.dvc.reach import reach as reach_remote
from remint.stores.ledger.schema import reach as reach_ledger
from remint.stores.mlflow.reach import reach as reach_mlflow

PYTHONS = ("3.11", "3.12", "3.13")
ROOM = 5 * 2**30  # bytes that should be free for checkpoints, caches and reports
NVIDIA = Path("/proc/driver/nvidia/gpus")


class Symptom(Record):
    """One thing that is missing, or that is there and should not be."""

    about: str  # python, git, packages, torch, disk, home, dvc, s3, mlflow, ledger, prefect, worker, server
    level: Literal["missing", "warning", "note"]  # a note is no reason for exit status 1
    what: str  # a sentence
    why: str  # a sentence: what can come of it
    do: str  # a sentence, with the command to type


def facts(home: Home) -> str:
    """This machine in a line."""
    import torch

    count, free = torch.cuda.device_count(), shutil.disk_usage(nearest_existing(home.path)).free / 2**30
    devices = f"{count} GPU{'s' * (count > 1)}" if count else f"{machine.devices()} CPU cores and no GPU"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {devices}, {free:.0f} GiB free in {home.path}"


def examine(home: Home, params: Params | None) -> Iterator[Symptom]:
    """Everything but Prefect. ``params``: None where params.yaml could not be read."""
    yield from _python()
    yield from _git(home.repository)
    yield from _packages(home.repository / "constraints.txt")
    yield from _torch(params)
    yield from _disk(home)
    yield from _dvc(home)
    yield from _s3(home, params)
    yield from _stores(home)


def _python() -> Iterator[Symptom]:
    if ".".join(platform.python_version_tuple()[:2]) not in PYTHONS:
        yield Symptom(
            about="python",
            level="missing",
            what=f"This is Python {platform.python_version()}; constraints.txt is for {', '.join(PYTHONS)}.",
            why="The tested set of packages is for these versions.",
            do=f"Install Python {PYTHONS[-1]}, remove .venv, and PYTHON=/path/to/python{PYTHONS[-1]} make setup.",
        )


def _git(repository: Path) -> Iterator[Symptom]:
    for key in ("user.name", "user.email"):
        try:
            git.run_git(repository, "config", key)
        except VersioningError:
            yield Symptom(
                about="git",
                level="missing",
                what=f"git has no {key}.",
                why="A version is built from a commit, and you cannot make one.",
                do=f'git config --global {key} "{"Ada" if key == "user.name" else "ada@example.org"}"',
            )
    if not (repository / ".dvc" / "config").exists():
        yield Symptom(
            about="dvc",
            level="missing",
            what=f"{repository} has no .dvc/config.",
            why="DVC remembers steps and keeps data; without it no job runs.",
            do="dvc init, dvc remote add --default NAME s3://bucket/dvc, and commit; or clone a remint repository.",
        )


def _packages(constraints: Path) -> Iterator[Symptom]:
    """Packages that are not those of constraints.txt; of those that are not installed the ones that remint itself needs."""
    if not constraints.exists():
        return
    needed = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower() for each in requires("remint") or [] if "extra ==" not in each}
    other = [each for each in environment.packages(constraints) if each.here != environment.NONE or each.name.lower() in needed]
    if other:
        shown = ", ".join(f"{each.name} {each.here} instead of {each.recorded}" for each in other[:5])
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield Symptom(
            about="packages",
            level="warning",
            what=f"Other packages than constraints.txt says: {shown}{more}.",
            why="That set is the one that is tested; another torch makes other weights.",
            do="make setup, or pip install -e . -c constraints.txt",
        )


def _torch(params: Params | None) -> Iterator[Symptom]:
    import torch

    if torch.version.cuda is None and NVIDIA.exists() and any(NVIDIA.iterdir()):
        yield Symptom(
            about="torch",
            level="missing",
            what=f"This machine has an NVIDIA GPU, and torch {version('torch')} is a CPU build.",
            why="Trainings run on the processor's cores.",
            do="Remove .venv, and TORCH=cuda make setup.",
        )
    have = machine.devices()
    for name, pipeline in (params.pipelines if params else {}).items():
        if pipeline.training.devices > have:
            yield Symptom(
                about="torch",
                level="missing",
                what=f"params.yaml: pipelines.{name}.training.devices is {pipeline.training.devices}, this machine has {have}.",
                why=f"remint run {name} is refused here.",
                do=f"Run it where there are more, or --set training.devices={have}.",
            )


def _disk(home: Home) -> Iterator[Symptom]:
    free = shutil.disk_usage(nearest_existing(home.path)).free
    if free < ROOM:
        yield Symptom(
            about="disk",
            level="warning",
            what=f"{free / 2**30:.1f} GiB are free in {home.path}.",
            why="A training that finds no room for its checkpoint ends.",
            do="remint gc --apply, or REMINT_HOME=/a/larger/disk.",
        )
    if home.path.exists() and home.path.stat().st_mode & 0o022:
        yield Symptom(
            about="home",
            level="warning",
            what=f"Others on this machine may write into {home.path}.",
            why="DVC unpickles what lies in its cache there: who writes it runs commands as you.",
            do=f"chmod go-w {home.path}",
        )


def _dvc(home: Home) -> Iterator[Symptom]:
    if not (home.repository / ".dvc" / "config").exists():
        return  # said above
    try:
        reach_remote(home)
    except RemintError as error:
        yield Symptom(
            about="dvc",
            level="missing",
            what=f"DVC's remote cannot be used: {error}.",
            why="Data are pushed before a version is registered: a run ends there.",
            do="Correct the remote in .dvc/config(.local) or REMINT_DVC_REMOTE: docs/how-to/use-s3.md",
        )


def _s3(home: Home, params: Params | None) -> Iterator[Symptom]:
    """The sources on S3 and MLflow's files; what DVC has there it is asked about itself."""
    named = {f"datasets.{name}.source": each.source for name, each in (params.datasets if params else {}).items()}
    for where, url in {**named, "REMINT_ARTIFACTS": home.artifacts}.items():
        if not url.startswith(s3.SCHEME):
            continue
        try:
            s3.answers(where, url)
        except RemintError as error:
            yield Symptom(
                about="s3",
                level="missing",
                what=f"{error}.",
                why="What lies there can be neither read nor written.",
                do="docs/how-to/use-s3.md says which variables and rights it takes.",
            )


def _stores(home: Home) -> Iterator[Symptom]:
    """MLflow's store and the ledger. A file that is not there yet is made by the first run."""
    for about, url, ask in (("mlflow", home.tracking_uri, reach_mlflow), ("ledger", home.ledger_url, reach_ledger)):
        try:
            ask(url)
        except RemintError as error:
            variable = "MLFLOW_TRACKING_URI" if about == "mlflow" else "REMINT_LEDGER"
            yield Symptom(
                about=about,
                level="missing",
                what=f"{error}.",
                why="Nothing can be registered, judged or loaded.",
                do=f"Bring it up, or correct {variable} and its password: docs/how-to/production.md",
            )
