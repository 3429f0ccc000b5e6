"""Synthetic examples for scarce classes, with their origin beside them.

    AUGMENTED/
        examples        a folder of .png files per class; or examples.npz, examples.csv, examples.parquet, as the input
        manifest.json   model, seed, counts, novelty, digest of the input; SHA-256 of each file

Classes with fewer examples than asked are filled up. Nothing is written if the model copies: copies of training examples add
nothing, and may not be meant to leave the training data. A model copies if its novelty is below LEAST_NOVELTY, where 0 means
that all samples are copies, and 1 that they are as far from the training examples as held-out examples are.

Shapes: N examples, M others, B of one part, D coordinates, K classes, X the axes of one example.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remint.data.blocks import Blocks
from remint.data.sources import IDX, local_path
from remint.errors import SettingsError, UserError
from remint.evaluation import pairs
from remint.evaluation.neighbours import coordinates
from remint.records import DataSpec, Record
from remint.runtime.manifest import sha256_tree, whole_folder
from remint.serving import outputs
from remint.serving.augmentation import benefit
from remint.serving.augmentation.benefit import Benefit
from remint.serving.augmentation.scarce import check_conditional, class_names, classes_in, drawn, picked, scarcity
from remint.serving.blocks import Progress, silent, whole_seed
from remint.serving.inputs import Examples
from remint.serving.model import ServedModel

LEAST_NOVELTY = 0.5
MEASURED = 512  # samples, and as many examples, whose distances to the given examples are measured

Array = np.ndarray[Any, Any]


class Novelty(Record):
    """How far samples are from known examples, relative to the distance of new examples; 0: all are copies."""

    value: float
    of: str  # "the training split", at the version's evaluation, or "the input"


class Counts(Record):
    """Examples of one class."""

    given: int
    synthetic: int


class Augmented(Record):
    """Result of an augmentation."""

    model: str  # NAME/7
    weights_sha256: str
    path: str
    seed: int
    per_class: int
    counts: dict[str, Counts]  # by class, in the order of the model's classes
    novelty: Novelty | None  # None: the input has too few examples to measure it
    input_sha256: str  # over the names and bytes of its files
    set_aside: dict[str, str] = {}  # file or row of the input -> reason
    benefits: tuple[Benefit, ...] = ()  # where it was measured

    @property
    def synthetic(self) -> int:
        return sum(counts.synthetic for counts in self.counts.values())


def augment(
    served: ServedModel,
    data: Any,
    output: Path,
    per_class: int,
    seed: int = 0,
    *,
    evaluate: bool = False,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Augmented:
    """Write examples that fill up the scarce classes of ``data`` to the new folder ``output``.

    ``evaluate``: also measure their benefit for classifiers (serving/augmentation/benefit.py).

    Novelty is that of the version's evaluation, or else measured against ``data``. Sample i of a class is a function of
    (version, seed, i, class).

    Raises SettingsError if the folder exists, if no class is scarce, or if the input has no classes; UserError if the model does
    not know the classes, or copies.
    """
    seed = whole_seed(seed)
    if seed < 0:
        raise SettingsError(f"seed {seed}: expected a number of at least 0")
    check_output(output)
    check_conditional(served)
    with served.examples(data, skip_bad=skip_bad) as examples:
        lacking_K = scarcity(served, examples, per_class)
        novelty = check_novelty(served, examples, seed)
        names = class_names(served.spec)
        given_K = np.bincount(classes_in(examples), minlength=len(names))
        counts = {
            name: Counts(given=int(given), synthetic=int(lacking))
            for name, given, lacking in zip(names, given_K, lacking_K, strict=True)
        }
        made = Augmented(
            model=served.ref,
            weights_sha256=served.weights_sha256,
            path=str(output),
            seed=seed,
            per_class=per_class,
            counts=counts,
            novelty=novelty,
            input_sha256=_digest(data),
            set_aside=dict(examples.set_aside),
            benefits=benefit.measure(served, examples, per_class, seed) if evaluate else (),
        )
        with (
            outputs.disk_errors(output),
            whole_folder(output, **{key: value for key, value in made.to_json().items() if key != "path"}) as folder,
        ):
            parts = drawn(served, lacking_K, seed, progress)
            outputs.write_examples(folder / f"examples{_suffix(served.spec, data)}", served.spec, parts, made.synthetic)
    return made


def check_output(output: Path) -> None:
    """Raise SettingsError unless ``output`` can be made as a new folder."""
    with outputs.disk_errors(output):
        if not output.name or os.path.lexists(output):
            raise SettingsError(f"-o {output}: it exists: name a new folder")
        if not output.absolute().parent.is_dir():
            raise SettingsError(f"-o {output}: the folder {output.absolute().parent} does not exist")


def check_novelty(served: ServedModel, examples: Examples, seed: int) -> Novelty | None:
    """Return the novelty of the model's samples. Raises UserError if it says that they are copies."""
    measured = served.metrics.get("novelty")
    if measured is not None:
        novelty: Novelty | None = Novelty(value=measured.value, of="the training split")
    else:
        value = input_novelty(served, examples, seed)
        novelty = None if value is None else Novelty(value=value, of="the input")
    if novelty is not None and novelty.value < LEAST_NOVELTY:
        raise UserError(
            f"{served.ref} copies: the novelty of its samples against {novelty.of} is {novelty.value:.2f}, below {LEAST_NOVELTY} "
            "(0: copies, 1: as new as held-out examples): train a smaller model, or on more data"
        )
    return novelty


