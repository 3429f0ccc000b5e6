"""Domain features: an extractor made from the dataset's own training split.

    images with labels      the 64 penultimate activations of a small convolutional classifier
    images without labels   the first principal components of the pixels, at most 64
    tables                  the columns: numbers and one-hot categories, standardised, and indicators of missing values

    outs/features/NAME/extractor.safetensors    weights
    outs/features/NAME/extractor.json           kind, sizes, accuracy, SHA-256 of the weights

``fd_domain`` differs by some 10% between two such classifiers. So every value measured with an extractor has its SHA-256 in
the fingerprint.

Shapes: N examples, X the axes of one example, C channels, H height, W width, B batch, D features, P pixels = C H W.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remint.data.arrays import Dataset, Split
from remint.data.sampler import spaced_indices
from remint.errors import IntegrityError
from remint.records import Column, DataSpec
from remint.runtime.manifest import sha256_file
from remint.settings.catalogue import Features

WEIGHTS, ABOUT = "extractor.safetensors", "extractor.json"
FEATURES = 64
BLOCK = 256  # examples at a time
ROWS = 65_536  # of a table, at a time

# Of the classifier. Label smoothing bounds the confidence and so the size of the features: without it, distances grow with
# the length of the classifier's training.
SEED, STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 0, 400, 64, 2e-3, 1e-2, 0.1
ACCURACY_EXAMPLES = 2000  # maximum for the accuracy, evenly spaced
COMPONENT_EXAMPLES = 2000  # maximum for principal components, evenly spaced over the training split

Array = np.ndarray[Any, Any]


class Classifier(nn.Module):
    """A convolution, strided convolutions down to at most 4 x 4, 64 activations, one logit per class."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        channels, height, width = spec.image
        wide = 16
        layers: list[nn.Module] = [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
        while max(height, width) > 4:
            narrow, wide = wide, min(2 * wide, 64)
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.ReLU()]
            height, width = -(-height // 2), -(-width // 2)
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(wide * height * width, FEATURES), nn.ReLU())
        self.logits = nn.Linear(FEATURES, spec.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features f_BD of pixels scaled to [-1, 1]."""
        f_BD: Tensor = self.features(x_BCHW)
        return f_BD


class PrincipalComponents(nn.Module):
    """An affine projection of the pixels."""

    def __init__(self, spec: DataSpec, components: int) -> None:
        super().__init__()
        self.project = nn.Linear(spec.dims, components)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features f_BD of pixels scaled to [-1, 1]."""
        f_BD: Tensor = self.project(x_BCHW.flatten(1))
        return f_BD


class Columns(nn.Module):
    """A table's columns as numbers of mean 0 and variance 1 over the training split; a constant has scale 1."""

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, spec: DataSpec, features: int) -> None:
        super().__init__()
        self.columns = spec.columns
        self.register_buffer("mean_D", torch.zeros(features))
        self.register_buffer("scale_D", torch.ones(features))

    def forward(self, x_BC: Tensor) -> Tensor:
        """Return the features f_BD of a table's rows."""
        return (self.encoded(self.columns, x_BC) - self.mean_D) / self.scale_D

    @staticmethod
    def encoded(columns: tuple[Column, ...], x_BC: Tensor) -> Tensor:
        """Encode numbers, one-hot categories (all zero if missing), and an indicator for columns that may have missing values."""
        parts: list[Tensor] = []
        for column, x_B in zip(columns, x_BC.unbind(1), strict=True):
            places = torch.arange(len(column.categories), device=x_B.device)
            parts += [x_B.nan_to_num().unsqueeze(1)] if column.numeric else [(x_B.unsqueeze(1) == places).to(x_B.dtype)]
            parts += [x_B.isnan().to(x_B.dtype).unsqueeze(1)] if column.missing else []
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Extractor:
    """A map from examples to features. It computes in float64: the batch size then does not affect a feature."""

    network: nn.Module
    spec: DataSpec
    sha256: str  # of the weights
    name: Features = "domain"
    resize: str = "none"  # method that resizes an image before, for the fingerprint

    @torch.no_grad()
    def __call__(self, x_NX: Array) -> Array:
        """Return the features f_ND, float64, of examples of the dataset."""
        f_ND: Array = np.concatenate([self.network(x_BX).numpy() for x_BX in self._blocks(x_NX)])
        return f_ND

    @property
    def classify(self) -> Callable[[Array], Array] | None:
        """Function from images to predicted classes, int64 (N,); None if the extractor is not a classifier."""
        network = self.network
        if not isinstance(network, Classifier):
            return None
        return lambda x_NX: np.concatenate([network.logits(network(x_BX)).argmax(1).numpy() for x_BX in self._blocks(x_NX)])

    def _blocks(self, x_NX: Array) -> Iterator[Tensor]:
        for at in range(0, len(x_NX), BLOCK):
            yield _scaled(x_NX[at : at + BLOCK], self.spec, torch.float64)


