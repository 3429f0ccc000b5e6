"""Recorded samples: drawn once at the end of training and stored with the weights, to be compared with samples drawn later.

    samples.safetensors   ``samples``; or ``log_prob`` or ``elbo`` of a family that cannot sample; also ``class`` of each for
                          a conditional model; nothing for a family without these three abilities

The metadata of the file are the seed and the machine. Samples are drawn on the CPU from the written bundle, in the same way
as for serving.

Shapes: N samples, X the axes of one example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from remint.errors import IntegrityError
from remint.models.bundle import load_model, spec_of
from remint.models.contract import CanSample, HasElbo, HasLogProb, Model, standard_normal
from remint.models.draw import BLOCK, draw
from remint.records import DataSpec, canonical
from remint.runtime import manifest

FILE = "samples.safetensors"
COUNT = 16
MAX_BYTES = 2**20  # most bytes of all samples: for large images fewer than COUNT, but at least one
SEED = 0

# Tolerances for another machine, which may take sums in another order.
SHARE_TOLERANCE = 0.01  # fraction of an image's values that may differ by one level
RELATIVE_TOLERANCE = 1e-4  # relative for numbers, absolute below 1

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class RecordedSamples:
    """Recorded samples of a bundle, with their seed and machine."""

    seed: int
    machine: dict[str, Any]
    arrays: Arrays

    @property
    def count(self) -> int:
        return max((len(array) for array in self.arrays.values()), default=0)


def record(folder: Path, machine: Mapping[str, Any]) -> None:
    """Draw samples from the complete bundle in ``folder`` and add them to it; the caller seals the folder.

    ``machine``: the fingerprint under which the bytes are comparable (distributed.machine.fingerprint of the CPU).
    """
    manifest.seal(folder)
    spec = spec_of(folder)
    arrays = compute(load_model(folder), spec, SEED, sample_count(spec))
    about = canonical({"seed": SEED, "machine": with_block_size(machine)})  # one entry: the order of several entries is not fixed
    (folder / FILE).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"about": about}))


def with_block_size(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return a machine's fingerprint with the block size added: the last bits depend on both."""
    return {**machine, "block": BLOCK}


def sample_count(spec: DataSpec) -> int:
    return max(1, min(COUNT, MAX_BYTES // (spec.dims * (4 if spec.is_table else 1))))


def read(folder: Path) -> RecordedSamples | None:
    """Return the recorded samples of a sealed bundle; None if the bundle is older than this record.

    Raises IntegrityError if the file does not hold recorded samples.
    """
    if not (folder / FILE).exists():
        return None
    try:
        with safe_open(folder / FILE, framework="numpy") as stored:
            about = json.loads(stored.metadata()["about"])
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
        return RecordedSamples(about["seed"], about["machine"], arrays)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{folder / FILE} does not hold recorded samples: {type(error).__name__}") from error


def compute(model: Model, spec: DataSpec, seed: int, count: int) -> Arrays:
    """Return ``count`` samples of the model for a seed; if it cannot sample, its density or bound at all-zero examples.

    A conditional model is given the classes 0, 1, .. in turn.
    """
    y_N = np.arange(count) % spec.classes if model.conditional else None
    arrays: dict[str, np.ndarray[Any, Any]] = {} if y_N is None else {"class": y_N}
    if isinstance(model, CanSample):
        places = [(seed, index) for index in range(count)]
        arrays["samples"], _ = draw(model, spec, places, None if y_N is None else y_N.tolist())
        return arrays
    labels_N = None if y_N is None else torch.from_numpy(y_N)
    zeros_NX = torch.zeros(count, *spec.shape)
    with torch.inference_mode():
        if isinstance(model, HasLogProb):
            noise_ND = torch.stack([standard_normal((model.density_noise,), seed, index) for index in range(count)])
            arrays["log_prob"] = model.log_prob(zeros_NX, noise_ND, labels_N).numpy()
        elif isinstance(model, HasElbo):
            noise_ND = torch.stack([standard_normal((model.latent_noise,), seed, index) for index in range(count)])
            arrays["elbo"] = model.elbo(zeros_NX, noise_ND.unsqueeze(0), labels_N)[0].numpy()
    return arrays


def nonfinite_values(model: Model, spec: DataSpec, arrays: Arrays) -> str | None:
    """Describe weights or drawn values that are not finite; None if all are. Values that may be missing may be NaN."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weights {name} contain values that are not finite"
    for name, array in arrays.items():
        allowed = np.isfinite(array)
        if name == "samples" and spec.is_table:
            allowed |= np.isnan(array) & np.array([column.missing for column in spec.columns])
        if not allowed.all():
            return f"{int((~allowed).sum())} of {array.size} values of {name} are not finite"
    return None


def difference(recorded: Arrays, redrawn: Arrays, *, exact: bool) -> str | None:
    """Describe how values drawn again differ from the recorded ones; None if they are equal.

    ``exact``: every bit counts; otherwise only a difference above SHARE_TOLERANCE or RELATIVE_TOLERANCE.
    """
    if {name: array.shape for name, array in recorded.items()} != {name: array.shape for name, array in redrawn.items()}:
        return f"recorded: {', '.join(recorded) or 'nothing'}; drawn again: {', '.join(redrawn) or 'nothing'}"
    for name, before in recorded.items():
        now = redrawn[name]
        if before.dtype != now.dtype:
            return f"{name} is {now.dtype}, not {before.dtype}"
        if before.tobytes() == now.tobytes():
            continue
        if exact:
            return f"{int((before != now).sum())} of {before.size} values of {name} differ"
        if before.dtype == np.uint8:
            distance = np.abs(before.astype(np.int64) - now)
            if distance.max() > 1 or (distance > 0).mean() > SHARE_TOLERANCE:
                return f"{(distance > 0).mean():.1%} of the values of {name} differ, by up to {distance.max()} levels"
        elif not np.allclose(before, now, rtol=RELATIVE_TOLERANCE, atol=RELATIVE_TOLERANCE, equal_nan=True):
            return f"values of {name} differ by more than {RELATIVE_TOLERANCE}, relative to the recorded ones"
    return None
