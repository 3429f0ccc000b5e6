"""Calibration of a version: the reference of its anomaly scores, and the scores of the calibration split.

    calibration.json          Calibration
    calibration.safetensors   reference of the scores (models/scores.py), scores and views of the calibration examples
    manifest.json             SHA-256 of both; its own SHA-256 is the version's tag ``calibration``

It lies beside the bundle, outside the version's key: a version without it gets it later. The reference is fitted to training
examples and the model's own samples, and the scores are standardised on validation examples. So calibration and new examples
are exchangeable given both, as conformal p-values need.

Shapes: N examples of a split, R reference examples, X the axes of one example, S scores, V views (shift.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from remint.data.arrays import Dataset, Split
from remint.data.blocks import Blocks
from remint.data.sampler import spaced_indices
from remint.errors import DataError, IntegrityError
from remint.models import scores
from remint.models.bundle import load_model
from remint.models.contract import CanImpute, CanSample, HasLatent, Model
from remint.models.draw import draw
from remint.models.scores import DRAWN, NEAR, Reference, Scorer
from remint.records import DataSpec, Record, TrainedModel
from remint.runtime import manifest
from remint.serving import blocks
from remint.serving.anomalies.shift import MOST, views
from remint.serving.imputation.coverage import ImputationCoverage, coverage

ABOUT, TENSORS = "calibration.json", "calibration.safetensors"
REFERENCES, REFERENCE_BYTES = 4096, 16 << 20  # training examples, and as many samples, that examples are compared with
FITTED = 2048  # validation examples of the statistics, and training examples of the latents'
SEED = 0  # of the model's samples
SCORE, VIEW = "score_NS", "view_NV"

Array = np.ndarray[Any, Any]


class Calibration(Record):
    """One calibration."""

    model_key: str  # TrainedModel.key
    dataset: str  # digest of the DatasetVersion
    calibrated: int  # examples of the calibration split
    scores: tuple[str, ...]  # names of the columns of SCORE: Scorer.part_names
    imputation: ImputationCoverage | None = None  # None: the family does not impute
    added_later: ClassVar[frozenset[str]] = frozenset({"imputation"})


@dataclass(frozen=True)
class Calibrated:
    """A verified calibration in memory."""

    about: Calibration
    reference: Reference
    part: dict[str, Tensor]  # scores of the calibration examples by name, each float64 (N,)
    view_NV: Array  # of the calibration examples, at most MOST


def calibrate(bundle: Path, dataset: Dataset, out: Path) -> Calibration:
    """Fit the reference of the bundle's model, score the calibration split, and write ``out``, sealed.

    Raises IntegrityError if a file of the bundle is damaged, DataError if the data is not what the model was trained on or
    has no calibration split.
    """
    model, trained = load_model(bundle), TrainedModel.read(bundle / "training.json")
    if trained.dataset != dataset.version.digest:
        raise DataError(f"{bundle} was trained on another version of {dataset.version.name}: calibrate with that version")
    made, split = measure(model, trained.key, dataset), dataset.calibration
    about = made.about
    if isinstance(model, CanImpute) and split is not None:
        found = coverage(model, dataset.spec, split.x_NX, split.y_N)
        about = about.model_copy(update={"imputation": found})
    with manifest.whole_folder(out) as folder:
        about.write(folder / ABOUT)
        tensors = {**made.reference, SCORE: torch.stack([*made.part.values()], 1), VIEW: torch.from_numpy(made.view_NV)}
        (folder / TENSORS).write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return about


def measure(model: Model, model_key: str, dataset: Dataset) -> Calibrated:
    """Return the calibration of a model. Raises DataError if the dataset has no calibration split."""
    split, name, spec = dataset.calibration, dataset.version.name, dataset.spec
    if split is None:
        raise DataError(f"{name} has no calibration split: set datasets.{name}.split.calibration in params.yaml, and train again")
    reference = fit_reference(model, spec, dataset.train, dataset.validation)
    part = part_scores(Scorer(model, spec, reference), split.x_NX)
    about = Calibration(model_key=model_key, dataset=dataset.version.digest, calibrated=len(split), scores=tuple(part))
    view_NV = views(np.asarray(split.x_NX[spaced_indices(len(split), MOST)]), spec)
    return Calibrated(about, reference, part, view_NV)


def read(folder: Path, model_key: str) -> Calibrated:
    """Read the calibration of a model. Raises IntegrityError if a file is damaged, or if it is of another model."""
    manifest.verify(folder)
    try:
        about = Calibration.read(folder / ABOUT)
        tensors = load_file(folder / TENSORS)
        part = dict(zip(about.scores, tensors.pop(SCORE).T, strict=True))
        view_NV = tensors.pop(VIEW).numpy()
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise IntegrityError(f"{folder} holds no readable calibration ({type(error).__name__})") from error
    if about.model_key != model_key:
        raise IntegrityError(f"{folder} is the calibration of another model")
    return Calibrated(about, tensors, part, view_NV)


def fit_reference(model: Model, spec: DataSpec, train: Split, validation: Split) -> Reference:
    """Return the reference of a model's scores, from examples that neither calibrate nor are scored."""
    size = max(1, int(np.prod(spec.shape)) * (4 if spec.is_table else 1))
    most = max(64, min(REFERENCES, REFERENCE_BYTES // size))
    near_RX = np.asarray(train.x_NX[spaced_indices(len(train), most)])
    reference: Reference = {NEAR: torch.from_numpy(near_RX)}
    if isinstance(model, CanSample):
        drawn_RX, _ = draw(model, spec, [(SEED, index) for index in range(len(near_RX))])
        reference[DRAWN] = torch.from_numpy(drawn_RX)
    if not spec.is_table:
        reference["level_share_L"] = scores.level_shares(reference[NEAR], spec.levels)
    scorer = Scorer(model, spec, reference)
    if "latent" in scorer.part_names:
        reference |= scores.latent_statistics(_latents(scorer, train))
    x_NX = np.asarray(validation.x_NX[spaced_indices(len(validation), FITTED)])
    reference["statistics_2S"] = scores.statistics(part_scores(scorer, x_NX))
    return reference


def _latents(scorer: Scorer, train: Split) -> Tensor:
    """Return latents of training examples, float32 (N, Z), each in its own class if the model is conditional."""
    model = cast(HasLatent, scorer.model)
    place_N = spaced_indices(len(train), FITTED)
    y_N = np.asarray(train.y_N[place_N]) if scorer.model.conditional and train.y_N is not None else None
    parts = blocks.apply(lambda x_BX, y_B: model.encode(x_BX, y_B).float(), np.asarray(train.x_NX[place_N]), y_N)
    return torch.from_numpy(np.concatenate(list(parts)))


def part_scores(
    scorer: Scorer,
    x_NX: Array | Blocks,
    names: Sequence[str] | None = None,
    device: str = "cpu",
    progress: blocks.Progress = blocks.silent,
) -> dict[str, Tensor]:
    """Return the parts of the scores of examples (Scorer.parts) by name, each float64 (N,). ``names``: None: all.

    A number depends on its example alone.
    """
    names = scorer.part_names if names is None else names
    draws, size = scorer.noise_shape

    def of_block(x_BX: Tensor, _: Tensor | None) -> Tensor:
        noise_BKN = blocks.content_noise(x_BX, draws * size, "score").view(len(x_BX), draws, size)
        return scorer.parts(x_BX, noise_BKN.transpose(0, 1).to(scorer.dtype), names)

    part_NS = torch.from_numpy(np.concatenate(list(blocks.apply(of_block, x_NX, None, device, progress))))
    return dict(zip(names, part_NS.T, strict=True))
