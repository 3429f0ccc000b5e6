"""A home for the console in a browser: three small conditional VAEs of real digits, calibrated, with decisions; and its server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from remint.data import arrays, sources, splits
from remint.promotion.console import Registry
from remint.records import MetricValue, TrainedModel, canonical
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.serving.anomalies import calibration
from remint.serving.app import run
from remint.serving.app.limits import Limits
from remint.serving.app.slot import Version
from remint.serving.console.source import Outlook
from remint.serving.model import ServedModel
from remint.settings.dataset import DatasetSettings
from remint.settings.params import Params, validate_params
from remint.settings.recipe import Recipe
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_tracking
from remint.training import train
from tests.support.ports import free_port
from tests.support.promotion_cases import copy_home

NAME, TOKEN, HEADER = "digits-vae", "secret", "X-Remote-User"
DIGITS = {"source": "sklearn:digits", "shape": [1, 8, 8], "levels": 17, "split": {"calibration": 0.03}}
PIPELINE = {
    "dataset": "digits",
    "family": "vae",
    "model": {"conditional": True, "latent": 4, "hidden": 32, "layers": 1},
    "training": {"steps": 150, "batch_size": 64, "validate_every": 50, "checkpoint_every": 150},
    "evaluation": {"metrics": ["iwae"]},
    "promotion": {"require": {"iwae": {"max": 9.0}}, "improve": {"metric": "iwae"}},
    "schedule": {"cron": "0 3 * * *"},
}
REPORT = "<!doctype html><html lang=en><title>Promoted</title><style>h1 { color: green }</style><main><h1>Promoted</h1></main>"


def params() -> Params:
    pipelines = {NAME: PIPELINE, "digits-new": {**PIPELINE, "schedule": {}}}
    return validate_params({"datasets": {"digits": {**DIGITS, "kind": "image"}}, "pipelines": pipelines})


def make_home(empty: Path, folder: Path) -> None:
    """Make a home with a champion, a refused version and one that awaits approval."""
    home = copy_home(Home(folder, empty), folder)
    work = folder / "work"
    settings = DatasetSettings.model_validate(DIGITS)
    sources.snapshot("digits", settings, folder, work / "raw")
    splits.prepare("digits", settings, work / "raw", work / "prepared")
    dataset = arrays.load(work / "prepared")
    for seed, (action, value) in enumerate((("promoted", 2.9), ("refused", 3.1), ("awaiting_approval", 2.8))):
        out, recipe = work / f"trained-{seed}", params().pipeline(NAME).recipe
        train.train_pipeline(_seeded(recipe, seed), NAME, dataset, checkpoints=work / "kept", out=out, code_sha256="", command=[])
        measured = MetricValue(name="iwae", value=value, low=value - 0.1, high=value + 0.1, n=9, seed=0, unit="bits/dim")
        tags = VersionTags(commit="c" * 40, dirty="false", metrics=canonical({"iwae": measured.to_json()}))
        store, trained = open_tracking(home), TrainedModel.read(out / "training.json")
        version = store.register(out, trained, NAME, None, tags, {}, lambda _: "not loaded")
        if action == "promoted":
            calibration.calibrate(out, dataset, work / "calibration")
            store.attach(version, {"calibration": work / "calibration"})
            store.set_tags(version, VersionTags(calibration=manifest.sha256_file(work / "calibration" / manifest.NAME)))
        book = open_ledger(home)
        champion = book.champion(NAME)
        after = version.version if action == "promoted" else champion
        book.append(
            NAME,
            action,
            version.version,
            champion_after=after,
            who="gate",
            why="as it is",
            evidence="e",
            expected_champion=champion,
        )  # type: ignore[arg-type]
        home.report(NAME, version.version).mkdir(parents=True)
        (home.report(NAME, version.version) / "report.html").write_text(REPORT)


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})


@contextmanager
def serving(home: Home, other: ServedModel | None = None) -> Iterator[str]:
    """Serve the console in a thread. Yield its address. ``other``: answers in place of the champion."""
    source = Registry(home, params, lambda: {NAME: Outlook(failure="the run red-fox: no space left")})
    app = run.build(run.Serving(home, (NAME,), Limits(), 0.2, "cpu", TOKEN, lambda _: None), run.Pages(source, HEADER))
    if other is not None:
        app.app.state.api.slots[NAME].version = Version(other, 1, "", "")
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.config.port}"
    finally:
        server.should_exit = True
        thread.join()
