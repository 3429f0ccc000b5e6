"""Small real bundles shared by the registry tests, and a program whose processes register them at the same time.

python -m tests.support.registry_cases HOME BUNDLE COUNT [URI]    COUNT processes register BUNDLE at once; prints each one's version
python -m tests.support.registry_cases HOME BUNDLE die            opens a run and kills itself
"""

from __future__ import annotations

import csv
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from remint.distributed.machine import deterministic, fingerprint
from remint.models import bundle as bundles
from remint.models import probe
from remint.models.families import family
from remint.records import DataSpec, TrainedModel
from remint.runtime import manifest
from remint.serving import fresh
from remint.settings.recipe import FlowSettings, TrainingSettings
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags

SPEC = DataSpec(shape=(1, 4, 4), levels=5)
TAGS = VersionTags(commit="c" * 40, dirty="false")


def make_bundle(
    folder: Path, seed: int = 0, pipeline: str = "digits-flow", hidden: int = 8, spec: DataSpec = SPEC
) -> TrainedModel:
    """Make a sealed bundle at ``folder``, as training does, of a flow with random weights from ``seed``."""
    settings = FlowSettings(couplings=2, hidden=hidden, bins=3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family("flow").build(settings, spec)
    sha256 = bundles.save_model(folder, model, "flow", settings, spec)
    recipe = {
        "dataset": "digits",
        "family": "flow",
        "model": settings.model_dump(mode="json"),
        "training": TrainingSettings(seed=seed).model_dump(mode="json"),
    }
    trained = TrainedModel(
        pipeline=pipeline,
        dataset="d" * 64,
        spec=spec,
        recipe=recipe,
        weights_sha256=sha256,
        steps=10,
        best_step=10,
        validation=2.0,
        world_size=1,
        fingerprint={"threads": 1},
    )
    trained.write(folder / "training.json")
    with (folder / "curve.csv").open("w") as stream:
        csv.writer(stream).writerows([("step", "loss"), (1, 2.5)])
    with deterministic(1):
        probe.record(folder, fingerprint(torch.device("cpu"), 1, 1))
    manifest.seal(folder)
    return trained


def tracking(home: Path, uri: str = "") -> Tracking:
    address = uri or f"sqlite:///{home}/mlflow/mlflow.db"
    return Tracking(address, str(home / "mlflow" / "artifacts"), home / "locks" / "registry")


def register(
    store: Tracking,
    bundle: Path,
    run_id: str | None = None,
    tags: VersionTags = TAGS,
    attachments: Mapping[str, Path] | None = None,
    verify: Callable[[Path], str] = lambda bundle: "not looked at",
) -> ModelVersion:
    """Register a bundle, by default without loading it in a fresh process: that takes seconds and few tests need it."""
    trained = TrainedModel.read(bundle / "training.json")
    return store.register(bundle, trained, trained.pipeline, run_id, tags, attachments or {}, verify)


def mlflow_lifecycle(home: Path, bundle: Path, uri: str = "") -> ModelVersion:
    """Do the MLflow part of one retraining."""
    store = tracking(home, uri)
    trained = TrainedModel.read(bundle / "training.json")
    run_id = store.start_run(trained.pipeline, {"job": str(os.getpid())}, trained.recipe)
    for step in range(5):
        store.log_metrics(run_id, [{"step": step, "loss": 1.0 / (step + 1)}])
    attachments, log = {"training.json": bundle / "training.json"}, home / f"{os.getpid()}.log"
    version = register(store, bundle, run_id, attachments=attachments, verify=lambda back: fresh.check(back, log))
    with store.exclusive_lock("projection"):  # as remint.stores.open: two simultaneous writers would add a tag twice
        store.set_tags(version, VersionTags(verdict="promoted"))
        store.set_alias(version.name, "champion", version.version)
    return version


def _register_concurrently(home: Path, bundle: Path, count: int, uri: str = "") -> int:
    """Register in ``count`` forks, made before MLflow opens the database: all of them create it at once."""
    import mlflow.pyfunc
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (imported once, before the forks)

    ready, go = os.pipe()
    children = []
    for _ in range(count):
        gc.freeze()  # else the child's first collection copies all pages
        child = os.fork()
        if not child:
            os.close(go)
            os.read(ready, 1)  # returns in all children when the parent closes its end
            os.write(1, f"{mlflow_lifecycle(home, bundle, uri).version}\n".encode())
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    os.close(go)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    home, bundle, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if what == "die":
        print(tracking(home).start_run("digits-flow", {}, {}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(_register_concurrently(home, bundle, int(what), *sys.argv[4:]))
