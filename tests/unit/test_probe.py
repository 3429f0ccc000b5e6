"""Recorded samples of a bundle: every family reproduces them, and differences are reported."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from remint.distributed.machine import deterministic, fingerprint
from remint.errors import IntegrityError
from remint.models import bundle as bundles
from remint.models import probe
from remint.models.contract import Model
from remint.records import Column, DataSpec
from remint.runtime import manifest
from remint.runtime.events import EVENTS
from remint.serving import fresh
from tests.support import registry_cases
from tests.support.models_cases import CASES, MIXED

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CASES)
def test_every_family_reproduces_its_recorded_samples(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    bundles.save_model(tmp_path, case.build().float(), case.family, case.settings, case.spec)
    with deterministic(1):
        probe.record(tmp_path, fingerprint(CPU, 1, 1))
        manifest.seal(tmp_path)
        recorded = probe.read(tmp_path)
        assert recorded is not None and recorded.machine == probe.with_block_size(fingerprint(CPU, 1, 1))
        model = bundles.load_model(tmp_path)
        torch.manual_seed(7)  # it draws nothing
        again = probe.compute(model, case.spec, recorded.seed, recorded.count)
    assert recorded.count == 16 and set(recorded.arrays) == {"samples"} | ({"class"} if case.settings.conditional else set())
    assert probe.difference(recorded.arrays, again, exact=True) is None
    assert probe.nonfinite_values(model, case.spec, again) is None
    assert len(np.unique(again["samples"].reshape(16, -1), axis=0)) > 1
    other = probe.compute(model, case.spec, recorded.seed + 1, recorded.count)
    assert probe.difference(recorded.arrays, other, exact=False) is not None


def test_the_fingerprint_includes_the_interpreter() -> None:
    """Torch has a build for each interpreter, so its last bits may differ."""
    assert fingerprint(CPU, 1, 1)["interpreter"] == f"CPython {sysconfig.get_python_version()}"


class Dense(Model):
    """Model with a density, with a bound, or with neither; it cannot sample."""

    def __init__(self, ability: str) -> None:
        super().__init__()
        setattr(self, {"log_prob": "density_noise", "elbo": "latent_noise"}.get(ability, "nothing"), 2)
        if ability != "none":
            setattr(self, ability, self.of_noise)

    def of_noise(self, x_BX: Tensor, noise: Tensor, y_B: Tensor | None = None) -> Tensor:
        assert x_BX.shape == (5, 1, 4, 4) and not x_BX.any()
        return noise.sum(-1)


@pytest.mark.parametrize("ability", ["log_prob", "elbo", "none"])
def test_a_family_that_cannot_sample_records_likelihoods(ability: str) -> None:
    model = Dense(ability)
    arrays = probe.compute(model, registry_cases.SPEC, seed=0, count=5)
    assert {name: array.shape for name, array in arrays.items()} == ({} if ability == "none" else {ability: (5,)})
    assert probe.nonfinite_values(model, registry_cases.SPEC, arrays) is None


def test_fewer_large_images_are_recorded() -> None:
    assert [probe.sample_count(DataSpec(shape=(3, side, side), levels=256)) for side in (32, 256, 2048)] == [16, 5, 1]


def test_nonfinite_outputs_are_named() -> None:
    model = Dense("none")
    holes = MIXED.model_copy(update={"columns": (Column(name="a"), Column(name="b", missing=True)), "shape": (2,)})
    rows = np.array([[0.0, np.nan], [1.0, 2.0]], np.float32)
    assert probe.nonfinite_values(model, holes, {"samples": rows}) is None
    assert probe.nonfinite_values(model, holes, {"samples": rows[:, ::-1].copy()}) == "1 of 4 values of samples are not finite"
    assert probe.nonfinite_values(model, holes, {"samples": np.array([[0.0, np.inf]])}) is not None
    model.bias = torch.nn.Parameter(torch.tensor([0.0, torch.nan]))
    assert probe.nonfinite_values(model, holes, {}) == "the weights bias contain values that are not finite"


def test_the_comparison_of_samples_is_exact_or_allows_rounding() -> None:
    image = np.full((16, 1, 10, 10), 3, np.uint8)
    near, far, many = image.copy(), image.copy(), image.copy()
    near.flat[:16] += 1
    far.flat[0] += 2
    many.flat[:17] -= 1
    for drawn, exact, same in (
        (image, True, True),
        (near, True, False),
        (near, False, True),
        (far, False, False),
        (many, False, False),
    ):
        assert (probe.difference({"samples": image}, {"samples": drawn}, exact=exact) is None) == same
    row = np.array([[1000.0, 0.0, np.nan]], np.float32)
    for change, same in ((0.09, True), (0.2, False)):
        assert (
            probe.difference({"samples": row}, {"samples": row + np.float32(change) * (row == 1000)}, exact=False) is None
        ) == same
    assert probe.difference({"samples": row}, {"samples": np.zeros_like(row)}, exact=False) is not None
    assert probe.difference({"samples": image}, {"samples": image[:3]}, exact=False) is not None
    assert probe.difference({"samples": image}, {}, exact=False) == "recorded: samples; drawn again: nothing"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    registry_cases.make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def events_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(EVENTS, str(tmp_path / "events"))
    return tmp_path / "events"


def test_a_bundle_without_recorded_samples_only_has_to_sample(bundle: Path, events_file: Path) -> None:
    (bundle / probe.FILE).unlink()
    manifest.seal(bundle)
    fresh._main(str(bundle))
    assert json.loads(events_file.read_text())["how"] == "loaded and drew finite samples; training recorded no samples to compare"


def test_on_another_machine_the_difference_is_reported(bundle: Path, events_file: Path) -> None:
    recorded = probe.read(bundle)
    assert recorded is not None
    elsewhere = {"seed": 0, "machine": {**recorded.machine, "processor": "another"}}
    (bundle / probe.FILE).write_bytes(probe.save(dict(recorded.arrays), {"about": probe.canonical(elsewhere)}))
    manifest.seal(bundle)
    fresh._main(str(bundle))
    assert json.loads(events_file.read_text())["how"].startswith(
        "16 samples as recorded at training, within 1% of pixels by one level"
    )


def test_an_invalid_record_is_reported_as_damage(bundle: Path) -> None:
    for content in (b"", b"not safetensors", probe.save({}, {"about": "[]"}), probe.save({})):
        (bundle / probe.FILE).write_bytes(content)
        with pytest.raises(IntegrityError, match="does not hold recorded samples"):
            probe.read(bundle)


@pytest.mark.slow
def test_the_checking_process_does_not_import_mlflow() -> None:
    """The import would take as long as the check."""
    program = "import sys; from remint.serving import fresh; from remint.models import probe; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not {"mlflow", "prefect", "dvc", "boto3", "pandas", "scipy"} & set(loaded)
