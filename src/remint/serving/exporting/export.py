"""Export of one method of a model as a graph, which is compared with the model's own output before the file is kept.

    method    inputs, for N examples                 output
    sample    noise (N, sample_noise)                x (N, X)
    decode    z (N, Z)                               x (N, X)
    encode    x (N, X)                               z (N, Z)
    log_prob  x (N, X), noise (N, density_noise)     nats (N,)
    elbo      x (N, X), noise (N, latent_noise)      nats (N,), of one importance sample

A conditional model takes the classes y, int64 (N,), as the last input. Noise and z are float32. N is free. A file.onnx runs in
ONNX Runtime, a file.pt2 in ``torch.export.load``; both work without remint.

Shapes: N examples, X the axes of one example, Z latent.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from remint.errors import SettingsError, UserError
from remint.models import probe
from remint.models.contract import Model, standard_normal
from remint.records import DataSpec, Record
from remint.runtime import scratch
from remint.runtime.manifest import NO_ROOM, sha256_file
from remint.serving import outputs
from remint.serving.exporting import operators
from remint.serving.model import ServedModel
from remint.settings.recipe import MODEL_SETTINGS

METHODS = {
    "sample": "sample",
    "decode": "latent",
    "encode": "latent",
    "log_prob": "log_prob",
    "elbo": "elbo",
}  # and what it needs
FORMATS = {".onnx": "ONNX", ".pt2": "torch.export"}
NOISE = {"sample": "sample_noise", "decode": "latent_size", "log_prob": "density_noise", "elbo": "latent_noise"}

Run = Callable[..., Tensor]


class Exported(Record):
    """A kept file."""

    model: str  # NAME/7
    weights_sha256: str
    method: str
    path: str
    sha256: str
    inputs: dict[str, str]  # name: type and shape
    compared: int  # examples whose output was compared


def export(served: ServedModel, output: Path, method: str = "sample") -> Exported:
    """Write ``output``, a graph of the model's ``method``.

    Raises SettingsError if the file's name or the method is not known; UserError if the family lacks the method, the method
    cannot be exported, its graph gives other values than the model, or a package is missing. Nothing is then written.
    """
    outputs.check(output, tuple(FORMATS), "a graph: give a name that ends in .onnx or .pt2")
    _check_method(served.model, method)
    recorded = None if served.folder is None else probe.read(served.folder)
    inputs = _inputs(served.model, served.spec, recorded, method)
    graph = _Method(served.model, method).eval()
    with outputs.disk_errors(output), scratch.folder(beside=output) as folder:
        temporary = folder / output.name  # a .pt2 file has its own name inside
        with _quiet(), torch.no_grad():
            run = _WRITERS[output.suffix](graph, inputs, temporary)
        if problem := _difference(graph, run, inputs):
            raise UserError(f"{method} as {FORMATS[output.suffix]} differs from the model: {problem}: nothing was written")
        temporary.replace(output)
    described = {name: f"{str(tensor.dtype)[6:]} {('N', *tensor.shape[1:])}".replace("'", "") for name, tensor in inputs.items()}
    return Exported(
        model=served.ref,
        weights_sha256=served.weights_sha256,
        method=method,
        path=str(output),
        sha256=sha256_file(output),
        inputs=described,
        compared=_count(inputs),
    )


def _check_method(model: Model, method: str) -> None:
    if method not in METHODS:
        raise SettingsError(f"--method {method}: expected {', '.join(METHODS)}")
    if not hasattr(model, method):
        having = [name for name, kind in MODEL_SETTINGS.items() if METHODS[method] in kind.can]
        raise UserError(f"--method {method}: this model's family has none: use a model of the family {' or '.join(having)}")
    if method == "encode" and model.encodes_by_search:
        raise UserError("--method encode: this model's family encodes by a search, which is no graph: export another method")
    if method == "log_prob" and model.estimator:
        raise UserError(
            "--method log_prob: this model's family differentiates its network for a density, which is no graph: "
            "export another method"
        )


class _Method(nn.Module):
    """A method of a model as the forward pass of a module."""

    def __init__(self, model: Model, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.method == "elbo":
            x_BX, noise_BN, *y_B = inputs
            inputs = (x_BX, noise_BN.unsqueeze(0), *y_B)
        output: Tensor = getattr(self.model, self.method)(*inputs)
        return output[0] if self.method == "elbo" else output


def _inputs(model: Model, spec: DataSpec, recorded: probe.RecordedSamples | None, method: str) -> dict[str, Tensor]:
    """Return the inputs by name: the noise of the recorded samples, and the samples. At least two: a batch of one is special."""
    seed, count = (recorded.seed, recorded.count) if recorded else (probe.SEED, probe.sample_count(spec))
    count = max(2, count)
    inputs: dict[str, Tensor] = {}
    if method in ("encode", "log_prob", "elbo"):
        found = probe.compute(model, spec, seed, count).get("samples")
        inputs["x"] = torch.zeros(count, *spec.shape) if found is None else torch.from_numpy(np.array(found))
    if method in NOISE:
        size: int = getattr(model, NOISE[method])
        inputs["z" if method == "decode" else "noise"] = torch.stack(
            [standard_normal((size,), seed, index) for index in range(count)]
        )
    if model.conditional:
        inputs["y"] = torch.arange(count) % spec.classes
    return inputs


def _count(inputs: dict[str, Tensor]) -> int:
    return len(next(iter(inputs.values())))


def _difference(graph: _Method, run: Run, inputs: dict[str, Tensor]) -> str | None:
    """Describe how a graph's output differs from the model's, for all examples at once and for the first one alone."""
    for count in (_count(inputs), 1):
        some = [tensor[:count] for tensor in inputs.values()]
        with torch.inference_mode():
            expected, found = graph(*some).numpy(), run(*some).numpy()
        if problem := probe.difference({graph.method: expected}, {graph.method: found}, exact=False):
            return problem
    return None


def _write_pt2(graph: _Method, inputs: dict[str, Tensor], path: Path) -> Run:
    """Write a torch.export program, and return the function that runs the file."""
    content = io.BytesIO()  # torch itself would end the process where the disk is full
    torch.export.save(_program(graph, inputs), content)
    path.write_bytes(content.getbuffer())
    run: Run = torch.export.load(path).module()
    return run


def _write_onnx(graph: _Method, inputs: dict[str, Tensor], path: Path) -> Run:
    """Write an ONNX model, and return the function that runs the file."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install 'remint[export]'") from error
    program, names = _program(graph, inputs), list(inputs)
    with _named(graph.method, "ONNX"):
        program = program.run_decompositions(operators.DECOMPOSITIONS)
        torch.onnx.export(
            program, tuple(inputs.values()), path, input_names=names, output_names=["output"], external_data=False, verbose=False
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*some: Tensor) -> Tensor:
        fed = {name: tensor.numpy() for name, tensor in zip(names, some, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2}


def _program(graph: _Method, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with _named(graph.method, "a graph"):
        program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=(batch,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has paths of this machine
    return program


@contextmanager
def _named(method: str, form: str) -> Iterator[None]:
    """Raise UserError, in one line, in place of any error of an exporter but a full disk. They raise all kinds."""
    try:
        yield
    except Exception as error:
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__:
            causes.append(cause)
        if isinstance(causes[-1], OSError) and causes[-1].errno in NO_ROOM:
            raise causes[-1] from None
        text = "\n".join(map(str, causes))
        operator = re.search(r"(?:op='|torch\.ops\.)(?:aten|prims)\.(\w+)", text)
        lines = [line.strip() for line in str(causes[-1]).splitlines() if line.strip()]
        why = (
            f"it uses {operator[1]}, which has no counterpart there" if operator else lines[0] if lines else type(error).__name__
        )
        raise UserError(f"{method} cannot be exported as {form}: {why}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters from printing graphs and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