def fit(dataset: Dataset, out: Path) -> dict[str, Any]:
    """Make the extractor of a dataset, write its two files to ``out``, and return the content of extractor.json.

    The result is the same to the bit on one thread of the same machine. torch's global generator does not change.
    """
    spec = dataset.spec
    about: dict[str, Any] = {"dataset": dataset.version.digest, "spec": spec.to_json()}
    if spec.is_table:
        columns = _columns(spec, dataset.train)
        network: nn.Module = columns
        about |= {"kind": "columns", "features": len(columns.mean_D)}
    elif dataset.train.y_N is not None:
        classifier = _train_classifier(spec, dataset.train)
        accuracy = {name: _accuracy(classifier, spec, split) for name, split in _labelled(dataset).items()}
        network = classifier
        about |= {"kind": "classifier", "features": FEATURES, "accuracy": accuracy}
    else:
        components = _principal_components(spec, dataset.train)
        network = components
        about |= {"kind": "principal_components", "features": components.project.out_features}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, out / WEIGHTS)
    about["sha256"] = sha256_file(out / WEIGHTS)
    (out / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    return about


def load(folder: Path) -> Extractor:
    """Load the extractor of ``folder``. Raises IntegrityError if it is unreadable or its weights do not match extractor.json."""
    again = "make it again (dvc repro --force)"
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        spec, build, sha256 = DataSpec.model_validate(about["spec"]), KINDS[about["kind"]], about["sha256"]
        found = sha256_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder} holds no readable extractor ({type(error).__name__}): {again}") from error
    if found != sha256:
        raise IntegrityError(f"{folder / WEIGHTS} is damaged: its SHA-256 is not the one in {ABOUT}: {again}")
    network = build(spec, about["features"])
    network.load_state_dict(load_file(folder / WEIGHTS))
    return Extractor(network=network.double().eval().requires_grad_(False), spec=spec, sha256=sha256)


KINDS: dict[str, Callable[[DataSpec, int], nn.Module]] = {
    "classifier": lambda spec, _: Classifier(spec),
    "principal_components": PrincipalComponents,
    "columns": Columns,
}


def _scaled(x_NX: Array, spec: DataSpec, dtype: torch.dtype) -> Tensor:
    """Scale pixels from 0 .. levels-1 to -1 .. 1; leave rows of a table unchanged."""
    values_NX = torch.from_numpy(np.array(x_NX)).to(dtype)
    return values_NX if spec.is_table else values_NX * (2.0 / (spec.levels - 1)) - 1.0


def _train_classifier(spec: DataSpec, split: Split) -> Classifier:
    """Train with cross-entropy, AdamW and a cosine learning rate; batches are drawn with replacement."""
    assert split.y_N is not None
    order = np.random.default_rng(SEED).integers(len(split), size=(STEPS, BATCH))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = Classifier(spec)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for index_B in order:
        logits = network.logits(network(_scaled(split.x_NX[index_B], spec, torch.float32)))
        y_B = torch.from_numpy(np.array(split.y_N[index_B]))
        loss = nn.functional.cross_entropy(logits, y_B, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def _labelled(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "held_out": dataset.held_out}


@torch.no_grad()
def _accuracy(network: Classifier, spec: DataSpec, split: Split) -> float:
    """Return the share of correctly classified examples, of at most ACCURACY_EXAMPLES, for information only."""
    assert split.y_N is not None
    chosen, right = spaced_indices(len(split), ACCURACY_EXAMPLES), 0
    for at in range(0, len(chosen), BLOCK):
        place_B = chosen[at : at + BLOCK]
        logits = network.logits(network(_scaled(split.x_NX[place_B], spec, torch.float32)))
        right += int((logits.argmax(dim=1).numpy() == split.y_N[place_B]).sum())
    return right / len(chosen)


def _principal_components(spec: DataSpec, split: Split) -> PrincipalComponents:
    """Return the principal components of the pixels, each with the sign that makes its largest entry positive."""
    x_NP = _scaled(split.x_NX[spaced_indices(len(split), COMPONENT_EXAMPLES)], spec, torch.float64).flatten(1)
    mean_P = x_NP.mean(dim=0)
    axes_DP = torch.linalg.svd(x_NP - mean_P, full_matrices=False).Vh[:FEATURES]
    axes_DP = axes_DP * axes_DP.gather(1, axes_DP.abs().argmax(dim=1, keepdim=True)).sign()
    network = PrincipalComponents(spec, len(axes_DP)).requires_grad_(False)
    network.project.weight.copy_(axes_DP)
    network.project.bias.copy_(-axes_DP @ mean_P)
    return network


def _columns(spec: DataSpec, split: Split) -> Columns:
    """Return the columns with their mean and scale, from two passes over blocks of the rows."""

    def mean(of_block: Callable[[Tensor], Tensor]) -> Tensor:
        blocks = (_scaled(split.x_NX[at : at + ROWS], spec, torch.float64) for at in range(0, len(split), ROWS))
        sums = torch.stack([of_block(Columns.encoded(spec.columns, x_BD)).sum(0) for x_BD in blocks])
        return sums.sum(0) / len(split)

    mean_D = mean(lambda f_BD: f_BD)
    scale_D = mean(lambda f_BD: (f_BD - mean_D).square()).sqrt()
    network = Columns(spec, len(mean_D)).double()
    network.mean_D.copy_(mean_D)
    network.scale_D.copy_(torch.where(scale_D > 0, scale_D, 1.0))
    return network
