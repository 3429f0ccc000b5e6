"""Features from a user's torch.export program, exported from any network.

Loading a program unpickles. So the SHA-256 of the file is verified before it is opened (extractors.py).

A program takes a block of examples with a dynamic batch size: images as stored, uint8 (B, C, H, W) with values
0 .. levels-1, or rows of a table, float32 (B, D). Resizing and scaling are part of the program. It returns floating-point
features f_BD. It gets blocks of one size, the last one filled up with zeros: the rounding of a feature then does not depend
on the number of examples.

Shapes: N examples, B block, X the axes of one example (C, H, W of an image, D of a table's row), D features.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from remint.errors import DataError
from remint.evaluation.features import Extractor
from remint.records import DataSpec

BLOCK = 64  # examples at a time

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ProgramExtractor(Extractor):
    """A map from examples to the features that the program returns."""

    where: str = ""

    @torch.no_grad()
    def __call__(self, x_NX: Array) -> Array:
        """Return the features f_ND, float64. Raises DataError if the program fails or returns anything else."""
        blocks = []
        for at in range(0, len(x_NX), BLOCK):
            x_BX = torch.from_numpy(np.array(x_NX[at : at + BLOCK]))
            full = torch.zeros(BLOCK, *x_BX.shape[1:], dtype=x_BX.dtype)
            full[: len(x_BX)] = x_BX
            blocks.append(_features(self.network, full, self.spec, self.where)[: len(x_BX)].double().cpu().numpy())
        f_ND: Array = np.concatenate(blocks)
        return f_ND


def load(content: bytes, sha256: str, spec: DataSpec, where: str) -> Extractor:
    """Return the extractor of a program.

    Args:
        content: bytes of a .pt2 file, verified by the caller.
        sha256: SHA-256 of ``content``.
        spec: spec of the examples.
        where: prefix of error messages.

    Raises DataError if it is not a program, or takes other examples, or has a fixed batch size.
    """
    try:
        program = torch.export.load(io.BytesIO(content))
    except Exception as error:  # an archive's reader and an unpickler may raise anything
        raise DataError(f"{where}: it is not a torch.export program ({type(error).__name__}): {_how(spec)}") from error
    inputs = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    tensors = [value for value in (values.get(str(name)) for name in inputs) if isinstance(value, Tensor)]
    if len(inputs) != 1 or len(tensors) != 1:
        raise DataError(f"{where}: the program takes {len(inputs)} arguments, expected one: {_how(spec)}")
    batch, *shape = tensors[0].shape
    if tensors[0].dtype != _dtype(spec) or tuple(shape) != spec.shape:
        raise DataError(f"{where}: the program takes {_text(tensors[0])}: {_how(spec)}")
    if not isinstance(batch, torch.SymInt):
        raise DataError(f"{where}: the program takes batches of {batch} only: {_how(spec)}")
    extractor = ProgramExtractor(program.module(), spec, sha256, "program", "by the program", where)
    _features(extractor.network, torch.zeros(BLOCK, *spec.shape, dtype=_dtype(spec)), spec, where)
    return extractor


def _features(network: nn.Module, x_BX: Tensor, spec: DataSpec, where: str) -> Tensor:
    try:
        with torch.no_grad():
            f_BD = network(x_BX)
    except Exception as error:  # a user's program may raise anything
        words = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: the program fails on {_text(x_BX)} ({type(error).__name__}: {words}): {_how(spec)}") from error
    if not isinstance(f_BD, Tensor) or f_BD.dim() != 2 or len(f_BD) != len(x_BX) or not f_BD.is_floating_point():
        returned = _text(f_BD) if isinstance(f_BD, Tensor) else f"a {type(f_BD).__name__}"
        raise DataError(
            f"{where}: the program returns {returned} of {len(x_BX)} examples, expected features (B, D): {_how(spec)}"
        )
    return f_BD


def _dtype(spec: DataSpec) -> torch.dtype:
    return torch.float32 if spec.is_table else torch.uint8


def _text(tensor: Tensor) -> str:
    sizes = ", ".join("B" if isinstance(size, torch.SymInt) else str(size) for size in tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')} ({sizes})"


def _how(spec: DataSpec) -> str:
    """Return the export instructions for a program of these examples."""
    sizes = ", ".join(map(str, (2, *spec.shape)))
    example = f"(torch.zeros({sizes}, dtype={_dtype(spec)}),)"
    return (
        f"export it with torch.export.export(model.eval(), {example}, dynamic_shapes=({{0: torch.export.Dim('batch')}},)) "
        "and torch.export.save"
    )
