"""Served model: everything that a registered model can be used for. ``remint.load`` returns one.

Inputs are what serving/inputs.py reads: arrays, DataFrames, files. Images come out as uint8 arrays (N, C, H, W), rows as a
DataFrame in the form of the source. Every result is a function of (version, input, seed).

Shapes: N examples, K classes or draws, Z latent, X the axes of one example (C, H, W of an image, D of a table's row).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from remint.data import rows
from remint.errors import SettingsError, UserError
from remint.models.bundle import MODEL, WEIGHTS, load_model
from remint.models.contract import CanSample, HasLatent, Model
from remint.models.draw import draw
from remint.records import DataSpec, MetricValue
from remint.runtime import manifest
from remint.serving import blocks, inputs
from remint.serving.blocks import Progress, silent
from remint.serving.inputs import Examples
from remint.settings.base import did_you_mean

if TYPE_CHECKING:
    from remint.serving.anomalies.calibration import Calibrated
    from remint.serving.anomalies.scoring import Scores
    from remint.serving.augmentation.augmenting import Augmented
    from remint.serving.density import LogProb
    from remint.serving.exporting.export import Exported
    from remint.serving.imputation.imputing import Imputation

LISTED = 20  # classes that a message names

Array = np.ndarray[Any, Any]
Classes = str | int | Sequence[str | int] | None  # name or number of the class of all examples, or of each


@dataclass(frozen=True)
class ServedModel:
    """A model with the description of its data."""

    model: Model
    spec: DataSpec
    device: str = "cpu"
    ref: str = "the model"  # NAME/7, or the bundle's folder
    folder: Path | None = None  # of its bundle
    weights_sha256: str = ""
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)  # of a version, at its registration
    calibration: Callable[[], Calibrated] | None = None  # reads it, verified; None: there is none

    @property
    def conditional(self) -> bool:
        return bool(getattr(self.model, "conditional", False))

    def sample(self, count: int, seed: int = 0, of_class: str | int | None = None, temperature: float = 1.0) -> Any:
        """Return ``count`` samples. Sample i is a function of (seed, i, class, temperature) alone.

        ``temperature`` times the latents: below 1 samples are more typical and less diverse.
        """
        places = [(seed, index) for index in range(count)]
        classes = None if of_class is None else [self.class_number(of_class)] * count
        x_NX, y_N = self.draw(places, classes, temperature)
        return self.in_source_form(x_NX, y_N)

    def log_prob(self, data: Any, **options: Any) -> LogProb:
        """Return log p(x) of each example in nats, with the name of the bound: see serving/density.py."""
        from remint.serving.density import log_prob

        return log_prob(self, data, **options)

    def score(self, data: Any, false_alarm_rate: float = 0.05, fdr: float | None = None, seed: int = 0, **options: Any) -> Scores:
        """Return score, p-value and flag of each example: see serving/anomalies/scoring.py."""
        from remint.serving.anomalies.scoring import score

        return score(self, data, false_alarm_rate, fdr, seed, **options)

    def encode(self, data: Any, of_class: Classes = None, **options: Any) -> Array:
        """Return z_NZ, the latent of each example, float32. ``of_class``: of all or of each, if the input has none."""
        with self.examples(data, **options) as examples:
            return _joined(self.encoded(examples, self.classes_of(examples, of_class)))

    def decode(self, z_NZ: Any, of_class: Classes = None) -> Any:
        """Return the examples of latents. ``of_class``: of all, or of each."""
        z_NZ = self.latents(z_NZ)
        y_N = self.given_classes(of_class, len(z_NZ))
        return self.in_source_form(_joined(self.decoded(z_NZ, y_N)), y_N)

    def reconstruct(self, data: Any, of_class: Classes = None, **options: Any) -> Any:
        """Return decode(encode(x)) of each example."""
        with self.examples(data, **options) as examples:
            y_N = self.classes_of(examples, of_class)
            return self.in_source_form(_joined(self.reconstructed(examples, y_N)), y_N)

    def interpolate(self, a: Any, b: Any, steps: int = 12, of_class: str | int | None = None) -> Any:
        """Return ``steps`` examples on the way from a to b, both of them one example: see serving/interpolation.py."""
        from remint.serving.interpolation import interpolate

        return self.in_source_form(*interpolate(self, a, b, steps, of_class))

    def impute(self, data: Any, **options: Any) -> Imputation:
        """Return the input with its gaps filled, and the spread of each filled value: see serving/imputation/imputing.py."""
        from remint.serving.imputation.imputing import impute

        return impute(self, data, **options)

    def augment(self, data: Any, output: str | Path, per_class: int, seed: int = 0, **options: Any) -> Augmented:
        """Write synthetic examples that fill up the scarce classes of ``data`` to the new folder ``output``."""
        from remint.serving.augmentation.augmenting import augment

        return augment(self, data, Path(output), per_class, seed, **options)

    def export(self, output: str | Path, method: str = "sample") -> Exported:
        """Write one method as a graph, file.onnx or file.pt2, once it gave what the model gives (exporting/export.py)."""
        from remint.serving.exporting.export import export

        return export(self, Path(output), method)

    def examples(self, data: Any, **options: Any) -> Any:
        """Return a context of the examples of an input (inputs.read), with classes if the model is conditional."""
        return inputs.read(self.spec, data, labels=self.conditional, **options)

    def encoded(self, examples: Examples, y_N: Array | None, progress: Progress = silent) -> Iterator[Array]:
        """Yield the latents of each block, float32 (B, Z)."""
        model = self._with_latent()
        return blocks.apply(lambda x, y: model.encode(x, y).float(), examples.x_NX, y_N, self.device, progress)

    def decoded(self, z_NZ: Array, y_N: Array | None, progress: Progress = silent) -> Iterator[Array]:
        """Yield the examples of each block of ``latents``, in the model's form."""
        return blocks.apply(self._with_latent().decode, z_NZ, y_N, self.device, progress)

    @property
    def latent_size(self) -> int:
        """Z. Raises UserError if the family has no latents."""
        return int(self._with_latent().latent_size)

    def latents(self, given: Any) -> Array:
        """Return latents as float32 (N, Z). Raises SettingsError if they are none of this model."""
        size = self.latent_size
        try:
            z_NZ = np.asarray(given)
            found = f"latents of shape {z_NZ.shape}"
        except ValueError:  # rows of several lengths
            z_NZ, found = np.empty(0), "latents"
        numbers = z_NZ.dtype.kind in "fiu" and z_NZ.ndim == 2 and len(z_NZ) and z_NZ.shape[1] == size
        if not numbers or not (np.abs(z_NZ) <= np.finfo(np.float32).max).all():
            raise SettingsError(f"{found}: expected finite numbers (N, {size})")
        return z_NZ.astype(np.float32, copy=False)

    def reconstructed(self, examples: Examples, y_N: Array | None, progress: Progress = silent) -> Iterator[Array]:
        """Yield decode(encode(x)) of each block, in the model's form."""
        model = self._with_latent()

        def reconstruct(x_BX: Tensor, y_B: Tensor | None) -> Tensor:
            again_BX: Tensor = model.decode(model.encode(x_BX, y_B).float(), y_B)
            return again_BX

        return blocks.apply(reconstruct, examples.x_NX, y_N, self.device, progress)

    def draw(
        self, places: Sequence[tuple[int, int]], classes: Sequence[int] | None = None, temperature: float = 1.0
    ) -> tuple[Array, Array | None]:
        """Return x_NX in the model's form, for each (seed, index) that sample of the seed's series, and y_N, their classes.

        ``classes``: the wanted classes; by default the model draws them. Raises SettingsError if classes are given and the
        model is not conditional, or if it has no latents for a temperature.
        """
        self._check_conditional(classes)
        places = [(blocks.whole_seed(seed), index) for seed, index in places]
        latent = 0
        if temperature != 1.0:
            if isinstance(temperature, str) or not 0.0 <= temperature < float("inf"):
                raise SettingsError(f"temperature {temperature}: expected a number of at least 0")
            latent = self.latent_size
        assert isinstance(self.model, CanSample)
        return draw(self.model, self.spec, places, classes, self.device, latent, temperature)

    def classes_of(self, examples: Examples, of_class: Classes = None) -> Array | None:
        """Return the class of each example, for a conditional model. Raises SettingsError if they are not known."""
        if not self.conditional or (of_class is None and examples.y_N is not None):
            self._check_conditional(of_class)
            return examples.y_N if self.conditional else None
        if of_class is None:
            label = f"the column '{self.spec.label.name}'" if self.spec.label else "a folder for each class"
            raise SettingsError(
                f"{self.ref} is conditional, and the input has no classes: add {label}, or name one class for all"
            )
        return self.given_classes(of_class, len(examples))

    def given_classes(self, of_class: Classes, count: int) -> Array | None:
        """Return the numbers of the classes that were named, one for all or each. Raises SettingsError if they are needed."""
        self._check_conditional(of_class)
        if of_class is None and self.conditional:
            raise SettingsError(f"{self.ref} is conditional: name the class")
        if of_class is None:
            return None
        each = [of_class] * count if isinstance(of_class, str | int | np.generic) else of_class
        if len(each) != count:
            raise SettingsError(f"{len(each)} classes for {count} examples: name one class for all, or one for each")
        return np.array([self.class_number(one) for one in each], np.int64)

    def _check_conditional(self, given: Any) -> None:
        if given is not None and not self.conditional:
            raise SettingsError("this model was not trained with model.conditional: true: remove the class")

    def _with_latent(self) -> Any:
        if not isinstance(self.model, HasLatent):
            raise UserError(f"{self.ref}: its family has no latents: use a vae, vaegan, gan, flow or flow_matching")
        return self.model

    def class_number(self, of_class: str | int) -> int:
        """Return the number of a class, given by its name or by its number. Raises SettingsError if it does not exist.

        Where a name is itself a number, such as 1, 2, 3, each number is a name.
        """
        is_number = isinstance(of_class, int | np.integer) and not isinstance(of_class, bool)
        if is_number and 0 <= int(of_class) < self.spec.classes and not any(map(_is_number, self.spec.class_names)):
            return int(of_class)
        return self.class_named(str(of_class))

    def class_named(self, name: str) -> int:
        """Return the number of a class from its name; without names, from the number as text.

        Raises SettingsError, with the known names or the nearest of many, if the class does not exist, or if the model is not
        conditional.
        """
        self._check_conditional(name)
        names = list(self.spec.class_names) or [str(y) for y in range(self.spec.classes)]
        if self.spec.label is not None and self.spec.label.type == "bool":
            name = name.lower()  # a DataFrame has True where the class is named true
        if name not in names and name.removesuffix(".0") in names:
            return names.index(name.removesuffix(".0"))  # a DataFrame has 1.0 where a number is missing in its column
        if name not in names:
            listed = f"unknown class '{name}': {self.ref} knows {', '.join(names)}"
            raise SettingsError(listed if len(names) <= LISTED else did_you_mean(f"class '{name}'", name, names))
        return names.index(name)

    def table(self, x_ND: Array, y_N: Array | None = None) -> pa.Table:
        """Return rows in the form of the source, with its label if there are classes."""
        assert self.spec.is_table
        return rows.to_table(self.spec, x_ND, y_N)

    def in_source_form(self, x_NX: Array, y_N: Array | None = None) -> Any:
        """Return images as they are, and rows as a DataFrame."""
        return self.table(x_NX, y_N).to_pandas() if self.spec.is_table else x_NX


def _is_number(name: str) -> bool:
    return name.removeprefix("-").replace(".", "", 1).isdigit()


def load(folder: Path, device: str = "cpu", ref: str = "") -> ServedModel:
    """Load the model of a registered bundle and verify it against its manifest. ``ref``: its name in messages.

    Raises IntegrityError if a file differs from the manifest, UserError if the family cannot sample.
    """
    model = load_model(folder, device)
    if not isinstance(model, CanSample):
        raise UserError(f"{folder}: its family cannot sample: use a model of another family")
    spec = DataSpec.model_validate(json.loads((folder / MODEL).read_bytes())["spec"])
    sealed = json.loads((folder / manifest.NAME).read_bytes())
    return ServedModel(model, spec, device, ref or str(folder), folder, sealed["files"][WEIGHTS])


def _joined(parts: Iterator[Array]) -> Array:
    return np.concatenate(list(parts))
