"""Checks of this machine for ``remint doctor``: missing parts, and their remedies. Nothing is made, moved or sent.

production.py has the checks of ``--production``, which try every part for real.

Each vendor is checked in its own package: MLflow in stores/mlflow, DVC's remote in stores/dvc, S3 in stores/s3, Prefect in
flows/stack/doctor.py, which runs all checks.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path
from typing import Literal

from remint.distributed import cluster, machine
from remint.errors import RemintError, VersioningError
from remint.maintenance.rebuild import environment
from remint.promotion.retraining import raw_data
from remint.records import Record
from remint.runtime.home import Home, nearest_existing
from remint.runtime.packages import NONE
from remint.settings.params import Params
from remint.stores import git, s3, uncommitted
from remint.stores.dvc.reach import reach as reach_remote
from remint.stores.ledger.schema import reach as reach_ledger
from remint.stores.mlflow.reach import reach as reach_mlflow

PYTHONS = ("3.11", "3.12", "3.13")
ROOM = 5 * 2**30  # bytes that should be free for checkpoints, caches and reports
NVIDIA = Path("/proc/driver/nvidia/gpus")


class Symptom(Record):
    """Something that is missing, or that should not be there."""

    about: str  # python, git, packages, torch, cluster, disk, home, dvc, s3, mlflow, ledger, prefect, worker, server, alerts
    level: Literal["missing", "warning", "note"]  # a note does not cause exit status 1
    what: str  # a sentence
    why: str  # a sentence: the consequence
    do: str  # a sentence, with the command


def facts(home: Home) -> str:
    """Describe this machine in one line."""
    import torch

    count, free = torch.cuda.device_count(), shutil.disk_usage(nearest_existing(home.path)).free / 2**30
    devices = f"{count} GPU{'s' * (count > 1)}" if count else f"{machine.devices()} CPU cores and no GPU"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {devices}, {free:.0f} GiB free in {home.path}"


def examine(home: Home, params: Params | None) -> Iterator[Symptom]:
    """Run all checks except those of Prefect. ``params``: None if params.yaml could not be read."""
    yield from _python()
    yield from _git(home.repository)
    yield from _raw_data(home.repository)
    yield from _packages(home.repository / "constraints.txt")
    yield from _torch(params)
    yield from _cluster(params)
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
            do=f"Install Python {PYTHONS[-1]}, remove .venv, and run PYTHON=/path/to/python{PYTHONS[-1]} make setup.",
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
                why="A version is built from a commit, and git cannot make a commit without it.",
                do=f'git config --global {key} "{"Ada" if key == "user.name" else "ada@example.org"}"',
            )
    if not (repository / ".dvc" / "config").exists():
        yield Symptom(
            about="dvc",
            level="missing",
            what=f"{repository} has no .dvc/config.",
            why="DVC caches steps and stores data; without it no job runs.",
            do="dvc init, dvc remote add --default NAME s3://bucket/dvc, and commit; or clone a remint repository.",
        )


def _raw_data(repository: Path) -> Iterator[Symptom]:
    """Find raw data in commits of uncommitted work, where an older remint put them. `remint audit` looks at versions too."""
    try:
        data = raw_data(repository)
        ours = [sha for sha, from_uncommitted_work in uncommitted.pinned(repository).items() if from_uncommitted_work]
        found = {sha: files for sha in ours if (files := uncommitted.files_of(repository, sha, data))}
    except RemintError:
        return  # of params.yaml or git, and reported by others
    for sha, files in found.items():
        yield Symptom(
            about="git",
            level="warning",
            what=f"The commit of uncommitted work {sha[:10]} contains raw data: {files[0]}"
            + (f" and {len(files) - 1} more files." if len(files) > 1 else "."),
            why="Everyone who can read this clone, or the version that was built from that commit, can read them.",
            do=f"git update-ref -d refs/remint/{sha} && git gc --prune=now; then remint audit, which names such versions.",
        )


def _packages(constraints: Path) -> Iterator[Symptom]:
    """Find packages in other versions than constraints.txt pins, and missing packages that remint needs."""
    if not constraints.exists():
        return
    needed = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower() for each in requires("remint") or [] if "extra ==" not in each}
    other = [each for each in environment.packages(constraints) if each.here != NONE or each.name.lower() in needed]
    if other:
        shown = ", ".join(f"{each.name} {each.here} instead of {each.recorded}" for each in other[:5])
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield Symptom(
            about="packages",
            level="warning",
            what=f"Packages differ from constraints.txt: {shown}{more}.",
            why="Only the packages of constraints.txt are tested; another torch makes other weights.",
            do="make setup, or pip install -e . -c constraints.txt",
        )


def _torch(params: Params | None) -> Iterator[Symptom]:
    import torch

    if torch.version.cuda is None and NVIDIA.exists() and any(NVIDIA.iterdir()):
        yield Symptom(
            about="torch",
            level="missing",
            what=f"This machine has an NVIDIA GPU, but torch {version('torch')} is a CPU build.",
            why="Trainings run on the CPU.",
            do="Remove .venv, and run TORCH=cuda make setup.",
        )
    have = machine.devices()
    for name, pipeline in (params.pipelines if params else {}).items():
        if pipeline.training.devices > have:
            yield Symptom(
                about="torch",
                level="missing",
                what=f"params.yaml: pipelines.{name}.training.devices is {pipeline.training.devices}, this machine has {have}.",
                why=f"remint run {name} is refused here.",
                do=f"Run it on a machine with more devices, or with --set training.devices={have}.",
            )


def _cluster(params: Params | None) -> Iterator[Symptom]:
    """Run a task on each machine of the Ray cluster, if a pipeline trains on several."""
    needs = {name: pipeline.training.nodes.min for name, pipeline in (params.pipelines if params else {}).items()}
    name, least = max(needs.items(), key=lambda each: each[1], default=("", 1))
    if least == 1:
        return
    try:
        have = len(cluster.machines())
    except RemintError as error:
        what, have = f"{str(error)[0].upper()}{str(error)[1:]}.", 0
    else:
        what = f"The Ray cluster has {have} machines, and pipelines.{name}.training.nodes is {least}."
    if have < least:
        do = "Start Ray on more machines, or set training.nodes: docs/how-to/several-machines.md."
        yield Symptom(about="cluster", level="missing", what=what, why=f"remint run {name} waits or fails here.", do=do)
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        yield Symptom(
            about="cluster",
            level="warning",
            what="RAY_AUTH_MODE is disabled.",
            why="Everybody who reaches the cluster's ports runs code on its machines.",
            do="Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on every machine, and start the cluster again.",
        )


def _disk(home: Home) -> Iterator[Symptom]:
    free = shutil.disk_usage(nearest_existing(home.path)).free
    if free < ROOM:
        yield Symptom(
            about="disk",
            level="warning",
            what=f"Only {free / 2**30:.1f} GiB are free in {home.path}.",
            why="A training ends if there is no space for its checkpoint.",
            do="Run remint gc --apply, or set REMINT_HOME=/a/larger/disk.",
        )
    if home.path.exists() and home.path.stat().st_mode & 0o022:
        yield Symptom(
            about="home",
            level="warning",
            what=f"Other users of this machine can write to {home.path}.",
            why="DVC unpickles files of its cache there: other users could run commands as you.",
            do=f"chmod go-w {home.path}",
        )


def _dvc(home: Home) -> Iterator[Symptom]:
    if not (home.repository / ".dvc" / "config").exists():
        return  # reported by _git
    try:
        reach_remote(home)
    except RemintError as error:
        yield Symptom(
            about="dvc",
            level="missing",
            what=f"DVC's remote cannot be used: {error}.",
            why="A run pushes its data before it registers a version: it would fail.",
            do="Correct the remote in .dvc/config(.local) or REMINT_DVC_REMOTE: docs/how-to/use-s3.md",
        )


def _s3(home: Home, params: Params | None) -> Iterator[Symptom]:
    """Check the sources and MLflow's files on S3. DVC's remote on S3 is checked through dvc."""
    datasets = params.datasets if params else {}
    named = {f"datasets.{name}.{key}": url for name, each in datasets.items() for key, url in each.sources.items()}
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
                why="The objects there can be neither read nor written.",
                do="docs/how-to/use-s3.md lists the variables and permissions that it needs.",
            )


def _stores(home: Home) -> Iterator[Symptom]:
    """Check MLflow's store and the ledger. A missing file is no symptom: the first run makes it."""
    for about, url, ask in (("mlflow", home.tracking_uri, reach_mlflow), ("ledger", home.ledger_url, reach_ledger)):
        try:
            ask(url)
        except RemintError as error:
            variable = "MLFLOW_TRACKING_URI" if about == "mlflow" else "REMINT_LEDGER"
            yield Symptom(
                about=about,
                level="missing",
                what=f"{error}.",
                why="No version can be registered, judged or loaded.",
                do=f"Start it, or correct {variable} and its password: docs/how-to/production.md",
            )
