"""Reruns of steps, on real dvc and with real steps: a step reruns if and only if its result can change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from remint.records import EvaluationReport
from remint.runtime.home import Home
from remint.runtime.yaml import load_safe_yaml
from remint.settings.imports import WITHOUT_EFFECT
from remint.stores.dvc import workspace_environment

REPOSITORY = Path(__file__).parents[2]
PARAMS = """
datasets:
  tiny: {source: tiny.npz, levels: 5}
pipelines:
  flow:
    dataset: tiny
    family: flow
    model: {couplings: 2, hidden: 8, bins: 4}
    training: &training {steps: 4, batch_size: 8, validate_every: 2, checkpoint_every: 2}
    evaluation: {metrics: [nll, fd_domain], draws: 2, samples: 16}
    promotion: {}
  gan:
    dataset: tiny
    family: gan
    model: {latent: 4, hidden: 8, layers: 1}
    training: *training
    evaluation: {metrics: [novelty], draws: 2}
    promotion: {}
"""
PLUGIN = """  plugin:
    dataset: tiny
    family: pixelcnn
    model: {hidden: 4, layers: 1}
    training: {steps: 2, batch_size: 8, validate_every: 2}
    evaluation: {metrics: [kid_domain, diversity], draws: 2, samples: 16}
    promotion: {}
"""
SEEN = """
import atexit, json, os, sys

def note():
    ours = {name: module.__file__ for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)}
    with open(os.environ["SEEN"] + "/" + "-".join(sys.argv).replace("/", "_")[-80:], "w") as stream:
        json.dump(ours, stream)

atexit.register(note)
"""


@dataclass
class Clone:
    """Repository with dvc. It records the modules that each step imports."""

    folder: Path
    seen: Path | None = None
    programs: ClassVar[Path | None] = None  # preloaded ones, for steps whose imports are not looked at

    def run(self, *command: str, **variables: str) -> str:
        environment = {**os.environ, **workspace_environment(self.folder, Home(self.folder, self.folder / ".remint"))}
        if self.seen:
            environment["PYTHONPATH"] += f":{self.seen}"
            variables["SEEN"] = str(self.seen)
        done = subprocess.run(
            command, cwd=self.folder, env={**environment, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def step(self, name: str, key: str, **variables: str) -> None:
        python = sys.executable if self.seen or not self.programs else str(self.programs / "python")
        self.run(python, "-m", f"pipelines.{name}", key, **variables)

    def edit(self, path: str, before: str, after: str) -> None:
        text = (self.folder / path).read_text()
        assert text.count(before) == 1
        (self.folder / path).write_text(text.replace(before, after))

    def key(self, step: str, name: str) -> Any:
        return json.loads((self.folder / "outs/resolved" / step / f"{name}.json").read_bytes())

    def keys(self) -> dict[str, bytes]:
        """Return the dependencies of each stage in dvc.yaml, without the results of other stages."""
        self.step("resolve", "params.yaml")
        found = {}
        for step in ("prepare", "features", "train", "calibrate", "evaluate"):
            block = load_safe_yaml((self.folder / "dvc.yaml").read_text())["stages"][step]
            params = load_safe_yaml((self.folder / "params.yaml").read_text())[block["foreach"].strip("${}")]
            for name in params:
                deps = [self.folder / dep.replace("${key}", name) for dep in block["do"]["deps"] if "${item" not in dep]
                found[f"{step}@{name}"] = b"".join(path.read_bytes() for path in deps if path.is_file())
        return found

    def changed(self) -> set[str]:
        """Return the changed stages according to dvc, among those in dvc.lock."""
        self.step("resolve", "params.yaml")
        said = json.loads(self.run("dvc", "status", "--json"))
        always = {"resolve", "snapshot@tiny"}
        return {name for name, why in said.items() if name not in always and any("changed deps" in each for each in why)}


def make(folder: Path) -> Clone:
    for name in ("src", "pipelines", "examples"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", "constraints.txt", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "params.yaml").write_text(PARAMS)
    x_NHW = np.random.default_rng(0).integers(0, 5, size=(200, 4, 4)).astype(np.uint8)
    np.savez(folder / "tiny.npz", allow_pickle=False, x=x_NHW)
    return Clone(folder)


@pytest.fixture(scope="module", autouse=True)
def preloaded_steps(programs: Path | None) -> None:
    Clone.programs = programs


@pytest.fixture(scope="module")
def clone_with_lock(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Make a clone whose dvc.lock says that every stage has run; placeholder files stand for real results."""
    clone = make(tmp_path_factory.mktemp("locked") / "clone")
    clone.step("resolve", "params.yaml")
    for stage in load_safe_yaml((clone.folder / "dvc.yaml").read_text())["stages"].values():
        names = ["tiny"] if stage.get("foreach") == "${datasets}" else ["flow", "gan"]
        block = stage.get("do", {})
        outs = [*block.get("outs", []), *block.get("metrics", []), *(next(iter(each)) for each in block.get("plots", []))]
        for path in (clone.folder / out.replace("${key}", name) for out in outs for name in names):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")
    clone.run("dvc", "commit", "--force", "--quiet")
    assert clone.changed() == set()
    return clone


