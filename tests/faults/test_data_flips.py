"""Flipped bits in versioned data: in the checkout, in dvc's cache, on its remote. Damaged data are never trained on.

The steps are those of the flow, with real dvc; the training is a few lines that load the data as every training does.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remint
from flows import steps
from remint.data import arrays
from remint.errors import IntegrityError, VersioningError
from remint.promotion.retraining import Retraining
from remint.runtime.home import Home
from remint.settings.params import read_params, validate_params
from remint.stores import git, uncommitted
from remint.stores.dvc import Workspace, workspace, workspace_environment
from tests.support.retraining_cases import REPOSITORY, Events, retraining
from tests.support.trials import Trials

pytestmark = pytest.mark.usefixtures("forked")

STEP = """
import json, pathlib, sys
from remint.runtime import events
from remint.data import arrays
from remint.data import sources
from remint.data import splits
from remint.evaluation import features
from remint.records import TrainedModel
from remint.settings.dataset import DatasetSettings

def main(key):
    what, here = "{what}", pathlib.Path("outs")
    settings = DatasetSettings(source="images.npz", levels=5)
    if what == "snapshot":
        sources.snapshot("x", settings, pathlib.Path.cwd(), here / "raw/x")
    elif what == "prepare":
        splits.prepare("x", settings, here / "raw/x", here / "prepared/x")
    elif what == "features":
        features.fit(arrays.load(here / "prepared/x"), here / "features/x")
    else:
        dataset = arrays.load(here / "prepared/x")
        events.emit("progress", step=1, steps=1)
        (here / "trained/x").mkdir(parents=True)
        of = dict(pipeline="x", dataset=dataset.version.digest, spec=dataset.version.spec, recipe={}, fingerprint={})
        made = dict(weights_sha256="", steps=1, best_step=1, validation=None, world_size=1)
        TrainedModel(**of, **made).write(here / "trained/x/training.json")

events.run_step(main, always="{what}" == "snapshot")
"""
DVC_YAML = """
stages:
  snapshot:
    foreach: &each {x: {mode: good}}
    do: {cmd: "exec python snapshot.py ${key}", always_changed: true, outs: ["outs/raw/${key}"]}
  prepare:
    foreach: *each
    do: {cmd: "exec python prepare.py ${key}", deps: ["outs/raw/${key}", prepare.py], outs: ["outs/prepared/${key}"]}
  features:
    foreach: *each
    do: {cmd: "exec python features.py ${key}", deps: ["outs/prepared/${key}", features.py], outs: ["outs/features/${key}"]}
  train:
    foreach: *each
    do: {cmd: "exec python train.py ${key}", deps: ["outs/prepared/${key}", train.py], outs: ["outs/trained/${key}"]}
"""
FILES = {
    "dvc.yaml": DVC_YAML,
    ".dvc/config": '[core]\n    remote = local\n[cache]\n    dir = ../.remint/dvc/cache\n    type = "reflink,hardlink,copy"\n'
    "['remote \"local\"']\n    url = ../.remint/dvc/remote\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n",
    ".gitignore": "/outs/\n/.remint/\n",
    **{f"{what}.py": STEP.replace("{what}", what) for what in ("snapshot", "prepare", "features", "train")},
}
STAGES = {"raw": "snapshot@x", "prepared": "prepare@x", "features": "features@x"}


@contextmanager
def open_job(home: Home, name: str, events: Events | None = None) -> Iterator[Retraining]:
    """Open a job of the pipeline x on this repository's commit."""
    content = read_params(REPOSITORY)
    settings = {**content["pipelines"]["digits-flow"], "dataset": "x", "promotion": {}}
    dataset = {**content["datasets"]["digits"], "source": "images.npz", "levels": 5}
    params = validate_params({"datasets": {"x": dataset}, "pipelines": {"x": {**settings, "evaluation": {"metrics": ["nll"]}}}})
    folder = git.check_out(home.repository, uncommitted.commit_of_tree(home.repository), home.workspaces / name)
    with retraining(home, params, "x", checkout=folder, events=events) as job:
        yield job


def run_steps(job: Retraining) -> None:
    """Run the flow's steps up to training."""
    steps.version_data.fn(job)
    steps.learn_features.fn(job)
    steps.train.fn(job)