def input_novelty(served: ServedModel, examples: Examples, seed: int) -> float | None:
    """Return the mean distance of samples to the nearest given example, divided by that of given examples to the nearest other.

    None if there is no other, or if every example has an equal one.
    """
    count = min(MEASURED, len(examples))
    chosen_N = np.sort(np.random.default_rng(seed).permutation(len(examples))[:count])
    labels_N = None if examples.y_N is None else examples.y_N[chosen_N].tolist()
    sampled_NX, _ = served.draw([(seed, index) for index in range(count)], labels_N)
    given_ND = coordinates(picked(examples.x_NX, chosen_N), served.spec)
    usual_N = _to_nearest(given_ND, examples.x_NX, served.spec, torch.from_numpy(chosen_N))
    new_N = _to_nearest(coordinates(sampled_NX, served.spec), examples.x_NX, served.spec)
    usual, new = float(usual_N.mean()), float(new_N.mean())
    return new / usual if np.isfinite(usual) and usual > 0 else None


def _to_nearest(a_ND: Tensor, x_MX: Blocks, spec: DataSpec, itself_N: Tensor | None = None) -> Tensor:
    """Return the distance of each of a to the nearest example, (N,). ``itself_N``: the example that does not count for each."""
    nearest_N, at = torch.full((len(a_ND),), torch.inf, dtype=torch.float64), 0
    for x_BX in x_MX.read(pairs.rows(a_ND.shape[1])):
        distance_NB = torch.cdist(a_ND, coordinates(x_BX, spec))
        if itself_N is not None:
            here_N = (itself_N >= at) & (itself_N < at + len(x_BX))
            distance_NB[here_N, itself_N[here_N] - at] = torch.inf
        nearest_N = torch.minimum(nearest_N, distance_NB.min(1).values)
        at += len(x_BX)
    return nearest_N


def _digest(data: Any) -> str:
    """Return the digest of a file or folder; "" for other inputs."""
    path = Path(local_path(str(data)))
    return sha256_tree(path) if isinstance(data, str | Path) and path.exists() else ""


def _suffix(spec: DataSpec, data: Any) -> str:
    """Return the ending of the input's own format: "" for a folder of pictures."""
    is_path = isinstance(data, str | Path)
    suffix = Path(data).suffix.lower() if is_path else ""
    if spec.is_table:
        return suffix if suffix in outputs.TABLES else spec.suffix
    as_arrays = (
        not is_path or suffix in outputs.ARRAYS or str(data).startswith((IDX, "sklearn:")) or spec.image[0] not in outputs.MODES
    )
    return ".npz" if as_arrays else ""
