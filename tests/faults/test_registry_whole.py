"""A version is visible only after another process loaded it; lost files are restored or are a one-line error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from remint.errors import IntegrityError, RunError
from remint.models import probe
from remint.runtime import manifest
from remint.serving import fresh
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags
from tests.support import registry_cases as cases

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Tracking:
    shutil.copytree(empty, tmp_path / "home")
    return cases.tracking(tmp_path / "home")


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle, tmp_path / "bundle")


def client(store: Tracking) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


def run_of(store: Tracking, version: ModelVersion) -> Path:
    return Path(client(store).get_run(version.run_id).info.artifact_uri)


def put_nan_in_weights(bundle: Path) -> None:
    """Put NaN into the weights, and update the record to match."""
    weights = load_file(bundle / "weights.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel() > 8)
    weights[name].flatten()[3] = torch.nan
    save_file(weights, bundle / "weights.safetensors")
    trained = cases.TrainedModel.read(bundle / "training.json")
    sha256 = manifest.sha256_file(bundle / "weights.safetensors")
    trained.model_copy(update={"weights_sha256": sha256}).write(bundle / "training.json")


def change_recorded_samples(bundle: Path) -> None:
    """Replace the recorded samples by those of another model."""
    recorded = probe.read(bundle)
    assert recorded is not None
    samples = np.array(recorded.arrays["samples"])
    samples[5, 0, 2, 1] = (samples[5, 0, 2, 1] + 1) % cases.SPEC.levels
    (bundle / probe.FILE).write_bytes(
        probe.save({"samples": samples}, {"about": probe.canonical({"seed": recorded.seed, "machine": recorded.machine})})
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (put_nan_in_weights, "values that are not finite"),
        (change_recorded_samples, "output differs from the output recorded at training"),
    ],
)
def test_a_model_that_draws_other_samples_than_recorded_is_not_registered(
    store: Tracking, bundle: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(bundle)
    manifest.seal(bundle)
    run_id = store.start_run("digits-flow", {}, {})
    with pytest.raises(IntegrityError, match=says) as caught:
        cases.register(store, bundle, run_id, verify=lambda back: fresh.check(back, tmp_path / "log"))
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).startswith("digits-flow: ")
    assert store.names() == [] and client(store).get_run(run_id).info.status == "RUNNING"


def test_the_downloaded_files_are_verified_before_the_version_is_visible(store: Tracking, bundle: Path) -> None:
    seen: list[Path] = []

    def verify(back: Path) -> str:
        assert manifest.verify(back) == manifest.verify(bundle) and not back.is_relative_to(bundle)
        assert store.names() == []
        seen.append(back)
        return "seen"

    version = cases.register(store, bundle, verify=verify)
    assert len(seen) == 1 and version.tags.verified == "seen"
    assert cases.register(store, bundle, verify=verify) == version
    assert len(seen) == 1  # the files were already verified


def test_a_bundle_that_cannot_be_loaded_is_a_one_line_error(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "none/remint").mkdir(parents=True)
    (tmp_path / "none/remint/__init__.py").write_text("raise ImportError('the code of this commit is broken')")
    with pytest.raises(RunError, match=r"ImportError: the code of this commit is broken \(full output: .*log\)") as caught:
        fresh.check(bundle, tmp_path / "log", {"PYTHONPATH": str(tmp_path / "none")})
    assert len(str(caught.value).splitlines()) == 1


def remove_model(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "model")


def flip_bit(run_folder: Path) -> None:
    weights = next(run_folder.rglob("weights.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def remove_run_folder(run_folder: Path) -> None:
    shutil.rmtree(run_folder)


@pytest.mark.parametrize("lose", [remove_model, flip_bit, remove_run_folder])
def test_lost_files_are_restored_by_the_next_registration(
    store: Tracking, bundle: Path, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    (tmp_path / "dvc.lock").write_text("first")
    locks = {"dvc.lock": tmp_path / "dvc.lock"}
    version = cases.register(
        store, bundle, attachments=locks, tags=cases.TAGS.updated(VersionTags(dvc_lock_sha256="of the first"))
    )
    store.fetch(version, tmp_path / "before")
    lose(run_of(store, version))
    with pytest.raises(IntegrityError):
        store.fetch(version, tmp_path / "lost")
    (tmp_path / "dvc.lock").write_text("second")
    checked: list[Path] = []

    def verify(back: Path) -> str:
        checked.append(back)
        return "again"

    again = cases.register(
        store, bundle, attachments=locks, tags=cases.TAGS.updated(VersionTags(dvc_lock_sha256="of the second")), verify=verify
    )
    assert again.ref == version.ref and len(checked) == 1 and again.tags.verified == "again"
    store.fetch(again, tmp_path / "after")
    assert manifest.sha256_tree(tmp_path / "after") == manifest.sha256_tree(tmp_path / "before")
    which = "second" if lose is remove_run_folder else "first"  # the version's tags and its run's files must match
    assert store.attachment(again, "dvc.lock", tmp_path / "kept").read_text() == which
    assert again.tags.dvc_lock_sha256 == f"of the {which}"
    assert [each.version for each in store.versions("digits-flow")] == [1]


def test_a_restored_model_has_its_calibration_again(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    made = {"calibration": tmp_path / "made"}
    made["calibration"].mkdir()
    (made["calibration"] / "calibration.json").write_text("{}")
    version = cases.register(store, bundle, attachments=made)
    beside = run_of(store, version) / "model/data/calibration/calibration.json"
    assert beside.is_file()
    remove_model(run_of(store, version))
    assert not beside.exists() and cases.register(store, bundle, attachments=made).ref == version.ref
    assert beside.is_file()


class Killed(BaseException):
    """No code of ours catches it."""


@pytest.mark.parametrize(("lost", "moments"), [(False, (1, 3, 5)), (True, (1, 4, 5))])
def test_half_replaced_lineage_is_replaced_by_the_next_registration(
    store: Tracking, bundle: Path, tmp_path: Path, lost: bool, moments: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean commit makes the same version, or its files were lost: the replacement stops between tags and files, and is repeated."""
    from mlflow import MlflowClient

    for name in ("dvc.lock", "params.yaml"):
        (tmp_path / name).write_text("old")
    files = {name: tmp_path / name for name in ("dvc.lock", "params.yaml")}
    old = VersionTags(dirty="false" if lost else "true", commit="old", params_sha256="old", dvc_lock_sha256="old")
    new = VersionTags(dirty="false", commit="new", params_sha256="new", dvc_lock_sha256="new")
    for breaks_at in moments:  # number of writes before the failure
        (tmp_path / "dvc.lock").write_text("old")
        name = f"m{breaks_at}"
        trained = cases.TrainedModel.read(bundle / "training.json")
        version = store.register(bundle, trained, name, None, old, files, str)
        if lost:
            remove_run_folder(run_of(store, version))
        (tmp_path / "dvc.lock").write_text("new")
        writes_left = [breaks_at]
        with monkeypatch.context() as patch:
            for method in ("set_model_version_tag", "log_artifact"):
                patch.setattr(MlflowClient, method, fail_after(getattr(MlflowClient, method), writes_left))
            with pytest.raises(Killed):
                store.register(bundle, trained, name, None, new, files, str)
        complete = store.register(bundle, trained, name, None, new, files, str)
        assert (complete.dirty, complete.commit, complete.tags.dvc_lock_sha256) == (False, "new", "new"), breaks_at
        assert store.attachment(complete, "dvc.lock", tmp_path / "kept" / name).read_text() == "new"


