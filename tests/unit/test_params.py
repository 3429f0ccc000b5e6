"""params.yaml: valid content, and the message for each mistake."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remint.errors import SettingsError
from remint.settings.params import apply_overrides, load_params, read_params, validate_params, write_params

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def content() -> dict[str, Any]:
    return read_params(REPOSITORY)


@pytest.mark.parametrize(
    "address",
    ["https://hooks.example.com/planted-secret", "hooks.example/planted-secret", "a:planted-secret", "T00/B00/planted-secret"],
)
def test_an_address_in_place_of_a_block_is_not_repeated(content: dict[str, Any], address: str) -> None:
    with pytest.raises(SettingsError, match="that belongs into the block") as error:
        validate_params(content | {"notify": {"block": address}})
    assert "planted-secret" not in str(error.value)


def test_the_repositorys_own_params_are_valid() -> None:
    params = load_params(REPOSITORY)
    assert {"digits-flow", "digits-vae", "digits-gan"} <= set(params.pipelines)
    assert params.pipelines["digits-flow"].metrics() == ["nll", "fd_domain"]


def numbers(block: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of each number with a point, below the blocks of a file."""
    if isinstance(block, dict):
        for key, value in block.items():
            yield from numbers(value, (*path, key))
    elif isinstance(block, float):
        yield path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_is_nan_or_infinite(content: dict[str, Any], value: float) -> None:
    content["datasets"] = {"digits": content["datasets"]["digits"]}
    content["pipelines"] = {name: content["pipelines"][name] for name in ("digits-vae", "digits-gan", "digits-flow")}
    content["pipelines"]["digits-vae"]["promotion"]["never_worse"] = {"fd_domain": 0.3}
    content["pipelines"]["digits-gan"]["promotion"]["improve"]["margin"] = 0.1
    content["pipelines"]["digits-flow"]["serving"] = {"shadow": 0.1}
    filled = json.loads(validate_params(content).model_dump_json(exclude_none=True))
    for name, pipeline in validate_params(content).pipelines.items():
        filled["pipelines"][name]["model"] = pipeline.recipe.resolved()["model"]
    places = list(numbers(filled))
    assert len(places) > 40 and ("pipelines", "digits-vae", "promotion", "require", "iwae", "max") in places
    for *parents, last in places:
        changed = copy.deepcopy(content)
        block = functools.reduce(lambda found, key: found.setdefault(key, {}), parents, changed)
        block[last] = value
        with pytest.raises(SettingsError) as caught:
            validate_params(changed)
        assert "\n" not in str(caught.value) and f"{'.'.join(parents)}.{last}: " in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("pipelines.digits-vae.trainig", {}, ["pipelines.digits-vae", "trainig", "did you mean 'training'?"]),
        ("pipelines.digits-vae.training.learning_rat", 1.0, ["pipelines.digits-vae.training", "did you mean 'learning_rate'?"]),
        ("pipelines.digits-vae.training.steps", "many", ["pipelines.digits-vae.training.steps", "integer", "'many'"]),
        ("pipelines.digits-vae.training.steps", "20", ["pipelines.digits-vae.training.steps", "integer", "'20'"]),
        ("pipelines.digits-vae.training.steps", 0, ["pipelines.digits-vae.training.steps", "greater than or equal to 1"]),
        ("pipelines.digits-vae.training.steps", True, ["pipelines.digits-vae.training.steps", "integer"]),
        ("pipelines.digits-vae.training.ema", 1.5, ["pipelines.digits-vae.training.ema", "less than 1"]),
        ("pipelines.digits-vae.training.devices", 65, ["pipelines.digits-vae.training", "below the 65 processes"]),
        ("pipelines.digits-vae.training.nodes", 65, ["pipelines.digits-vae.training", "below the 65 processes"]),
        (
            "pipelines.digits-vae.training.nodes",
            0,
            ["pipelines.digits-vae.training.nodes", "whole number of at least 1", "not 0"],
        ),
        ("pipelines.digits-vae.training.nodes", {"min": 3, "max": 2}, ["training.nodes", "min 3 is above max 2"]),
        ("pipelines.digits-vae.training.nodes", {"min": 0, "max": 2}, ["training.nodes", "min", "greater than or equal to 1"]),
        ("pipelines.digits-vae.training.nodes", {"least": 1}, ["training.nodes", "least"]),
        ("pipelines.digits-vae.model.latnet", 3, ["pipelines.digits-vae.model", "did you mean 'latent'?"]),
        ("pipelines.digits-vae.model.latent", -1, ["pipelines.digits-vae.model.latent", "greater than or equal to 1"]),
        ("pipelines.digits-vae.family", "vea", ["pipelines.digits-vae", "did you mean 'vae'?"]),
        ("pipelines.digits-vae.dataset", "digit", ["pipelines.digits-vae.dataset", "did you mean 'digits'?"]),
        ("pipelines.digits-vae.evaluation.metrics", ["nll"], ["digits-vae", "needs log_prob"]),
        ("pipelines.digits-vae.evaluation.metrics", ["elbow"], ["evaluation.metrics", "did you mean 'elbo'?"]),
        ("pipelines.digits-gan.promotion", {"require": {"nll": {"max": 1}}}, ["digits-gan", "'nll' is not measured"]),
        ("pipelines.digits-vae.promotion.require", {"iwae": {}}, ["require.iwae", "min, max or both"]),
        ("pipelines.digits-vae.schedule", {"cron": "0 3 * * *", "interval": 5}, ["schedule", "exactly one of cron"]),
        ("notify", {"block": "slack"}, ["notify.block", "TYPE/NAME of a block in Prefect", "'slack'"]),
        ("notify", {"blok": "slack-webhook/team"}, ["notify", "did you mean 'block'?"]),
        ("notify", {"block": "slack-webhook/team", "events": []}, ["notify.events", "at least one event"]),
        ("notify", {"block": "slack-webhook/team", "events": ["kept"]}, ["notify.events.0", "'kept'"]),
        ("pipelines.digits-vae.schedule", {"cron": "every night"}, ["schedule.cron", "every night"]),
        (
            "pipelines.digits-vae.schedule",
            {"cron": "0 25 * * *"},
            ["pipelines.digits-vae.schedule.cron", "hour: expected 0 to 23, not '25'"],
        ),
        ("pipelines.digits-vae.schedule", {"rrule": "FREQ=NEVER"}, ["schedule.rrule", "expected a rule as in", "FREQ=NEVER"]),
        ("pipelines.digits-vae.schedule", {"interval": 10**15}, ["schedule.interval", "at most 316224000 seconds"]),
        ("pipelines.digits-vae.schedule", {"interval": 60, "timezone": "Mars/Olympus"}, ["schedule.timezone", "Mars/Olympus"]),
        ("pipelines.digits-vae.evaluation.metrics", ["class_agreement"], ["class_agreement needs model.conditional: true"]),
        ("pipelines.digits-vae.evaluation.metrics", ["kid_domian"], ["evaluation.metrics", "did you mean 'kid_domain'?"]),
        (
            "pipelines.digits-gan.evaluation.metrics",
            ["fd_domain", "fid"],
            ["fid needs evaluation.inception.path", "weights-inception-2015-12-05-6726825d.pth", "torch-fidelity"],
        ),
        ("pipelines.digits-gan.evaluation.metrics", ["fd_domain", "kid_program"], ["kid_program needs evaluation.program.path"]),
        ("pipelines.digits-gan.evaluation.program", {"path": "net.pt2"}, ["evaluation.program", "sha256: missing"]),
        ("pipelines.digits-gan.evaluation.program", {"path": "p", "sha256": "12"}, ["evaluation.program.sha256", "pattern"]),
        (
            "pipelines.digits-gan.evaluation",
            {"metrics": ["fd_domain", "fid"], "inception": {"path": "w.pth", "sha256": "0" * 64}},
            ["digits-gan.evaluation", "fid is defined for the published weights only (SHA-256 6726825d..)"],
        ),
        ("pipelines.digits-gan.evaluation.inception", {"pth": "x"}, ["evaluation.inception", "did you mean 'path'?"]),
        (
            "pipelines.cancer-flow.evaluation",
            {"metrics": ["nll", "fid"], "inception": {"path": "weights.pth"}},
            ["pipelines.cancer-flow.evaluation.metrics: fid needs images", "'cancer' is a table", "fd_domain"],
        ),
        ("datasets.digits.levels", 1000, ["datasets.digits.levels", "256"]),
        ("datasets.digits.split", {"held_out": 0.9}, ["datasets.digits.split.held_out", "0.5"]),
        (
            "datasets.digits.split",
            {"held_out": 0.4, "validation": 0.3, "calibration": 0.3},
            ["datasets.digits.split: validation, held_out and calibration leave nothing for training"],
        ),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_what_was_expected(
    content: dict[str, Any], path: str, value: Any, words: list[str]
) -> None:
    broken = copy.deepcopy(content)
    *parents, last = path.split(".")
    block = broken
    for parent in parents:
        block = block[parent]
    block[last] = value
    with pytest.raises(SettingsError) as caught:
        validate_params(broken)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("params.yaml: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("block", ["datasets", "pipelines"])
@pytest.mark.parametrize(
    "name", ["../away", "a/b", ".hidden", "", "a b", "-n", "a\n", "a.dvc", ".dvc", "dvc.yaml", "a" * 101, "é", "${key}"]
)
def test_names_that_are_not_valid_file_names_are_refused(content: dict[str, Any], block: str, name: str) -> None:
    content[block][name] = next(iter(content[block].values()))
    with pytest.raises(SettingsError, match="expected a name: at most 100 letters") as caught:
        validate_params(content)
    assert str(caught.value).startswith(f"params.yaml: {block}.") and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["v1.2", "a..b", "a.", "dvc.yaml.x", "a.dvc1", "2024", "true", "a" * 100])
