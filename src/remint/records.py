"""Records that steps hand to each other: frozen, each with a canonical JSON form and a digest.

    DatasetVersion -> TrainedModel -> EvaluationReport -> ModelVersion -> Decision -> LedgerRow

A record names its parents by their digests. A record of one package is in that package: ModelVersion in
stores/mlflow/records.py, Decision in promotion/decision.py, LedgerRow in stores/ledger/row.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, model_serializer

Ended = Literal["finished", "patience", "collapsed", "diverged"]


def canonical(value: Any) -> str:
    """Return JSON with one spelling only: sorted keys, no blanks, no NaN. Equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class Extended(BaseModel):
    """A value that may get new fields: its JSON leaves out ``added_later`` at their default, so that old digests stay."""

    added_later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields, later = type(self).model_fields, self.added_later
        return {key: value for key, value in dump(self).items() if key not in later or getattr(self, key) != fields[key].default}


class Record(Extended):
    """A frozen value with a canonical JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @cached_property
    def digest(self) -> str:
        return digest(self.to_json())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values and its own digest."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_text())


class Column(Record):
    """One column of a table, the same in every version of the data, with its standard form."""

    name: str
    categories: tuple[str, ...] = ()  # of a categorical column, whose values are indices 0, 1, ..; empty: a numeric column
    mean: float = 0.0  # of a numeric column at its first import; values are (original - mean) / scale
    scale: float = 1.0
    missing: bool = False  # whether values may be missing (NaN)
    type: str = ""  # Arrow's name of the source's type, if it is neither double nor string
    least: int | None = None  # of a column of whole numbers: the range at its first import, in original units
    most: int | None = None
    truth: tuple[str, str] = ("false", "true")  # truth values as the source's text has them
    absent: float = 0.0  # share of missing values at its first import, which drawn rows lack too
    added_later: ClassVar[frozenset[str]] = frozenset({"type", "least", "most", "truth", "absent"})

    @property
    def numeric(self) -> bool:
        return not self.categories

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers, which have probabilities and no density."""
        return self.least is not None


class DataSpec(Record):
    """Form of the data, as a model needs it.

    Images are uint8 (C, H, W), values 0 .. levels-1. A row of a table is float32 (D,): standardised numbers, indices of
    categories, NaN for missing values.
    """

    shape: tuple[int, int, int] | tuple[int]  # C, H, W of an image; D of a row
    levels: int = 0  # of images
    bits: int | None = None  # of values in 16-bit files, where they are not divided by 256
    classes: int = 0  # number of labels; 0: no labels
    columns: tuple[Column, ...] = ()  # of a table, D of them
    class_names: tuple[str, ...] = ()  # of the labels, if they have names
    label: Column | None = None  # of a table: the column of the labels
    label_at: int = 0  # number of columns before it in the source
    suffix: str = ".csv"  # of the table's file
    filter: str = ""  # by which images of other sizes were given this one; "": all had it
    converted: bool = False  # whether image files were converted to this number of channels
    added_later: ClassVar[frozenset[str]] = frozenset({"bits", "label", "label_at", "suffix", "filter", "converted"})

    @property
    def is_table(self) -> bool:
        return bool(self.columns)

    @property
    def dims(self) -> int:
        """Dimensions of one example."""
        return math.prod(self.shape)

    @property
    def image(self) -> tuple[int, int, int]:
        """C, H, W of an image."""
        c, h, w = self.shape  # type: ignore[misc]  # not for rows of a table
        return c, h, w

    def fits(self, other: DataSpec, *, conditional: bool) -> bool:
        """Return whether a model of such data can be measured on ``other`` data. Classes count only if it is conditional."""
        own, others = ((spec.shape, spec.levels, spec.bits, spec.columns) for spec in (self, other))
        return own == others and (not conditional or (self.classes, self.class_names) == (other.classes, other.class_names))

    def text(self) -> str:
        """Return a short description of the examples."""
        labels = f", {self.classes} classes" if self.classes else ""
        if self.is_table:
            numeric = sum(column.numeric for column in self.columns)
            return f"rows of {numeric} numeric and {len(self.columns) - numeric} categorical columns{labels}"
        return f"images of shape {self.shape} with {self.levels} levels{labels}"

    @property
    def unit(self) -> str:  # of likelihoods
        return "nats" if self.is_table else "bits/dim"

    @property
    def nats_per_unit(self) -> float:
        """Nats of a whole example in one unit."""
        return 1.0 if self.is_table else self.dims * math.log(2.0)


class DatasetVersion(Record):
    """One prepared dataset. Its digest is the dataset version."""

    name: str
    source: str
    raw_sha256: str  # of the raw snapshot
    spec: DataSpec
    split: dict[str, float | str]
    counts: dict[str, int]  # examples in train, validation, held_out; and calibration, if there is such a split
    files: dict[str, str]  # SHA-256 of each prepared file, by name