def push(job: Retraining) -> None:
    job.dvc.push(*STAGES.values())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Home of a repository with 240 small images."""
    repository = tmp_path_factory.mktemp("team")
    for path, text in FILES.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text(text)
    generator = np.random.default_rng(0)
    np.savez(repository / "images.npz", allow_pickle=False, x=generator.integers(0, 5, size=(240, 5, 5)).astype(np.uint8))
    commit = "git init -q -b main && git config user.email a@example.org && git config user.name A && git add -A && git commit -qm first"
    subprocess.run(["sh", "-c", commit], cwd=repository, check=True)
    source, real = str(Path(remint.__file__).parents[1]), workspace.workspace_environment
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REMINT_HOME", raising=False)
        patch.setattr(steps.progress, "reporter", lambda *_: lambda _event: None)  # the reporter would start a Prefect server
        patch.setattr(steps, "_open_run", lambda _: None)  # no run in MLflow
        patch.setattr(workspace, "workspace_environment", lambda folder, home: {**real(folder, home), "PYTHONPATH": source})
        yield Home.of(repository).ensure()


def flip_bit(path: Path, dice: random.Random, twin: Path | None = None) -> None:
    """Flip one bit of a file. ``twin``: its copy in dvc's cache, which gets the same content, as if one were a link."""
    content = bytearray(path.read_bytes())
    at = dice.randrange(8 * len(content))
    content[at // 8] ^= 1 << at % 8
    for each in (path, *([twin] if twin else [])):
        each.unlink()  # it may be a real link
        each.write_bytes(content)
        each.chmod(0o444)  # like dvc: it does not verify protected files


def dvc_objects(home: Home, store: str) -> dict[str, Path]:
    """Return the files of dvc's cache or remote by MD5."""
    root = home.dvc / store / "files/md5"
    return {"".join(path.relative_to(root).parts): path for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def refusals(home: Home) -> dict[str, str]:
    """Errors of the first jobs, whose data are damaged after a step, in checkout and cache, before the first push."""
    messages = {}
    for kind in ("raw", "prepared"):
        real = Workspace.reproduce

        def reproduce(self: Workspace, step: str, name: str, on_event: Any) -> bool:
            ran = real(self, step, name, on_event)  # noqa: B023
            if f"{step}@{name}" == STAGES[kind]:  # noqa: B023
                path = next((self.folder / "outs" / kind / "x").glob("*.np[yz]"))  # noqa: B023
                flip_bit(path, random.Random(0), dvc_objects(self.home, "cache")[md5_of(path)])
            return ran

        with open_job(home, kind) as damaged_job:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(IntegrityError) as caught:
                patch.setattr(Workspace, "reproduce", reproduce)
                run_steps(damaged_job)
            assert not damaged_job.out("trained").exists()
        messages[kind] = str(caught.value)
    return messages


@pytest.fixture(scope="module")
def events() -> Events:
    return []


@pytest.fixture(scope="module")
def job(home: Home, refusals: dict[str, str], events: Events) -> Iterator[Retraining]:
    """Job after the refused ones, run up to the training and pushed."""
    with open_job(home, "first", events) as job:
        run_steps(job)
        push(job)
        yield job


def file_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


@pytest.mark.case(20)
def test_a_flipped_bit_is_mended_from_an_intact_copy_or_refused(job: Retraining, trials: Trials) -> None:
    """Places: checkout, checkout linked to the cache, cache, cache without the remote's copy, and remote."""
    whole = {kind: file_contents(job.out(kind)) for kind in STAGES}
    kept = {path: path.read_bytes() for store in ("cache", "remote") for path in dvc_objects(job.home, store).values()}
    places = ("linked", "cache alone", "remote", "checkout", "cache")
    for trial in trials(short=2, full=300):
        kind, place = trial.random.choice(sorted(STAGES)), places[trial.number % len(places)]
        stage, out = STAGES[kind], job.out(kind)
        damage(job, kind, place, trial.random)
        try:
            (message,) = job.dvc.repair_outputs(stage)
        except IntegrityError as error:
            assert place in ("cache alone", "remote") and "was damaged" in str(error), error
            assert not out.exists() or file_contents(out).items() <= whole[kind].items(), "what is damaged was taken away"
            trial.note(refused=1, mended=0, trained_on=0)
        else:
            assert place not in ("cache alone", "remote") and "restored" in message
            assert file_contents(out) == whole[kind]
            trial.note(refused=0, mended=1, trained_on=0)
        for md5, path in dvc_objects(job.home, "cache").items():
            assert kept.get(path) == path.read_bytes(), f"{md5} is still damaged in the cache"
        restore(job, kept, stage)
        assert file_contents(out) == whole[kind]


def damage(job: Retraining, kind: str, place: str, dice: random.Random) -> None:
    out, stores = job.out(kind), {store: dvc_objects(job.home, store) for store in ("cache", "remote")}
    if place in ("checkout", "linked"):
        path = dice.choice(sorted(out.iterdir()))
        flip_bit(path, dice, stores["cache"][md5_of(path)] if place == "linked" else None)
        return
    named = [md5_of(path) for path in out.iterdir()]
    md5 = dice.choice(sorted(named))
    if place == "remote":  # like another machine, which has no cache yet
        for each in named:
            stores["cache"][each].unlink()
        shutil.rmtree(out)
        flip_bit(stores["remote"][md5], dice)
        return
    flip_bit(stores["cache"][md5], dice)
    if place == "cache alone":
        stores["remote"][md5].unlink()
    shutil.rmtree(out)
    job.dvc._dvc("checkout", "checkout", "--force", STAGES[kind])  # as a later job restores it


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def restore(job: Retraining, kept: dict[Path, bytes], stage: str) -> None:
    for path, before in kept.items():
        if not path.exists() or path.read_bytes() != before:
            path.unlink(missing_ok=True)
            path.write_bytes(before)
            path.chmod(0o444)
    job.dvc._dvc("checkout", "checkout", "--force", stage)


def test_data_damaged_between_two_steps_are_not_trained_on(job: Retraining, refusals: dict[str, str], events: Events) -> None:
    """Without an intact copy the job is refused; the next job makes the data again and trains on them."""
    for kind, message in refusals.items():
        assert message.startswith(
            f"outs/{kind}/x was damaged after {STAGES[kind]} made it, and neither the cache nor the remote has an intact copy"
        )
    assert job.model.dataset == job.dataset.digest and "notice" not in [event for event, _ in events]
    assert arrays.load(job.out("prepared")).version == job.dataset


def test_a_changed_dataset_record_is_found(job: Retraining) -> None:
    """dataset.json has no checksum of itself; its digest is the dataset version."""
    path = job.out("prepared") / "dataset.json"
    before = path.read_text()
    path.unlink()
    path.write_text(before.replace('"levels": 5', '"levels": 7'))
    assert arrays.load(job.out("prepared")).spec.levels == 7
    (message,) = job.dvc.repair_outputs(STAGES["prepared"])
    assert message == "outs/prepared/x was damaged after prepare@x made it, and was restored from the cache"
    assert path.read_text() == before


def test_the_next_push_sends_a_file_that_the_remote_lost(job: Retraining) -> None:
    """dvc's own push finds the folder's listing on the remote, and sends nothing."""
    remote = dvc_objects(job.home, "remote")
    lost = md5_of(job.out("prepared") / "train.npy")
    remote[lost].unlink()
    push(job)
    assert dvc_objects(job.home, "remote").keys() == remote.keys() and md5_of(remote[lost]) == lost


def test_a_push_does_not_send_a_damaged_file(job: Retraining) -> None:
    lost = md5_of(job.out("prepared") / "train.npy")
    cached = dvc_objects(job.home, "cache")[lost]
    before = cached.read_bytes()
    dvc_objects(job.home, "remote")[lost].unlink()
    flip_bit(cached, random.Random(1))
    with pytest.raises(VersioningError, match=f"the cache has no intact copy of {lost}"):
        push(job)
    assert lost not in dvc_objects(job.home, "remote")
    restore(job, {cached: before}, STAGES["prepared"])
    push(job)


def test_a_half_written_lock_file_of_a_killed_dvc_blocks_no_later_dvc(job: Retraining, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = job.dvc.folder / ".dvc/tmp/rwlock"
    assert lock.exists()
    lock.write_text('{"write": {"/a')
    with monkeypatch.context() as patch, pytest.raises(VersioningError, match="rwlock"):
        patch.setattr(Workspace, "_remove_stale_lock", lambda _: None)
        job.dvc.reproduce("prepare", "x", lambda _event: None)
    job.dvc.reproduce("prepare", "x", lambda _event: None)


def test_no_other_user_can_write_to_the_site_cache_of_dvc(tmp_path: Path) -> None:
    home = Home.of(tmp_path)
    site = home.dvc / "site"
    site.mkdir(parents=True)
    site.chmod(0o777)
    assert workspace_environment(home.repository, home)["DVC_SITE_CACHE_DIR"] == str(site)
    assert site.stat().st_mode & 0o777 == 0o700
