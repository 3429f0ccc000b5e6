"""Version with poisoned files: every command that loads it refuses it in one line, and its payload is never executed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remint.errors import RemintError
from remint.evaluation.evidence import Evidence
from remint.maintenance.audit import registry
from remint.promotion import champion, decide
from remint.records import DatasetVersion, EvaluationReport, TrainedModel
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.serving import model, pyfunc
from remint.serving.load import load_version
from remint.stores.mlflow import Tracking, VersionTags
from remint.stores.mlflow.inventory import versions
from remint.stores.open import fetch_bundle, open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.poisons import BUNDLE, POISONS, Payload, Poison, restore_model
from tests.support.promotion_cases import MODEL
from tests.support.registry_cases import SPEC
from tests.support.retraining_cases import params_of, retraining, write_records
from tests.support.trials import Trials

pytestmark = pytest.mark.usefixtures("forked")

REF = f"{MODEL}/1"


@pytest.fixture(scope="module")
def home(registered: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Home in which version 1 was champion before version 2: a rollback would return to it."""
    made = cases.copy_home(registered, tmp_path_factory.mktemp("home"))
    for number in (1, 2):
        cases.record_decision(made, "promoted", number)
    return made


def measure_champion_again(home: Home) -> str:
    """Try to measure the champion as a retraining does before it judges. Return the reason why it is unavailable."""
    challenger = TrainedModel.read(home.path / "bundles/1/training.json")
    report = EvaluationReport(
        pipeline=MODEL,
        model_key=challenger.key,
        weights_sha256=challenger.weights_sha256,
        dataset=open_tracking(home).version(REF).dataset,
        metrics={},
    )
    own = Evidence(report, {})
    dataset = DatasetVersion(name="digits", source="s", raw_sha256="0", spec=SPEC, split={}, counts={}, files={})
    with retraining(home, params_of(MODEL), MODEL) as job:
        write_records(job, dataset, challenger, own)
        found = champion.evidence(job, own, 1)
    assert found.evidence is None and found.unavailable_reason is not None
    return found.unavailable_reason


def error_of(act: Callable[[], object]) -> str:
    with pytest.raises(RemintError) as caught:
        act()
    return str(caught.value)


def audit_finding(home: Home) -> str:
    store = open_tracking(home)
    held = next(each for each in versions(store, MODEL) if each.version.ref == REF)
    (found,) = registry.check_bytes(home, store, held, "a champion before", load=True)
    assert found.finding.kind == "bytes" and found.finding.damages == REF
    return found.finding.what


def refusals(home: Home, folder: Path, poison: Poison) -> Iterator[tuple[str, str]]:
    """Yield each command and its error. If manifest and tags match the poison, only commands that load the model find it."""
    if not poison.record_only:
        yield "sample", error_of(lambda: load_version(home, REF))
    yield "rollback", error_of(lambda: decide.rollback(home, MODEL, "it blurs"))
    yield "audit --deep", audit_finding(home)
    if not poison.resealed:
        yield "promote", error_of(lambda: decide.promote(home, REF, "I like it", against=2))
        yield "judge", measure_champion_again(home)
    elif not poison.record_only:
        bundle = fetch_bundle(home, open_tracking(home).version(REF))
        yield "pyfunc", error_of(lambda: pyfunc._load_pyfunc(str(bundle)))


def reseal(store: Tracking, files: Path) -> None:
    """Make manifest and tags match the files, like an attacker who can also write to MLflow's database."""
    from remint.stores.mlflow import package

    manifest.seal(files / BUNDLE)
    store.set_tags(
        store.version(REF),
        VersionTags(
            manifest_sha256=manifest.sha256_file(files / BUNDLE / manifest.NAME),
            weights_sha256=manifest.sha256_file(files / BUNDLE / "weights.safetensors"),
            package_sha256=package.sha256(files),
        ),
    )


@pytest.mark.case(26)
def test_poisoned_models(trials: Trials, home: Home, tmp_path: Path) -> None:
    names, store = list(POISONS), open_tracking(home)
    files = cases.model_folder(home, 1)
    original = shutil.copytree(files.parent, tmp_path / "whole") / files.name
    tags = store.version(REF).tags
    for trial in trials(short=3, full=len(names)):
        poison, mark = POISONS[names[trial.number]], tmp_path / f"ran-{trial.number}"
        poison.make(files, Payload(mark))
        if poison.resealed:
            reseal(store, files)
        folder = tmp_path / str(trial.number)
        folder.mkdir()
        for command, message in refusals(home, folder, poison):
            assert len(message.splitlines()) == 1 and len(message) < 2_000, (names[trial.number], command, message)
            assert not mark.exists(), (names[trial.number], command)
            trial.note(refused=1)
        assert open_ledger(home).champion(MODEL) == 2
        assert not (folder / "x.npy").exists()
        trial.note(executed=0)
        restore_model(files, original)
        store.set_tags(store.version(REF), tags)
        shutil.rmtree(home.path / "models", ignore_errors=True)
    assert len(model.load(fetch_bundle(home, store.version(REF))).sample(2, seed=0)) == 2  # the original is loaded