def fail_after(real: Any, writes_left: list[int]) -> Any:
    def write(*arguments: Any) -> Any:
        if not writes_left[0]:
            raise Killed
        writes_left[0] -= 1
        return real(*arguments)

    return write


def test_the_same_weights_with_another_record_replace_a_lost_model(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    version = cases.register(store, bundle)
    remove_model(run_of(store, version))
    (bundle / "curve.csv").write_text("step,loss,more\n")
    manifest.seal(bundle)
    again = cases.register(store, bundle)
    assert again.ref == version.ref and again.tags.manifest_sha256 != version.tags.manifest_sha256
    assert (store.fetch(again, tmp_path / "got") / "curve.csv").read_text() == "step,loss,more\n"


def test_a_foreign_file_in_the_store_is_named(store: Tracking, bundle: Path) -> None:
    version = cases.register(store, bundle)
    (run_of(store, version) / "model" / "evil.py").write_text("raise SystemExit")
    with pytest.raises(IntegrityError, match=rf"other bytes than were uploaded to run {version.run_id} \(evil.py\)"):
        cases.register(store, bundle)


def test_a_deleted_run_is_restored_by_the_next_registration(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    version = cases.register(store, bundle)
    client(store).delete_run(version.run_id)
    assert cases.register(store, bundle).ref == version.ref
    assert client(store).get_run(version.run_id).info.lifecycle_stage == "active"
    store.fetch(version, tmp_path / "got")


def test_a_purged_run_with_lost_files_is_an_error_that_names_the_repair(store: Tracking, bundle: Path, tmp_path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    version = cases.register(store, bundle)
    run_folder = run_of(store, version)
    client(store).delete_run(version.run_id)
    SqlAlchemyStore(store.uri, str(tmp_path / "unused"))._hard_delete_run(version.run_id)  # as `mlflow gc` does
    assert cases.register(store, bundle).ref == version.ref  # its files still exist
    remove_run_folder(run_folder)
    with pytest.raises(IntegrityError, match="delete the version in MLflow and run again"):
        cases.register(store, bundle)
    client(store).delete_model_version(version.name, str(version.version))
    store.fetch(cases.register(store, bundle), tmp_path / "got")


def test_a_run_left_open_after_its_registration_is_closed(store: Tracking, bundle: Path) -> None:
    run_id = store.start_run("digits-flow", {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracking, "end_run", lambda *_: None)
        version = cases.register(store, bundle, run_id)
    assert client(store).get_run(version.run_id).info.status == "RUNNING"
    cases.register(store, bundle)
    assert client(store).get_run(version.run_id).info.status == "FINISHED"
