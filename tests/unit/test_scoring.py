"""Scores with p-values of a served model, and the file of its calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from remint.data import rows
from remint.errors import DataError, IntegrityError, SettingsError, UserError
from remint.models import posterior
from remint.models.bundle import save_model
from remint.records import DataSpec, TrainedModel
from remint.runtime import manifest
from remint.serving.anomalies import calibration, shift
from remint.serving.model import ServedModel
from tests.support.calibrated_cases import calibrated_model, dataset_of, split_of
from tests.support.models_cases import CASES, MIXED, Case, examples

VAE, TABLE = CASES["vae"], CASES["vae-table"]


@pytest.fixture(scope="module")
def images() -> ServedModel:
    return calibrated_model(VAE, 200)


@pytest.mark.parametrize("name", CASES)
def test_every_family_scores_by_every_name_it_has(name: str) -> None:
    case = CASES[name]
    model, x = calibrated_model(case), split_of(case, 12, 9).x_NX
    assert model.calibration is not None
    data = rows.to_table(case.spec, x) if case.spec.is_table else x
    for by in (*model.calibration().about.scores, "combined"):
        found = model.score(data, by=by)
        assert found.score.shape == found.p_value.shape == found.flagged.shape == (12,)
        assert np.isfinite(found.score).all() and found.p_value.min() >= 1 / 41 and found.p_value.max() <= 1


def test_a_p_value_depends_on_the_example_and_the_seed_alone(images: ServedModel) -> None:
    x = split_of(VAE, 70, 8).x_NX
    order = np.random.default_rng(0).permutation(70)
    together, shuffled, alone = images.score(x), images.score(x[order]), images.score(x[:1])
    assert np.array_equal(shuffled.p_value, together.p_value[order]) and alone.p_value[0] == together.p_value[0]
    again = images.score(np.concatenate([x, x]))
    assert np.array_equal(again.p_value[:70], again.p_value[70:])


def test_false_alarms_come_at_the_rate_that_was_asked_for(images: ServedModel) -> None:
    found = images.score(split_of(VAE, 600, 11).x_NX, false_alarm_rate=0.1)
    spread = (0.1 * 0.9 * (1 / 600 + 1 / 201)) ** 0.5  # of the rate over batches and calibration splits
    assert abs(found.flagged.mean() - 0.1) < 4 * spread
    assert found.summary.flagged == found.flagged.sum() and found.summary.fdr is None


def test_equal_scores_are_placed_at_random_by_the_seed() -> None:
    model = calibrated_model(VAE, 99)
    assert model.calibration is not None
    made = model.calibration()
    equal = replace(made, part={name: torch.zeros_like(each) for name, each in made.part.items()})
    x = split_of(VAE, 400, 12).x_NX
    scorer_parts = {name: torch.zeros(400, dtype=torch.float64) for name in made.part}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "part_scores", lambda *_, **__: scorer_parts)
        p = {seed: replace(model, calibration=lambda: equal).score(x, seed=seed).p_value for seed in (0, 1)}
    assert not np.array_equal(p[0], p[1])
    for each in p.values():
        assert each.min() >= 0.01 and abs(each.mean() - 0.505) < 4 * (1 / 12 / 400) ** 0.5


def test_a_far_example_has_the_smallest_p_value_and_is_flagged(images: ServedModel) -> None:
    x = split_of(VAE, 20, 13).x_NX.copy()
    x[3] = np.where(np.arange(24).reshape(2, 3, 4) % 2, 16, 0)
    found = images.score(x, by="neighbours", fdr=0.2)
    assert found.p_value[3] == 1 / 201 and found.flagged[3] and found.summary.false_alarm_rate is None


def test_a_batch_that_cannot_reach_the_fdr_says_so(images: ServedModel) -> None:
    x = split_of(VAE, 100, 14).x_NX
    assert "fewer than 5 anomalies in a batch of 100 cannot be flagged" in images.score(x, fdr=0.1).summary.reach
    assert "nothing can be flagged at an FDR of 0.001" in images.score(x, fdr=0.001).summary.reach
    assert "nothing can be flagged at 0.001" in images.score(x, false_alarm_rate=0.001).summary.reach
    assert images.score(x[:20], fdr=0.1).summary.reach == "" == images.score(x).summary.reach


def test_shifted_input_is_named_and_other_input_is_not() -> None:
    model, x = calibrated_model(TABLE, 200), split_of(TABLE, 200, 21).x_NX
    assert model.score(rows.to_table(MIXED, x)).summary.shifts == ()
    shifted = x.copy()
    shifted[:, 0] += 1.0
    found = model.score(rows.to_table(MIXED, shifted)).summary
    assert "age" in {each.of for each in found.shifts} and "colour" not in {each.of for each in found.shifts}
    assert "differs from the calibration data: " in found.notes()[0]


def test_the_tests_of_a_shift_keep_their_level() -> None:
    """Samples of one distribution: at level 1% at most about 1% of 300 batches are named (3 standard deviations above)."""
    rng, named = np.random.default_rng(0), 0
    gaps = MIXED.model_copy(update={"columns": MIXED.columns})
    for _ in range(300):
        old, new = (_mixed_rows(rng, count, gaps) for count in (150, 80))
        named += bool(shift.shifts(rng.normal(size=150), rng.normal(size=80), old, new, gaps))
    assert named <= 300 * 0.01 + 3 * (300 * 0.01 * 0.99) ** 0.5


def _mixed_rows(rng: np.random.Generator, count: int, spec: DataSpec) -> np.ndarray:
    x = np.stack([rng.normal(size=count), rng.integers(3, size=count), rng.normal(size=count), rng.integers(2, size=count)], 1)
    x[rng.random((count, 4)) < [0, 0, 0.2, 0.2]] = np.nan
    return x.astype(np.float32)


def test_errors_are_one_line(images: ServedModel) -> None:
    x = split_of(VAE, 5, 16).x_NX
    with pytest.raises(UserError, match="m/1 has no calibration, which scores need"):
        replace(images, calibration=None).score(x)
    with pytest.raises(SettingsError, match="score 'neighbors' of m/1.*neighbours"):
        images.score(x, by="neighbors")
    with pytest.raises(SettingsError, match=r"fdr 1.5: expected a number above 0 and below 1"):
        images.score(x, fdr=1.5)
    no_split = replace(dataset_of(VAE), calibration=None)
    with pytest.raises(DataError, match=r"d has no calibration split: set datasets.d.split.calibration"):
        calibration.measure(images.model, "key", no_split)


def save_bundle(folder: Path, case: Case) -> TrainedModel:
    weights = save_model(folder, case.build().float(), case.family, case.settings, case.spec)
    about = {"pipeline": "p", "dataset": dataset_of(case).version.digest, "spec": case.spec, "recipe": {}, "steps": 1}
    trained = TrainedModel(**about, weights_sha256=weights, best_step=1, validation=None, world_size=1, fingerprint={})
    trained.write(folder / "training.json")
    manifest.seal(folder)
    return trained


@pytest.fixture
def few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well a chain of imputation mixes is not tested here."""
    monkeypatch.setattr(posterior, "ANNEALED", 1)
    monkeypatch.setattr(posterior, "SETTLED", 1)


