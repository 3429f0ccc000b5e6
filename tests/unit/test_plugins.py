"""Families and metrics of installed packages: found, refused in one line, and used only if changes of their code are tracked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remint.errors import SettingsError
from remint.models.bundle import MODEL, load_model, save_model
from remint.models.contract import CanSample
from remint.models.families import family
from remint.records import DataSpec
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.settings import plugins
from remint.settings.imports import Imports
from remint.settings.params import read_params, validate_params
from remint.stores.dvc import workspace_environment

REPOSITORY = Path(__file__).parents[2]
SPEC = DataSpec(shape=(1, 2, 2), levels=3)
SOUND = """
from remint.models.vae import build
from remint.models.vae import phases
from remint.settings.recipe import VaeSettings
class Settings(VaeSettings):
    rooms: int = 3
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a family plug-in as pip does: metadata with an entry point. Return the path of its module, not written yet."""
    return install(tmp_path / "lib", monkeypatch)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    metadata = folder / "house_family-1.2.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: house_family\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[remint.families]\nhouse = house_family\n")
    monkeypatch.syspath_prepend(folder)
    for name in ("house_family", "house_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder / "house_family.py"


def settings_with_family(**model: Any) -> dict[str, Any]:
    """Return settings with one pipeline of the family."""
    content = read_params(REPOSITORY)
    pipeline = content["pipelines"]["digits-vae"] | {"family": "house", "model": model}
    return {"datasets": content["datasets"], "pipelines": {"digits-house": pipeline}}


def test_params_yaml_may_name_a_family_of_a_plug_in_with_its_settings(house: Path) -> None:
    house.write_text(SOUND)
    assert set(plugins.names()) >= {"flow", "gan", "house", "pixelcnn", "vae"}
    settings = validate_params(settings_with_family(rooms=4)).pipelines["digits-house"]
    assert settings.recipe.resolved()["model"]["rooms"] == 4
    with pytest.raises(SettingsError, match=r"pipelines.digits-house.model: unknown key 'room': did you mean 'rooms'\?"):
        validate_params(settings_with_family(room=4))


def test_a_model_of_a_plug_in_is_saved_and_loaded_like_any_other(house: Path, tmp_path: Path) -> None:
    house.write_text(SOUND)
    settings = plugins.settings_of("house").model_validate({"rooms": 4, "hidden": 8})
    save_model(tmp_path / "trained", family("house").build(settings, SPEC), "house", settings, SPEC)
    manifest.seal(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / MODEL).read_text())["model"]["rooms"] == 4
    assert isinstance(load_model(tmp_path / "trained"), CanSample)
    house.write_text("import not_there\n")
    del sys.modules["house_family"]
    with pytest.raises(SettingsError, match="cannot be imported: ModuleNotFoundError: No module named 'not_there'"):
        load_model(tmp_path / "trained")


@pytest.mark.parametrize(("wrong", "near"), [("hous", "house"), ("flwo", "flow"), ("pixelcn", "pixelcnn")])
def test_an_unknown_family_is_refused_with_the_nearest_name(house: Path, wrong: str, near: str) -> None:
    for refused in (plugins.settings_of, family):
        with pytest.raises(SettingsError, match=f"unknown family '{wrong}': did you mean '{near}'"):
            refused(wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import not_there", "cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        ("raise RuntimeError('first; second\\nthird')", "cannot be imported: RuntimeError: first, second third"),
        ("def build(settings, spec)", "cannot be imported: SyntaxError: expected ':'"),
        ("def build(settings, spec): ...", "has no phases, Settings"),
        ("build = phases = print\nclass Settings: ...", "Settings is not a subclass of remint.settings.recipe.ModelSettings"),
    ],
)
def test_an_invalid_family_plug_in_is_reported_in_one_line(house: Path, text: str, words: str) -> None:
    house.write_text(text + "\n")
    with pytest.raises(SettingsError) as caught:
        validate_params(settings_with_family())
    (line,) = str(caught.value).splitlines()
    assert line.startswith("params.yaml: pipelines.digits-house: family 'house': its plug-in house_family of house_family 1.2")
    assert words in line


def require(workspace: Path) -> None:
    plugins.require_own_code("house", workspace, workspace / "constraints.txt")


def test_a_family_that_is_neither_in_the_repository_nor_installed_is_not_trained(house: Path, tmp_path: Path) -> None:
    """This holds for the module and for every module that it imports, at any place."""
    house.write_text(SOUND)
    (tmp_path / "constraints.txt").write_text("")
    require(tmp_path)
    with pytest.raises(SettingsError, match="family 'house': its code .*lib/house_family.py is neither in this repository nor"):
        require(tmp_path / "lib/other")
    (tmp_path / "job").mkdir()
    house = house.rename(tmp_path / "job/house_family.py")
    (tmp_path / "lib/house_helper.py").write_text("THREE = 3\n")
    house.write_text(SOUND + "def late():\n    from house_helper import THREE\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "job")
        require(tmp_path)
        with pytest.raises(SettingsError, match=r"its code .*lib/house_helper.py is neither"):
            require(tmp_path / "job")


def test_an_installed_plug_in_is_trained_if_its_version_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "venv/site-packages", monkeypatch).write_text(SOUND)
    for other in ("", "house-family==1.1\n", "# house-family==1.2\n"):
        (tmp_path / "constraints.txt").write_text(other)
        with pytest.raises(
            SettingsError, match=r"family 'house': the version of its package is not pinned: add house_family==1.2"
        ):
            require(tmp_path)
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\nHouse-Family==1.2  # ours\n")
    require(tmp_path)


def test_the_examples_count_as_code_of_this_repository(tmp_path: Path) -> None:
    plugins.require_own_code("pixelcnn", REPOSITORY, REPOSITORY / "constraints.txt")
    with pytest.raises(SettingsError, match="examples/pixelcnn/family.py is neither in this repository nor installed"):
        plugins.require_own_code("pixelcnn", tmp_path, REPOSITORY / "constraints.txt")
    for name in ("flow", "gan", "vae"):
        plugins.require_own_code(name, tmp_path, REPOSITORY / "constraints.txt")


def test_the_code_of_a_plug_in_is_its_folder_and_the_modules_of_ours_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules, also those found at run time, and files; without the files that compilation and installation add."""
    install(tmp_path, monkeypatch)
    (tmp_path / "house_family-1.2.dist-info/entry_points.txt").write_text("[remint.families]\nhouse = house.family\n")
    package = tmp_path / "house"
    package.mkdir()
    monkeypatch.delitem(sys.modules, "house", raising=False)
    for name, text in (("__init__.py", ""), ("family.py", SOUND), ("late.py", "A = 1\n"), ("table.csv", "1,2\n")):
        (package / name).write_text(text)

    def digests() -> dict[str, str]:
        return plugins.digests(Imports(), [], "house")

    first = digests()
    assert {"house", "house.family", "house.late", "house.family and beside it", "remint.models.vae"} <= set(first)
    assert not {"remint.models.gan", "torch"} & set(first)
    (package / "house.egg-info").mkdir()
    (package / "house.egg-info/PKG-INFO").write_text("Name: house\n")
    (package / "late.py").write_text('"""Other words."""\n\nA = 1  # reworded\n')
    assert digests() == first
    for name in ("family.py", "late.py", "table.csv"):
        with (package / name).open("a") as stream:
            stream.write("B = 3\n")
        assert digests() != first
        first = digests()