@pytest.fixture
def clone(clone_with_lock: Clone, tmp_path: Path) -> Clone:
    shutil.copytree(clone_with_lock.folder, tmp_path / "clone", symlinks=True)
    return Clone(tmp_path / "clone")


@pytest.fixture(scope="module")
def before(clone_with_lock: Clone) -> dict[str, bytes]:
    return clone_with_lock.keys()


PIPELINE_STEPS = ("features", "train", "calibrate", "evaluate")
EVERY = {f"{step}@{name}" for step in PIPELINE_STEPS for name in ("flow", "gan")} | {"prepare@tiny"}
TRAIN, EVALUATE = ({name for name in EVERY if name.startswith(step)} for step in ("train", "evaluate"))
GAN = {"train@gan", "calibrate@gan", "evaluate@gan"}
JUDGING, RECIPE, SPLIT, RECORDS = (
    f"src/remint/{name}.py" for name in ("settings/judging", "settings/recipe", "settings/split", "records")
)

CHANGES: dict[str, tuple[Callable[[Clone], object], set[str]]] = {
    "a default of the evaluation": (lambda c: c.edit(JUDGING, "importance_samples: Positive = 500", "importance_samples: Positive = 400"), EVALUATE),
    "a default that every pipeline overrides": (lambda c: c.edit(JUDGING, "draws: Annotated[int, Field(ge=2)] = 20", "draws: Annotated[int, Field(ge=2)] = 19"), set()),
    "a default of the split": (lambda c: c.edit(SPLIT, "held_out: float | str = 0.2", "held_out: float | str = 0.3"), {"prepare@tiny"}),
    "a default of the training": (lambda c: c.edit(RECIPE, "warmup: Fraction = 0.02", "warmup: Fraction = 0.03"), TRAIN),
    "a default of one family": (lambda c: c.edit(RECIPE, "beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0", "beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1"), {"train@gan"}),
    "nats_per_unit": (lambda c: c.edit(RECORDS, "1.0 if self.is_table else self.dims * math.log(2.0)", "1.0 if self.is_table else math.log(2.0)"), EVERY),
    "another record": (lambda c: (c.folder / RECORDS).open("a").write("\n\nclass Further(Record):\n    pass\n"), set()),
    "constraints.txt": (lambda c: (c.folder / "constraints.txt").write_text("torch==9.9\n"), EVERY),
    "a new family": (lambda c: (c.folder / "src/remint/models/diffusion.py").write_text("def build(): ...\n"), set()),
    "the GAN": (lambda c: c.edit("src/remint/models/gan.py", "def build(", "NEW = 1\n\n\ndef build("), GAN),
    "the GAN broken": (lambda c: (c.folder / "src/remint/models/gan.py").write_text("def ("), GAN),
    "a comment": (lambda c: (c.folder / "src/remint/models/gan.py").open("a").write("\n# the end\n"), set()),
    "a new error class": (lambda c: (c.folder / "src/remint/errors.py").open("a").write("\n\nclass Further(RemintError):\n    pass\n"), set()),
    "a metric of one pipeline": (lambda c: (c.folder / "src/remint/evaluation/likelihood.py").open("a").write("\nNEW = 1\n"), {"evaluate@flow"}),
    "an unused metric": (lambda c: (c.folder / "src/remint/evaluation/kernel.py").open("a").write("\nNEW = 1\n"), set()),
    "promotion settings and a new pipeline": (lambda c: c.edit("params.yaml", "    promotion: {}\n  gan:", "    promotion: {leakage: 0.5}\n  new: {dataset: tiny, family: gan, model: {}, training: {}, evaluation: {}, promotion: {}}\n  gan:"), {f"{step}@new" for step in PIPELINE_STEPS}),
    "a rule of the split": (lambda c: c.edit("params.yaml", "levels: 5}", "levels: 5, split: {stratify: true, calibration: 0.1}}"), {"prepare@tiny"}),
    "a setting equal to its default": (lambda c: c.edit("params.yaml", "levels: 5}", "levels: 5, split: {seed: 0}}"), set()),
    "the scores": (lambda c: (c.folder / "src/remint/models/scores.py").open("a").write("\nNEW = 1\n"), {"calibrate@flow", "calibrate@gan"}),
    "a use of a model": (lambda c: (c.folder / "src/remint/serving/anomalies/scoring.py").open("a").write("\nNEW = 1\n"), set()),
    "metrics without features": (lambda c: c.edit("params.yaml", "[nll, fd_domain]", "[nll]"), {"features@flow", "evaluate@flow"}),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_reruns_exactly_the_steps_that_depend_on_it(clone: Clone, before: dict[str, bytes], what: str) -> None:
    change, expected = CHANGES[what]
    change(clone)
    assert {stage for stage, key in clone.keys().items() if key != before.get(stage)} == expected


@pytest.mark.parametrize(
    "what",
    [
        "the GAN",
        pytest.param("a default of the evaluation", marks=pytest.mark.soak),
        pytest.param("a new family", marks=pytest.mark.soak),
    ],
)
def test_dvc_agrees_about_the_changed_stages(clone: Clone, what: str) -> None:
    change, expected = CHANGES[what]
    change(clone)
    assert clone.changed() == expected


STEPS = [("prepare", "tiny"), *((step, name) for name in ("flow", "gan", "plugin") for step in PIPELINE_STEPS)]


@pytest.fixture(scope="module")
def clone_after_run(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Make a clone in which dvc ran every step and recorded its imports; the last pipeline uses plug-ins."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "seen").mkdir()
    (folder / "seen/sitecustomize.py").write_text(SEEN)
    clone = make(folder / "clone")
    clone.seen = folder / "seen"
    params = PARAMS.replace("levels: 5}", "levels: 5, split: {calibration: 0.1}}")
    (clone.folder / "params.yaml").write_text(params)
    clone.run("dvc", "repro", "--quiet")
    (clone.folder / "params.yaml").write_text(params + PLUGIN)
    clone.run("dvc", "repro", "--quiet", "evaluate@plugin", "calibrate@plugin")
    return clone


def imported_modules(clone_after_run: Clone, step: str, name: str) -> set[str]:
    """Return the modules of ours that a step imported."""
    assert clone_after_run.seen
    (noted,) = (path for path in clone_after_run.seen.iterdir() if path.name.endswith(f"pipelines_{step}.py-{name}"))
    files = json.loads(noted.read_bytes())
    ours = {module for module, file in files.items() if Path(file).is_relative_to(clone_after_run.folder)}
    return ours - {"__main__", "__mp_main__"}


@pytest.mark.slow
@pytest.mark.parametrize(("step", "name"), STEPS)
def test_every_module_of_ours_that_a_step_imports_is_in_its_key(clone_after_run: Clone, step: str, name: str) -> None:
    ours = imported_modules(clone_after_run, step, name)
    assert {"remint.settings.params", "remint.records"} < ours
    if name == "plugin":  # settings read the plug-ins, so every step imports them
        ours -= imported_modules(clone_after_run, "resolve", "params.yaml")
    without_effect = {module for module in ours for each in WITHOUT_EFFECT if module == each or module.startswith(f"{each}.")}
    assert ours - without_effect - clone_after_run.key(step, name)["code"].keys() == set()


def test_plug_in_code_is_only_in_the_key_of_its_pipeline(clone_after_run: Clone) -> None:
    family, metric = "examples.pixelcnn.family", "examples.diversity.metric"
    assert (
        family in clone_after_run.key("train", "plugin")["code"] and metric not in clone_after_run.key("train", "plugin")["code"]
    )
    assert {family, metric} < clone_after_run.key("evaluate", "plugin")["code"].keys()
    assert not {family, metric} & {*clone_after_run.key("train", "gan")["code"], *clone_after_run.key("evaluate", "gan")["code"]}


def test_each_module_listed_as_without_effect_exists_and_has_a_reason() -> None:
    for module, reason in WITHOUT_EFFECT.items():
        path = REPOSITORY / "src" / module.replace(".", "/")
        assert (path.is_dir() or path.with_suffix(".py").is_file()) and reason


def test_features_are_trained_once_for_each_dataset_if_a_metric_needs_them(clone_after_run: Clone) -> None:
    made = {
        name: {path.name for path in (clone_after_run.folder / "outs/features" / name).iterdir()}
        for name in ("flow", "gan", "plugin")
    }
    learnt = {"extractor.json", "extractor.safetensors"}
    assert made == {"flow": learnt, "gan": {"none.json"}, "plugin": learnt}
    (kept,) = [path for path in (clone_after_run.folder / ".remint/features").iterdir() if path.is_dir()]
    for name in learnt:
        assert (kept / name).read_bytes() == (clone_after_run.folder / "outs/features/flow" / name).read_bytes()


@pytest.mark.soak
def test_after_a_changed_default_model_and_champion_are_evaluated_alike(clone_after_run: Clone) -> None:
    """dvc only evaluates again. The champion is measured by the same step, so it is comparable."""
    clone_after_run.edit("src/remint/settings/judging.py", "seed: Count = 0", "seed: Count = 1")
    said = clone_after_run.run("dvc", "repro", "evaluate@gan")
    assert "Running stage 'evaluate@gan'" in said and "Running stage 'train@gan'" not in said
    champion = clone_after_run.folder / "champion"
    clone_after_run.step(
        "evaluate",
        "gan",
        REMINT_EVALUATE_BUNDLE=str(clone_after_run.folder / "outs/trained/gan"),
        REMINT_EVALUATE_OUT=str(champion),
    )
    own, other = (
        EvaluationReport.read(folder / "report.json") for folder in (clone_after_run.folder / "outs/reports/gan", champion)
    )
    assert own.metrics["novelty"].seed == 1 and own.metrics == other.metrics
    assert "Running stage 'evaluate@gan'" not in clone_after_run.run("dvc", "repro", "evaluate@gan")
