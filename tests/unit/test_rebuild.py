"""Rebuild: comparisons, tolerances, and differences of the environment. tests/e2e/test_rebuild.py runs complete rebuilds."""

from __future__ import annotations

import math
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from remint.cli import screens
from remint.errors import IntegrityError, ResourceError
from remint.maintenance.rebuild import Rebuild, build, environment, record
from remint.maintenance.rebuild.compare import Facts, compare
from remint.promotion.tolerance import tolerances
from remint.records import MetricValue, canonical
from remint.runtime import manifest
from remint.stores.ledger.spreads import SeedSpread
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags
from tests.support import registry_cases as cases

pytestmark = pytest.mark.usefixtures("forked")

HERE = {"processor": "one", "threads": 1, "device": "cpu"}
ELSEWHERE = {"processor": "other", "threads": 1, "device": "cpu"}


def metric(value: float = 2.0, low: float = 1.5, high: float = 2.7, name: str = "nll") -> MetricValue:
    return MetricValue(name=name, value=value, low=low, high=high, n=10, seed=0)


def facts(**other: Any) -> Facts:
    given = {
        "weights_sha256": "w",
        "dataset": "d",
        "features": "f",
        "report_sha256": "r",
        "manifest_sha256": "m",
        "settings": {"family": "flow", "training": {"steps": 20, "seed": 0}},
        "metrics": {"nll": metric()},
        "fingerprint": HERE,
    }
    return Facts(**given | other)


WITHIN = {"nll": {"within": 0.25, "from": "95% interval"}}


def test_equal_bytes_are_identical_without_differences() -> None:
    found = compare(facts(), facts(), WITHIN)
    assert found.rule == "identity" and found.identical and found.reproduced and found.differences == ()


@pytest.mark.parametrize("thing", ["weights_sha256", "dataset", "features", "report_sha256", "manifest_sha256"])
def test_on_the_same_machine_each_digest_must_be_the_same(thing: str) -> None:
    found = compare(facts(), facts(**{thing: "x"}), WITHIN)
    (difference,) = found.differences
    assert (difference.thing, difference.rebuilt, difference.allowed) == (thing, "x", False)
    assert not found.identical and not found.reproduced


@pytest.mark.parametrize("other", [metric(math.nextafter(2.0, 3.0)), metric(low=1.4), metric(high=2.8)])
def test_on_the_same_machine_each_number_must_be_the_same_to_the_bit(other: MetricValue) -> None:
    (difference,) = compare(facts(), facts(metrics={"nll": other}), WITHIN).differences
    assert difference.thing == "metric nll" and not difference.allowed and "must be the same" in difference.why
    assert (difference.recorded["value"], difference.rebuilt["value"]) == (2.0, other.value)


def test_elsewhere_weights_may_differ_and_metrics_within_their_tolerance() -> None:
    other = {"weights_sha256": "x", "features": "x", "report_sha256": "x", "manifest_sha256": "x", "fingerprint": ELSEWHERE}
    found = compare(facts(), facts(**other, metrics={"nll": metric(2.25)}), WITHIN)
    assert found.rule == "tolerance" and not found.identical and found.reproduced
    assert [each.thing for each in found.differences] == [
        "features",
        "weights_sha256",
        "manifest_sha256",
        "report_sha256",
        "metric nll",
    ]
    assert found.differences[-1].why == "0.25 apart, within 0.25 (95% interval)"
    beyond = compare(facts(), facts(**other, metrics={"nll": metric(1.74)}), WITHIN)
    assert not beyond.reproduced
    assert [(each.thing, each.why) for each in beyond.differences if not each.allowed] == [
        ("metric nll", "0.26 apart, more than 0.25 (95% interval)")
    ]


def test_changed_data_or_settings_or_a_missing_metric_are_never_allowed() -> None:
    rebuilt = facts(
        fingerprint=ELSEWHERE,
        dataset="x",
        settings={"family": "flow", "training": {"steps": 30, "seed": 0}},
        metrics={"nll": metric(), "fd_domain": metric(name="fd_domain")},
    )
    found = compare(facts(), rebuilt, WITHIN)
    assert {each.thing: (each.recorded, each.rebuilt) for each in found.differences if not each.thing.startswith("metric")} == {
        "settings training.steps": (20, 30),
        "dataset": ("d", "x"),
    }
    assert [each.why for each in found.differences if each.thing == "metric fd_domain"] == ["measured on one side only"]
    assert not any(each.allowed for each in found.differences)


def test_a_metric_without_a_tolerance_must_be_equal_on_every_machine() -> None:
    (difference,) = compare(facts(), facts(fingerprint=ELSEWHERE, metrics={"nll": metric(2.1)}), {}).differences
    assert not difference.allowed and difference.why == "no tolerance was recorded for it"