class TrainedModel(Record):
    """One training: its inputs, its result and its machine."""

    pipeline: str
    dataset: str  # digest of the DatasetVersion
    spec: DataSpec
    recipe: dict[str, Any]  # Recipe.resolved()
    weights_sha256: str
    steps: int  # executed steps: fewer than requested if it was ended early
    best_step: int  # step whose averaged weights are served
    ended: Ended = "finished"  # collapsed or diverged: the served weights are the best before that
    reason: str = ""  # one sentence, if it was ended early
    validation: float | None  # score at best_step, bits/dim, lower is better; None: the family has no score
    world_size: int
    fingerprint: dict[str, Any]  # hardware, threads and build; hashes are comparable only if it is equal

    @property
    def key(self) -> str:
        """Identity of a version: digest of weights, dataset version, model and training settings."""
        return digest({"weights": self.weights_sha256, "dataset": self.dataset, "recipe": self.recipe})

    @property
    def went_wrong(self) -> bool:
        """True if it was ended because it collapsed or diverged."""
        return self.ended in ("collapsed", "diverged")


class MetricValue(Record):
    """One measurement with its interval."""

    name: str
    value: float
    low: float  # limits of the 95% interval
    high: float
    n: int  # number of examples (or samples)
    seed: int
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    fingerprint: dict[str, Any] = {}  # method of the measurement; values with different fingerprints are not comparable
    repeats: int = 0  # noise samples of each example, as the rule in the fingerprint chose them for this model; 0: no such rule
    added_later: ClassVar[frozenset[str]] = frozenset({"repeats"})

    def text(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] {self.unit}".rstrip()


class Leakage(Record):
    """Held-out examples that are also in the training split. They would test a model on its own training data."""

    checked: int  # held-out examples
    exact: int  # of them, equal byte for byte to a training example
    near: int  # of the others, within the tolerance of a training example
    tolerance: str  # a sentence: the meaning of near
    chance: float = 0.0  # share of held-out examples, exact or near, that independent rows would give; 0 for images
    least: float = 0.0  # smallest share of exact copies that could be told from chance
    beyond: float | None = None  # share that chance does not explain; None: all of them, as in a report from before

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what a report from before does not have: its digest stays what it was."""
        found = dump(self)
        return {key: found[key] for key in ("checked", "exact", "near", "tolerance")} if self.beyond is None else found

    @property
    def share(self) -> float:
        """Share of held-out examples that are exact or near, and that chance does not explain."""
        return (self.exact + self.near) / self.checked if self.beyond is None else self.beyond

    def text(self) -> str:
        found = f"{self.exact} exact and {self.near} near" if self.exact + self.near else "none"
        by_chance = f"; independent rows would give {self.chance:.2%}" if self.chance else ""
        return f"{found} of {self.checked} held-out examples in the training split{by_chance}"


class Change(Record):
    """One statistic of a training split that changed."""

    of: str  # a column, "label", or a value of each image: brightness, contrast, a channel's brightness
    statistic: Literal["mean", "spread", "missing", "share"]
    category: str = ""  # of a share: the category that changed most
    before: float  # in the column's own units; a share of 1
    after: float
    change: float  # standardised: a mean in former deviations, the log ratio of a spread, Cohen's h of a share
    low: float  # limits of its 95% interval
    high: float
    p: float  # of the test for no change, corrected for all tests (Holm)

    def text(self) -> str:
        what = f"{self.statistic} of {self.of}" + (f" = {self.category}" if self.category else "")
        return f"{what} {self.before:.4g} -> {self.after:.4g} ({self.change:+.2f} [{self.low:+.2f}, {self.high:+.2f}])"


class Drift(Record):
    """Change of the training data since a model was trained."""

    added_later: ClassVar[frozenset[str]] = frozenset({"p"})

    former: str  # digest of the DatasetVersion that it was trained on
    present: str  # digest of the DatasetVersion that it is judged with
    comparable: bool  # False: the two could not be compared, for the reason in the summary
    summary: str  # one sentence
    before: dict[str, int] = {}  # examples in train, validation, held_out
    after: dict[str, int] = {}
    kept: int = 0  # examples in both training splits
    added: int = 0  # examples in the present one only
    removed: int = 0  # examples in the former one only
    tested: int = 0  # number of compared statistics
    p: float | None = None  # smallest p-value of the statistics, corrected for all (Holm); None: none was compared
    changed: tuple[Change, ...] = ()  # those that changed at the 5% level, corrected for all, the largest first
    distance: MetricValue | None = None  # Frechet distance between the two training splits in the present features
    floor: MetricValue | None = None  # the same distance after shuffling all examples between the two


class EvaluationReport(Record):
    """All measurements of one model on one dataset version."""

    pipeline: str
    model_key: str  # TrainedModel.key
    weights_sha256: str
    dataset: str  # digest of the DatasetVersion with the held-out split
    metrics: dict[str, MetricValue]
    context: dict[str, MetricValue] = {}  # reference values: the floor of a Frechet distance, a trivial baseline
    by_class: dict[str, dict[str, MetricValue]] = {}  # metric, class: over the held-out examples of one class
    leakage: Leakage | None = None  # into the model's training split; None: that split is missing
    values_sha256: str = ""  # of the per-example values beside the report
