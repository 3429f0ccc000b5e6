"""Trained model on disk: weights.safetensors and model.json, in a folder that manifest.py seals.

Beside them is critic.safetensors if the family trains a critic. It is not part of the version's key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from remint.errors import IntegrityError, UserError
from remint.models.contract import Model
from remint.models.families import family
from remint.records import DataSpec
from remint.runtime import manifest
from remint.settings.plugins import settings_of
from remint.settings.recipe import MODEL_SETTINGS, ModelSettings

WEIGHTS = "weights.safetensors"
CRITIC = "critic.safetensors"
MODEL = "model.json"
BASE_BUDGET = 64 << 20  # bytes of tensors that building a network may create ...
BUDGET_PER_BYTE = 8  # ... plus this many for each byte of its weights


def save_model(folder: Path, model: Model, family: str, settings: ModelSettings, spec: DataSpec) -> str:
    """Write the two files into ``folder``, which the caller seals once it is complete.

    Equal weights give equal bytes. Returns the SHA-256 of weights.safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights))  # not save_file: its error for a full disk has no errno
    about = {"family": family, "model": settings.model_dump(mode="json"), "spec": spec.to_json()}
    (folder / MODEL).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    return manifest.sha256_file(folder / WEIGHTS)


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """Load the model of a sealed folder, in eval mode and without gradients.

    Raises IntegrityError if a file differs from the manifest or does not fit the model's settings, SettingsError
    if its family is not installed here.
    """
    manifest.verify(folder)
    name, settings, spec = _read_config(folder)
    try:
        with _building(folder / WEIGHTS):
            model = family(name).build(settings, spec)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError, MemoryError) as error:
        raise IntegrityError(
            f"{folder / WEIGHTS} does not hold the weights that {MODEL} describes: {_first_line(error)}"
        ) from error
    return model.to(device).eval().requires_grad_(False)


def save_critic(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the state of a critic into the same folder. Equal states give equal bytes."""
    (folder / CRITIC).write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


def load_critic(folder: Path, model: Model) -> nn.Module:
    """Load the critic of a sealed folder, in eval mode and without gradients: (B, S) and classes to scores (B,).

    ``model``: what ``load_model`` returned for this folder; S are the axes of its ``space``. The critic is put on its device.

    Raises UserError if the family has no critic, or if the version is older than this file; IntegrityError as load_model does.
    """
    manifest.verify(folder)
    name, settings, _ = _read_config(folder)
    if not (folder / CRITIC).exists():
        having = " and ".join(each for each, kind in MODEL_SETTINGS.items() if {"penalty", "critic"} & kind.model_fields.keys())
        raise UserError(
            f"this version of family '{name}' has no critic: {having} have one, but not in versions of an older remint"
        )
    try:
        with _building(folder / CRITIC):
            critics = [phase.trained_critic() for phase in family(name).phases(model, settings)]
        critic = next(each for each in critics if each is not None)
        critic.load_state_dict(load_file(folder / CRITIC))
    except (OSError, SafetensorError, RuntimeError, MemoryError, StopIteration) as error:
        raise IntegrityError(
            f"{folder / CRITIC} does not hold the critic that {MODEL} describes: {_first_line(error)}"
        ) from error
    return critic.to(next(model.parameters())).eval().requires_grad_(False)


@contextmanager
def _building(weights: Path) -> Iterator[None]:
    """Build a network for the tensors of a file: with a budget of bytes, and with a random state of its own.

    Building draws initial weights, which are then replaced: the caller's random state must not change.
    """
    budget = BASE_BUDGET + BUDGET_PER_BYTE * weights.stat().st_size
    with torch.random.fork_rng(devices=[]), _TensorBudget(budget):
        yield


class _TensorBudget(TorchFunctionMode):
    """Limit on bytes of created tensors; raises MemoryError above it. Settings that do not fit the weights could need any number.

    This is a function mode: a dispatch mode imports torch._dynamo, which takes 2 s.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.remaining = most

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(isinstance(each, Tensor) for each in args):
            self.remaining -= result.nbytes
            if self.remaining < 0:
                raise MemoryError("the network is far larger than the weights")
        return result


def spec_of(folder: Path) -> DataSpec:
    """Return the data specification of a folder's model. Raises IntegrityError if model.json does not describe a model."""
    return _read_config(folder)[2]


def _read_config(folder: Path) -> tuple[str, ModelSettings, DataSpec]:
    try:
        about: dict[str, Any] = json.loads((folder / MODEL).read_bytes())
        settings = settings_of(about["family"]).model_validate(about["model"])
        return about["family"], settings, DataSpec.model_validate(about["spec"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise IntegrityError(f"{folder / MODEL} does not describe a model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