def test_a_training_that_ran_on_two_machines_is_compared_with_tolerances_on_both() -> None:
    assert compare(facts(fingerprint={**HERE, "earlier": [ELSEWHERE]}), facts(), WITHIN).rule == "tolerance"


def test_the_tolerance_is_the_seed_spread_if_measured_for_this_recipe() -> None:
    def spread(values: tuple[float, ...], recipe: str = "a") -> SeedSpread:
        return SeedSpread(pipeline="p", recipe=recipe, dataset="d", seeds=tuple(range(len(values))), values={"nll": values})

    half = {"within": pytest.approx(0.6), "from": "95% interval"}
    metrics = {"nll": metric(), "elbo": metric(name="elbo")}
    found = tolerances(metrics, spread((1.0, 2.0, 3.0)), "a")
    # Student's t with 2 degrees of freedom has the 0.975 quantile 4.3026527; s = 1.
    assert found["nll"] == {"within": pytest.approx(4.302652729 * math.sqrt(2.0)), "from": "seed spread of 3 seeds"}
    assert found["elbo"] == half
    assert tolerances(metrics, spread((1.0, 2.0, 3.0), "b"), "a")["nll"] == half, "of another recipe"
    assert tolerances(metrics, spread((1.0, 2.0)), "a")["nll"] == half, "too few"
    assert tolerances(metrics, None, "a")["nll"] == half


def test_packages_are_compared_with_the_pinned_versions(tmp_path: Path) -> None:
    torch = version("torch").partition("+")[0]
    pins = f"# pins\nnumpy=={version('numpy')}\ntorch=={torch}\n\npydantic==0.0.1  # old\nno-such-package==1.0\n"
    (tmp_path / "constraints.txt").write_text(pins)
    assert environment.packages(tmp_path / "constraints.txt") == [
        environment.Change(name="pydantic", recorded="0.0.1", here=version("pydantic")),
        environment.Change(name="no-such-package", recorded="1.0", here="not installed"),
    ]
    (tmp_path / "constraints.txt").write_text(f"torch=={torch}+other\n")
    assert [each.name for each in environment.packages(tmp_path / "constraints.txt")] == ["torch"], "a pinned build counts"


@pytest.mark.parametrize(
    ("absent", "reported"),
    [
        ([], [("no-such-package", "1.0", "not installed"), ("pydantic", "0.0.1", version("pydantic"))]),
        (["no-such-package", "numpy", "pydantic"], [("pydantic", "not installed", version("pydantic"))]),
        (None, [("pydantic", "0.0.1", version("pydantic"))]),
    ],
)
def test_a_package_that_was_never_installed_is_no_change(
    absent: list[str] | None, reported: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "constraints.txt").write_text(f"no-such-package==1.0\nnumpy=={version('numpy')}\npydantic==0.0.1\n")
    found = environment.packages(tmp_path / "constraints.txt", absent)
    assert [(each.name, each.recorded, each.here) for each in found] == reported


def test_python_and_the_machine_are_named_with_both_values() -> None:
    assert environment.python(platform.python_version()) == environment.python(None) == []
    assert environment.python("3.11.0rc0")[0].recorded == "3.11.0rc0"
    assert environment.machine(HERE, {**ELSEWHERE, "torch": "2"}) == [
        environment.Change(name="processor", recorded="one", here="other"),
        environment.Change(name="torch", recorded=None, here="2"),
    ]


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Tracking:
    shutil.copytree(empty, tmp_path / "home")
    return cases.tracking(tmp_path / "home")


