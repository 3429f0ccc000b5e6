"""Feature programs from the user: verified before they are opened, refused with a remedy."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from remint.data.arrays import Dataset
from remint.errors import DataError, IntegrityError
from remint.evaluation import extractors, features, program
from remint.records import Column, DataSpec
from remint.settings.catalogue import FEATURES
from remint.settings.judging import EvaluationSettings

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = DataSpec(shape=(1, 8, 8), levels=17)
ROWS = DataSpec(shape=(3,), columns=tuple(Column(name=name) for name in "abc"))


class Network(nn.Module):
    """Nonlinear projection of the flattened example."""

    def __init__(self, dims: int, features: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(dims, features, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1).float() / 17 @ self.weight)


class Pixels(nn.Module):
    """Network whose features are integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.float().flatten(1), x


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.float() + y.float()).flatten(1)


def exported(network: nn.Module, *examples: Tensor, dynamic: bool = True) -> bytes:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in examples) if dynamic else None
    made = torch.export.export(network.eval(), examples, dynamic_shapes=shapes)
    stream = io.BytesIO()
    torch.export.save(made, stream)
    return stream.getvalue()


def example(spec: DataSpec) -> Tensor:
    return torch.zeros((2, *spec.shape), dtype=torch.float32 if spec.is_table else torch.uint8)


def of_images() -> bytes:
    return exported(Network(64), example(IMAGES))


@pytest.mark.parametrize("spec", [IMAGES, ROWS])
@pytest.mark.parametrize("count", [1, 64, 100])
def test_features_equal_the_output_of_the_network(spec: DataSpec, count: int) -> None:
    extractor = program.load(exported(Network(spec.dims), example(spec)), "abc", spec, "here")
    assert (extractor.name, extractor.sha256) == ("program", "abc")
    x_NX = np.random.default_rng(0).integers(17, size=(count, *spec.shape)).astype(np.float32 if spec.is_table else np.uint8)
    expected = Network(spec.dims)(torch.from_numpy(x_NX)).detach().numpy()
    f_ND = extractor(x_NX)
    assert f_ND.dtype == np.float64
    np.testing.assert_allclose(f_ND, expected, rtol=0.0, atol=1e-6)
    np.testing.assert_array_equal(extractor(x_NX[:1]), f_ND[:1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"PK nothing of the kind", "is not a torch.export program"),
        (lambda: exported(Network(64), example(IMAGES), dynamic=False), "takes batches of 2 only"),
        (lambda: exported(Network(64), example(IMAGES).float()), r"takes float32 \(B, 1, 8, 8\)"),
        (lambda: exported(Network(27), torch.zeros(2, 3, 3, 3, dtype=torch.uint8)), r"takes uint8 \(B, 3, 3, 3\)"),
        (lambda: exported(Two(), example(IMAGES), example(IMAGES)), "takes 2 arguments"),
        (lambda: exported(Pixels(), example(IMAGES)), r"returns uint8 \(64, 64\) of 64 examples, expected features"),
        (lambda: exported(Pair(), example(IMAGES)), "returns a tuple of 64 examples"),
    ],
)
def test_a_program_of_another_format_is_refused_with_export_instructions(content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        program.load(content(), "abc", IMAGES, "here")
    how = r"export it with torch.export.export(model.eval(), (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),), dynamic_shapes="
    assert str(caught.value).startswith("here: ") and how in str(caught.value) and "\n" not in str(caught.value)


def load(folder: Path, digits: Dataset, metrics: list[str], **files: dict[str, str]) -> Any:
    return extractors.load(folder / "features", digits.spec, EvaluationSettings.model_validate(files), metrics, "digits-gan")


@pytest.fixture(scope="module")
def folder(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with features of the digits, and with the program that computes them as net.pt2."""
    made = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "STEPS", 1)
        features.fit(digits, made / "features")
    (made / "net.pt2").write_bytes(of_images())
    return made


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_programs_that_metrics_need_are_loaded(folder: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_SOURCES", str(folder))
    files = {"program": {"path": "net.pt2", "sha256": digest(folder / "net.pt2")}, "inception": {"path": "nowhere.pth"}}
    assert set(load(folder, digits, ["fd_domain", "nll"], **files)) == {"domain"}
    found = load(folder, digits, ["fd_program", "kid_program"], **files)
    assert set(found) == {"program"} and set(found) <= set(FEATURES)
    assert all(extractor.name == name for name, extractor in found.items())
    assert found["program"](digits.held_out.x_NX[:3]).shape == (3, 4)


def test_a_file_that_is_not_the_pinned_one_is_never_opened(
    folder: Path, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        pytest.fail("torch opened it")

    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr(torch.export, "load", opened)
    other = tmp_path / "other.pt2"
    other.write_bytes((folder / "net.pt2").read_bytes() + b" ")
    pinned = {"path": str(other), "sha256": digest(folder / "net.pt2")}
    words = rf"evaluation.program.path: .*other.pt2: its SHA-256 is {digest(other)}, expected {pinned['sha256']}: the file was not opened"
    with pytest.raises(IntegrityError, match=words):
        load(folder, digits, ["fd_program"], program=pinned)
    with pytest.raises(IntegrityError, match="expected 6726825d0af5f729.*the file was not opened"):  # of the published file
        load(folder, digits, ["fid"], inception={"path": str(other)})


def test_a_missing_file_is_reported_with_how_to_get_it(folder: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_HOME", str(folder / "home"))
    words = "evaluation.inception.path: weights.pth: .*weights-inception-2015-12-05-6726825d.pth, as torch-fidelity publishes it"
    with pytest.raises(DataError, match=words):
        load(folder, digits, ["fid"], inception={"path": "weights.pth"})
    remote = {"path": "s3://bucket/weights.pth"}
    with pytest.raises(DataError, match=r"s3://bucket/weights.pth: it was not fetched: use `remint run`, which fetches it"):
        load(folder, digits, ["fid"], inception=remote)


def test_a_fetched_file_is_found_by_its_digest(
    folder: Path, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMINT_HOME", str(tmp_path))
    sha256 = digest(folder / "net.pt2")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / sha256).write_bytes((folder / "net.pt2").read_bytes())
    remote = {"path": "s3://bucket/net.pt2", "sha256": sha256}
    assert load(folder, digits, ["fd_program"], program=remote)["program"].sha256 == sha256