def test_names_with_dots_and_digits_are_allowed(content: dict[str, Any], name: str) -> None:
    content["datasets"][name] = content["datasets"]["digits"]
    content["pipelines"][name] = {**content["pipelines"]["digits-vae"], "dataset": name}
    assert validate_params(content).pipeline(name).dataset == name


def test_names_that_differ_only_in_case_are_refused(content: dict[str, Any]) -> None:
    content["datasets"]["Digits"] = content["datasets"]["digits"]
    with pytest.raises(
        SettingsError, match=r"^params.yaml: datasets.Digits: on some disks its files are those of datasets.digits"
    ):
        validate_params(content)


def test_every_mistake_is_reported_on_a_separate_line(content: dict[str, Any]) -> None:
    content["pipelines"]["digits-vae"]["training"]["steps"] = -1
    content["pipelines"]["digits-gan"]["training"]["ema"] = "high"
    with pytest.raises(SettingsError) as caught:
        validate_params(content)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("block", ["model", "training", "evaluation", "promotion"])
def test_a_missing_block_is_refused(content: dict[str, Any], block: str) -> None:
    del content["pipelines"]["digits-vae"][block]
    with pytest.raises(SettingsError, match=f"pipelines.digits-vae.{block}: missing: add it"):
        validate_params(content)