LOCK = """schema: '2.0'
stages:
  evaluate@digits-flow:
    cmd: x
    deps:
    - {path: outs/prepared/digits, hash: md5, md5: cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd.dir, size: 1, nfiles: 1}
    - {path: outs/features/digits, hash: md5, md5: abababababababababababababababab.dir, size: 1, nfiles: 1}
  features@digits:
    cmd: x
    outs:
    - {path: outs/features/digits, hash: md5, md5: abababababababababababababababab.dir, size: 1, nfiles: 1}
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / "params.yaml").write_text("datasets: {}\n")
    return {name: tmp_path / name for name in ("dvc.lock", "params.yaml")}


def registered(store: Tracking, files: dict[str, Path], tmp_path: Path, **tags: str) -> ModelVersion:
    cases.make_bundle(tmp_path / "bundle")
    carried = VersionTags(
        data=canonical({"name": "digits", "raw_sha256": "s"}),
        metrics=canonical({"nll": metric().to_json()}),
        dvc_lock_sha256=manifest.sha256_file(files["dvc.lock"]),
        params_sha256=manifest.sha256_file(files["params.yaml"]),
    )
    tagged = cases.TAGS.updated(carried).model_copy(update=tags)
    return cases.register(store, tmp_path / "bundle", tags=tagged, attachments=files)


def test_files_of_a_version_are_fetched_and_files_missing_from_older_versions_are_reported(
    store: Tracking, files: dict[str, Path], tmp_path: Path
) -> None:
    made = registered(store, files, tmp_path)
    found = record.fetch(store, made, tmp_path / "to")
    assert (found.pipeline, found.dataset, found.raw_sha256) == ("digits-flow", "digits", "s")
    assert found.facts.features == "abababababababababababababababab.dir" and found.facts.metrics == {"nll": metric()}
    assert found.facts.weights_sha256 == made.weights_sha256 and found.facts.settings["family"] == "flow"
    assert found.tolerance["nll"]["within"] == pytest.approx(0.6), "an older version has the half-width of its interval"
    assert [note.split(":")[0] for note in found.notes] == [
        f"registered before {tag} was recorded" for tag in ("python", "tolerance", "not_installed", "repository")
    ]


@pytest.mark.parametrize("name", ["dvc.lock", "params.yaml"])
def test_a_file_that_differs_from_the_registered_one_is_refused(
    store: Tracking, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    made = registered(store, files, tmp_path)
    (kept,) = (tmp_path / "home" / "mlflow" / "artifacts").rglob(name)
    kept.write_text(kept.read_text() + "# edited\n")
    with pytest.raises(IntegrityError, match=f"the {name} of digits-flow/1 differs from the registered one"):
        record.fetch(store, made, tmp_path / "to")


def test_a_version_without_the_facts_for_a_rebuild_is_refused_by_name(tmp_path: Path, store: Tracking) -> None:
    cases.make_bundle(tmp_path / "bundle")
    made = cases.register(store, tmp_path / "bundle")
    with pytest.raises(IntegrityError, match="digits-flow/1 cannot be built again: it has no data, metrics, dvc_lock_sha256"):
        record.fetch(store, made, tmp_path / "to")


def test_too_few_devices_are_an_error_and_a_missing_gpu_is_reported(
    store: Tracking, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu = canonical({"device": "cuda", "device_name": "H200"})
    made = registered(store, files, tmp_path, fingerprint=gpu, world_size="1")
    found, said = record.fetch(store, made, tmp_path / "to"), list[str]()
    build.check_machine(found, said.append)
    assert len(said) == 1 and "made on a GPU (H200) and this machine has none" in said[0]
    many = made.model_copy(update={"tags": made.tags.updated(VersionTags(world_size="4096"))})
    with pytest.raises(ResourceError, match="was trained by 4096 processes"):
        build.check_machine(record.VersionRecords(many, found.lock, found.params, ()), said.append)


def answer(recorded: Facts, rebuilt: Facts) -> Rebuild:
    found = compare(recorded, rebuilt, WITHIN)
    return Rebuild(
        model="digits-flow/7",
        commit="c" * 40,
        dirty=False,
        identical=found.identical,
        reproduced=found.reproduced,
        rule=found.rule,
        recorded=recorded,
        rebuilt=rebuilt,
        differences=found.differences,
        environment=tuple(environment.machine(recorded.fingerprint, rebuilt.fingerprint)),
        tolerance=WITHIN,
        notes=("a note",),
        seconds={"train": 1.5},
    )


def test_the_output_shows_each_comparison_and_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    screens.rebuild(answer(facts(), facts(fingerprint=ELSEWHERE, weights_sha256="x", settings={"family": "vae"})))
    text = capsys.readouterr().out
    for words in (
        "may differ",
        "settings family",
        "processor is other here, and was one",
        "a note",
        "digits-flow/7: NOT reproduced",
    ):
        assert words in text, words


def test_the_json_output_keeps_its_keys() -> None:
    said = answer(facts(), facts(fingerprint=ELSEWHERE, metrics={"nll": metric(2.25)})).to_json()
    keys = "model commit dirty identical reproduced rule recorded rebuilt differences environment tolerance notes seconds"
    assert list(said) == keys.split()
    assert said["recorded"] == facts().to_json() and said["notes"] == ["a note"] and said["seconds"] == {"train": 1.5}
    assert said["environment"] == [{"name": "processor", "recorded": "one", "here": "other"}]
    assert [list(each) for each in said["differences"]] == [["thing", "recorded", "rebuilt", "allowed", "why"]]
    assert said["tolerance"] == WITHIN
