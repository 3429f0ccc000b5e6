"""Flipped bits and truncated files in the store of registered models: each is found before the model is loaded."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from remint.errors import IntegrityError
from remint.models.bundle import load_model
from remint.stores.mlflow import ModelVersion, Tracking
from tests.support import registry_cases as cases
from tests.support.trials import Trials


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Tracking:
    shutil.copytree(empty, tmp_path / "home")
    return cases.tracking(tmp_path / "home")


@pytest.fixture
def version(store: Tracking, tmp_path: Path) -> ModelVersion:
    cases.make_bundle(tmp_path / "bundle")
    return cases.register(store, tmp_path / "bundle")


def version_files(store: Tracking, version: ModelVersion) -> list[Path]:
    """Return every file of a registered version: weights, records, manifest, and the files of MLflow."""
    folder = Path(store._client.get_run(version.run_id).info.artifact_uri) / "model"
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {"weights.safetensors", "manifest.json", "training.json", "samples.safetensors", "MLmodel"} <= {p.name for p in found}
    return found


def flip_bit(content: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(8 * len(content))
    damaged = bytearray(content)
    damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)


def truncate(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))]


def is_refused(store: Tracking, version: ModelVersion, to: Path) -> bool:
    """Return whether the version cannot be fetched, and no file of it is left at the target."""
    try:
        store.fetch(version, to)
    except IntegrityError as error:
        assert len(str(error).splitlines()) == 1
        return not to.exists()
    return False


@pytest.mark.case(18)
def test_a_flipped_bit_in_a_registered_model_is_found(
    store: Tracking, version: ModelVersion, trials: Trials, tmp_path: Path
) -> None:
    damage_each(store, version, trials, tmp_path, short=15, full=500)


@pytest.mark.case(19)
def test_a_registered_model_that_was_cut_short_is_found(
    store: Tracking, version: ModelVersion, trials: Trials, tmp_path: Path
) -> None:
    damage_each(store, version, trials, tmp_path, short=10, full=500)


def damage_each(store: Tracking, version: ModelVersion, trials: Trials, tmp_path: Path, short: int, full: int) -> None:
    damage = flip_bit if trials.case == 18 else truncate
    found = version_files(store, version)
    original = {path: path.read_bytes() for path in found}
    for trial in trials(short, full):
        path = trial.random.choice(found)
        path.write_bytes(damage(original[path], trial.random))
        assert is_refused(store, version, tmp_path / "got"), f"{path.name} was fetched though it was spoilt"
        path.write_bytes(original[path])
        trial.note(found=1, loaded=0)
    store.fetch(version, tmp_path / "got")


@pytest.mark.parametrize("case", [18, 19])
def test_a_damaged_bundle_on_this_machine_is_not_loaded(
    store: Tracking, version: ModelVersion, tmp_path: Path, case: int
) -> None:
    """A fetched bundle is verified again each time, also by the loader, which MLflow calls directly."""
    damage, dice = flip_bit if case == 18 else truncate, random.Random(case)
    folder = store.fetch(version, tmp_path / "got")
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        path.write_bytes(damage(original, dice))
        with pytest.raises(IntegrityError):
            load_model(folder)
        path.write_bytes(original)
    (folder / "weights.safetensors").write_bytes(b"")
    store.fetch(version, folder)  # it is fetched again
    load_model(folder)