def test_an_empty_schedule_is_none(content: dict[str, Any]) -> None:
    content["pipelines"]["digits-vae"]["schedule"] = {}
    assert validate_params(content).pipelines["digits-vae"].schedule is None


def test_an_unknown_pipeline_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"unknown pipeline 'digit-vae': did you mean 'digits-vae'\?"):
        load_params(REPOSITORY).pipeline("digit-vae")


def test_set_reads_values_as_yaml_and_changes_nothing_else(content: dict[str, Any]) -> None:
    changed = apply_overrides(content, "digits-vae", ["training.steps=20", "training.learning_rate=1e-3"])
    settings = validate_params(changed).pipelines["digits-vae"].training
    assert (settings.steps, settings.learning_rate) == (20, 1e-3)
    assert changed["pipelines"]["digits-flow"] == content["pipelines"]["digits-flow"]
    assert content["pipelines"]["digits-vae"]["training"]["steps"] != 20


@pytest.mark.parametrize("assignment", ["training.steps", "=3", "training..steps=3", "dataset.steps=3", "training.steps=[1,"])
def test_set_without_an_assignment_is_refused(content: dict[str, Any], assignment: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        apply_overrides(content, "digits-vae", [assignment])


def test_a_missing_file_or_invalid_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no params.yaml"):
        load_params(tmp_path)
    (tmp_path / "params.yaml").write_text("datasets: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        load_params(tmp_path)
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(SettingsError, match="expected the blocks"):
        load_params(tmp_path)


def test_written_params_read_back_equal(content: dict[str, Any], tmp_path: Path) -> None:
    write_params(content, tmp_path)
    assert read_params(tmp_path) == content


@pytest.mark.parametrize(
    ("rules", "measured"),
    [
        ({}, ["elbo", "fd_domain"]),
        ({"require": {"elbo": {"max": 3.0}}}, ["elbo", "fd_domain"]),
        ({"require": {"iwae": {"max": 3.0}}}, ["elbo", "iwae", "fd_domain"]),
        ({"improve": {"metric": ["iwae", "elbo"]}}, ["elbo", "iwae", "fd_domain"]),
        ({"never_worse": {"iwae": 0.1}}, ["elbo", "iwae", "fd_domain"]),
    ],
)
def test_without_metrics_the_costly_bound_is_measured_where_a_rule_names_it(
    content: dict[str, Any], rules: dict[str, Any], measured: list[str]
) -> None:
    content["pipelines"]["digits-vae"] |= {"evaluation": {}, "promotion": rules}
    assert validate_params(content).pipelines["digits-vae"].metrics() == measured


def test_the_number_of_processes_is_in_no_key(content: dict[str, Any]) -> None:
    one = validate_params(content).pipelines["digits-vae"]
    assert (one.training.nodes.min, one.training.nodes.max) == (1, 1)
    for nodes, machines in ((3, (3, 3)), ({"min": 2, "max": 4}, (2, 4))):
        other = copy.deepcopy(content)
        other["pipelines"]["digits-vae"]["training"] |= {"devices": 2, "nodes": nodes}
        of_many = validate_params(other).pipelines["digits-vae"]
        assert (of_many.training.nodes.min, of_many.training.nodes.max) == machines
        assert of_many.recipe.resolved() == one.recipe.resolved()