@pytest.mark.usefixtures("few_sweeps")
def test_a_calibration_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    trained = save_bundle(tmp_path / "bundle", TABLE)
    for name in ("a", "b"):
        calibration.calibrate(tmp_path / "bundle", dataset_of(TABLE), tmp_path / name)
    sha256 = manifest.sha256_file(tmp_path / "a" / manifest.NAME)
    assert sha256 == manifest.sha256_file(tmp_path / "b" / manifest.NAME)
    read, made = calibration.read(tmp_path / "a", trained.key), calibrated_model(TABLE).calibration
    assert made is not None and read.about.calibrated == 40
    assert read.about.imputation is not None and read.about.imputation.examples == 40
    for name, each in made().part.items():
        torch.testing.assert_close(read.part[name], each)  # a loaded model has its buffers in double precision


@pytest.mark.usefixtures("few_sweeps")
def test_a_damaged_or_foreign_calibration_is_refused(tmp_path: Path) -> None:
    trained, folder = save_bundle(tmp_path / "bundle", TABLE), tmp_path / "made"
    calibration.calibrate(tmp_path / "bundle", dataset_of(TABLE), folder)
    with pytest.raises(IntegrityError, match="another model"):
        calibration.read(folder, "0" * 64)
    content = bytearray((folder / calibration.TENSORS).read_bytes())
    content[-9] ^= 1
    (folder / calibration.TENSORS).write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        calibration.read(folder, trained.key)
    other = dataset_of(TABLE, calibrated=41)
    with pytest.raises(DataError, match="was trained on another version of d"):
        calibration.calibrate(tmp_path / "bundle", other, tmp_path / "other")


def test_an_explanation_is_written_to_the_name_of_a_folder_that_exists(images: ServedModel, tmp_path: Path) -> None:
    x = examples(images.spec, 3).numpy()
    for wrong in (tmp_path / "none" / "why.png", tmp_path / "why.jpg"):
        with pytest.raises(SettingsError, match=r"does not exist|is a picture"):
            images.score(x, explain=wrong)
    assert not any(tmp_path.iterdir())
    images.score(x, explain=str(tmp_path / "why.png"))
    assert [each.name for each in tmp_path.iterdir()] == ["why.png"]
