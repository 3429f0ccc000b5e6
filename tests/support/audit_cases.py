"""Small consistent home for tests of the audit: real git, DVC cache and remote, MLflow with its files, and ledger."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from ruamel.yaml import YAML

from remint.maintenance import audit
from remint.maintenance.audit.fault import Finding
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.records import canonical
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags
from remint.stores.open import open_ledger, open_tracking
from tests.support import registry_cases
from tests.support.team import copy_team

MODEL = "digits-flow"
CONFIG = (
    "[core]\n    remote = local\n[cache]\n    dir = ../.remint/dvc/cache\n['remote \"local\"']\n    url = ../.remint/dvc/remote\n"
)


def dvc_file(store: str, home: Home, md5: str) -> Path:
    """Return the path of dvc's file in the cache or the remote."""
    return home.dvc / store / "files/md5" / md5[:2] / md5[2:]


def write_output(home: Home, contents: dict[str, bytes], stores: tuple[str, ...] = ("cache", "remote")) -> str:
    """Write a folder into cache and remote as dvc does. Return the MD5 of its listing."""
    listing = [{"md5": hashlib.md5(content).hexdigest(), "relpath": name} for name, content in sorted(contents.items())]
    text = json.dumps(listing, sort_keys=True).encode()
    files = {hashlib.md5(content).hexdigest(): content for content in contents.values()}
    files[hashlib.md5(text).hexdigest() + ".dir"] = text
    for md5, content in files.items():
        for store in stores:
            dvc_file(store, home, md5).parent.mkdir(parents=True, exist_ok=True)
            dvc_file(store, home, md5).write_bytes(content)
    return next(md5 for md5 in files if md5.endswith(".dir"))


@dataclass
class World:
    """The home and its content: version 1 was champion, 2 was refused, 3 is champion, 4 is challenger."""

    home: Home
    raw: str  # MD5 of the listing of the raw data
    prepared: str

    @property
    def store(self) -> Tracking:
        return open_tracking(self.home)

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(self.home.tracking_uri)

    def copy(self, to: Path) -> World:
        """Copy the world to another folder."""
        copy_team(self.home.repository, to)
        return World(Home.of(to).ensure(), self.raw, self.prepared)

    def version(self, number: int) -> ModelVersion:
        return self.store.version(f"{MODEL}/{number}")

    def artifact_folder(self, number: int) -> Path:
        """Return MLflow's artifact folder of a version's run."""
        return Path(self.mlflow.get_run(self.version(number).run_id).info.artifact_uri.removeprefix("file://"))

    def audit(self, **more: Any) -> list[Finding]:
        return audit.findings(self.home, **more)

    def repair(self) -> list[Finding]:
        return audit.repair(audit.run_audit(self.home), lambda: audit.run_audit(self.home)).findings

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.home.repository, check=True, capture_output=True, text=True
        ).stdout.strip()


def make_bundles(folder: Path) -> Path:
    """Make the bundles of the four versions, once for many worlds."""
    for seed in range(1, 5):
        registry_cases.make_bundle(folder / str(seed), seed, MODEL)
    return folder


def make_world(repository: Path, empty: Path, bundles: Path) -> World:
    """Make a world in the folder ``repository``. ``empty``: a home with an initialised MLflow database."""
    (repository / ".dvc").mkdir(parents=True)
    (repository / ".dvc/config").write_text(CONFIG)
    (repository / ".gitignore").write_text("/.remint/\n")
    (repository / "params.yaml").write_text("datasets: {digits: {source: sklearn:digits}}\npipelines: {}\n")
    commit = "git init -q -b main && git config user.email a@example.org && git config user.name A && git add -A && git commit -qm first"
    subprocess.run(["sh", "-c", commit], cwd=repository, check=True)
    shutil.copytree(empty, repository / ".remint")
    home = Home.of(repository).ensure()
    world = World(home, write_output(home, {"x.npy": b"raw", "y.npy": b"labels"}), write_output(home, {"train.npy": b"prepared"}))
    for number, verdict in ((1, "promoted"), (2, "refused"), (3, "promoted"), (4, "refused")):
        register(world, bundles / str(number), verdict)
    return world


def register(world: World, bundle: Path, verdict: Any) -> ModelVersion:
    """Register a version with everything that a rebuild needs, and append its ledger row."""
    lock = world.home.path / "dvc.lock"
    outs = {"snapshot": world.raw, "prepare": world.prepared}
    stages = {
        f"{stage}@digits": {"outs": [{"path": stage, "hash": "md5", "md5": md5, "size": 9, "nfiles": 2}]}
        for stage, md5 in outs.items()
    }
    with lock.open("w") as stream:
        YAML().dump({"schema": "2.0", "stages": stages}, stream)
    tags = VersionTags(
        commit=world.git("rev-parse", "HEAD"),
        dirty="false",
        data=canonical({"name": "digits", "source": "sklearn:digits"}),
        dvc_lock_sha256=manifest.sha256_file(lock),
    )
    version = registry_cases.register(world.store, bundle, tags=tags, attachments={"dvc.lock": lock})
    book = open_ledger(world.home)
    before = book.champion(MODEL)
    after = version.version if verdict == "promoted" else before
    book.append(
        MODEL, verdict, version.version, champion_after=after, who="gate", why="", evidence="e" * 64, expected_champion=before
    )
    sync_mlflow_to_ledger(world.home, MODEL)
    lock.unlink()
    return version