@pytest.mark.slow
def test_a_job_imports_the_plug_in_of_its_checkout(tmp_path: Path) -> None:
    """The entry point of the editable install points to the tree of the user; the path of a job comes first."""
    shutil.copytree(
        REPOSITORY / "examples", tmp_path / "job/examples", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    with (tmp_path / "job/examples/pixelcnn/family.py").open("a") as stream:
        stream.write("\n\nSettings.__doc__ = 'of the checkout'\n")
    script = "from remint.settings import plugins; print(plugins.settings_of('pixelcnn').__doc__)"

    def said(environment: dict[str, str]) -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **environment}, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert said(workspace_environment(tmp_path / "job", Home(tmp_path, tmp_path / "home"))) == "of the checkout"
    assert said({}) == "Gated PixelCNN."


METRIC = """
from remint.settings.catalogue import Facts
FACTS = Facts(needs="sample", better="higher")
def measure(model, context): ...
"""


@pytest.fixture
def rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a metric plug-in as pip does. Return the path of its module, not written yet."""
    metadata = tmp_path / "lib/house_rule-2.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: house_rule\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text("[remint.metrics]\nrule = house_rule\nelbo = house_rule\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.delitem(sys.modules, "house_rule", raising=False)
    return tmp_path / "lib/house_rule.py"


def settings_with_metrics(*metrics: str) -> dict[str, Any]:
    """Return settings with one pipeline that asks for these metrics."""
    content = read_params(REPOSITORY)
    pipeline = content["pipelines"]["digits-gan"] | {"evaluation": {"metrics": list(metrics)}, "promotion": {}}
    return {"datasets": content["datasets"], "pipelines": {"digits-gan": pipeline}}


def test_params_yaml_and_rules_may_name_a_metric_of_a_plug_in(rule: Path) -> None:
    rule.write_text(METRIC)
    content = settings_with_metrics("fd_domain", "rule")
    content["pipelines"]["digits-gan"]["promotion"] = {"require": {"rule": {"min": 0.5}}}
    assert validate_params(content).pipelines["digits-gan"].metrics() == ["fd_domain", "rule"]
    assert set(plugins.names("metric")) >= {"fd_domain", "nll", "rule", "diversity"}
    with pytest.raises(SettingsError, match=r"unknown metric 'rul': did you mean 'rule'\?"):
        validate_params(settings_with_metrics("rul"))


def test_a_plug_in_metric_that_model_or_settings_do_not_support_is_refused(rule: Path) -> None:
    rule.write_text(METRIC.replace('"sample"', '"log_prob"'))
    with pytest.raises(SettingsError, match="rule needs log_prob, which family 'gan' does not have"):
        validate_params(settings_with_metrics("rule"))
    rule.write_text(METRIC.replace('"sample"', '"sample", features="inception"'))
    del sys.modules["house_rule"]
    with pytest.raises(SettingsError, match=r"rule needs evaluation\.inception\.path"):
        validate_params(settings_with_metrics("rule"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import not_there", "cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        ("FACTS = 3", "has no measure"),
        ("FACTS = 3\ndef measure(model, context): ...", "FACTS is not a remint.settings.catalogue.Facts"),
    ],
)
def test_an_invalid_metric_plug_in_is_reported_in_one_line(rule: Path, text: str, words: str) -> None:
    rule.write_text(text + "\n")
    with pytest.raises(SettingsError) as caught:
        validate_params(settings_with_metrics("rule"))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(
        "params.yaml: pipelines.digits-gan.evaluation.metrics: metric 'rule': its plug-in house_rule of house_rule 2.0"
    )
    assert words in line


def test_a_plug_in_is_imported_only_if_named_and_cannot_take_a_built_in_name(rule: Path) -> None:
    rule.write_text("raise RuntimeError('imported')\n")
    validate_params(settings_with_metrics("fd_domain", "kid_domain"))
    assert plugins.facts_of("elbo").needs == "elbo" and "house_rule" not in sys.modules


def test_a_metric_that_is_neither_in_the_repository_nor_installed_is_not_measured(rule: Path, tmp_path: Path) -> None:
    rule.write_text(METRIC)
    (tmp_path / "constraints.txt").write_text("")
    plugins.require_own_code("rule", tmp_path, tmp_path / "constraints.txt", "metric")
    with pytest.raises(SettingsError, match="metric 'rule': its code .*lib/house_rule.py is neither in this repository nor"):
        plugins.require_own_code("rule", tmp_path / "job", tmp_path / "constraints.txt", "metric")
    for name in ("diversity", "fd_domain"):
        plugins.require_own_code(name, REPOSITORY, REPOSITORY / "constraints.txt", "metric")
