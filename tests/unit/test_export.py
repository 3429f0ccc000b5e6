"""Exported graphs: their values, the free number of examples, and methods that have no graph."""

from __future__ import annotations

import resource
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remint.errors import RemintError, SettingsError, StorageError, UserError
from remint.models import probe
from remint.models.contract import standard_normal
from remint.serving.exporting import export as exporting
from remint.serving.exporting import operators
from remint.serving.exporting.export import METHODS, export
from remint.serving.model import ServedModel
from tests.support.models_cases import CASES, Case

Array = np.ndarray[Any, Any]

QUICK = [
    ("gan", "sample", ".onnx"),
    ("gan", "decode", ".pt2"),
    ("vae-residual", "encode", ".onnx"),
    ("flow-affine-table", "encode", ".onnx"),
]
ALL = [(name, method, suffix) for name in CASES for method in METHODS for suffix in (".pt2", ".onnx")]


def served(name: str) -> ServedModel:
    case = CASES[name]
    return ServedModel(case.build().float().requires_grad_(False), case.spec, ref="m/1", weights_sha256="a" * 64)


def run(path: Path, inputs: dict[str, Array]) -> Array:
    """Run a file as a person would who has no remint."""
    if path.suffix == ".pt2":
        found: Array = torch.export.load(path).module()(*map(torch.from_numpy, inputs.values())).numpy()
        return found
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    assert [each.name for each in session.get_inputs()] == list(inputs)
    return np.asarray(session.run(["output"], inputs)[0])


def fresh_inputs(case: Case, model: Any, method: str, count: int) -> dict[str, Array]:
    """Return inputs that the export has not seen."""
    inputs: dict[str, Array] = {}
    if method in ("encode", "log_prob", "elbo"):
        drawn = probe.compute(model, case.spec, 7, count)
        inputs["x"] = np.array(drawn["samples"])
    if method in exporting.NOISE:
        size = getattr(model, exporting.NOISE[method])
        inputs["z" if method == "decode" else "noise"] = standard_normal((count, size), "fresh").numpy()
    y = case.y(count)
    return inputs | ({} if y is None else {"y": y.numpy()})


def check(name: str, method: str, suffix: str, folder: Path) -> None:
    model = served(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = model.export(folder / f"m{suffix}", method)
    assert (made.model, made.method, made.compared) == ("m/1", method, probe.COUNT)
    assert [path.name for path in folder.iterdir()] == [f"m{suffix}"]
    content = (folder / f"m{suffix}").read_bytes()
    assert str(folder).encode() not in content and str(Path(exporting.__file__).parent).encode() not in content
    for count in (1, 5, 33):
        inputs = fresh_inputs(CASES[name], model.model, method, count)
        assert list(inputs) == list(made.inputs)
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        if method == "elbo":
            tensors[1] = tensors[1].unsqueeze(0)
        with torch.no_grad():
            expected = getattr(model.model, method)(*tensors)
        found = run(folder / f"m{suffix}", inputs)
        expected_N = (expected[0] if method == "elbo" else expected).numpy()
        assert probe.difference({method: expected_N}, {method: found}, exact=False) is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "suffix"), QUICK)
def test_a_graph_gives_what_the_model_gives_for_any_number_of_examples(
    name: str, method: str, suffix: str, tmp_path: Path
) -> None:
    check(name, method, suffix, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(("name", "method", "suffix"), ALL)
def test_every_method_of_every_family_is_exported_or_named(name: str, method: str, suffix: str, tmp_path: Path) -> None:
    try:
        check(name, method, suffix, tmp_path)
    except UserError as error:
        assert list(tmp_path.iterdir()) == []
        if METHODS[method] not in CASES[name].settings.can:
            assert "this model's family has none" in str(error)
        elif CASES[name].family in ("gan", "flow_matching") and method == "encode":
            assert "encodes by a search" in str(error)
        elif CASES[name].family == "flow_matching" and method == "log_prob":
            assert "differentiates its network for a density" in str(error)
        else:
            raise


def refused(match: str, kind: type[RemintError], name: str, output: Path, method: str = "sample") -> None:
    with pytest.raises(kind, match=match):
        export(served(name), output, method)
    assert not output.exists() and list(output.parent.glob(".*")) == []


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    refused("give a name that ends in .onnx or .pt2", SettingsError, "gan", tmp_path / "m.pt")
    refused("the folder .* does not exist", SettingsError, "gan", tmp_path / "none/m.pt2")
    refused("--method paint: expected sample, decode, encode, log_prob, elbo", SettingsError, "gan", tmp_path / "m.pt2", "paint")
    refused(
        "--method elbo: this model's family has none: use a model of the family vae or vaegan",
        UserError,
        "gan",
        tmp_path / "m.pt2",
        "elbo",
    )
    refused("encodes by a search, which is no graph", UserError, "gan", tmp_path / "m.pt2", "encode")
    refused("differentiates its network for a density", UserError, "flow_matching", tmp_path / "m.pt2", "log_prob")


@pytest.mark.slow
def test_an_operator_without_a_counterpart_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "DECOMPOSITIONS", {})
    match = "encode cannot be exported as ONNX: it uses ndtri, which has no counterpart there"
    refused(match, UserError, "flow-affine-table", tmp_path / "m.onnx", "encode")


def test_a_graph_with_other_values_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: exporting._Method, inputs: dict[str, torch.Tensor], path: Path) -> exporting.Run:
        path.write_bytes(b"graph")
        return lambda *some: graph(*some) + 0.01

    monkeypatch.setitem(exporting._WRITERS, ".pt2", wrong)
    refused(
        "decode as torch.export differs from the model: values of decode differ",
        UserError,
        "gan-table",
        tmp_path / "m.pt2",
        "decode",
    )


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    refused(r"ONNX needs the package onnxruntime: pip install 'remint\[export\]'", UserError, "gan", tmp_path / "m.onnx")


def test_an_older_file_stays_if_the_export_fails(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"older")
    with pytest.raises(UserError):
        export(served("gan"), tmp_path / "m.onnx", "encode")
    assert (tmp_path / "m.onnx").read_bytes() == b"older"


def test_a_file_that_does_not_fit_on_the_disk_is_one_line(tmp_path: Path) -> None:
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(StorageError, match=r"no room to write .*m\.pt2"):
            export(served("gan"), tmp_path / "m.pt2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    assert not any(tmp_path.iterdir())
