"""Training data of a model compared with its evaluation data: leakage, and drift since the training.

Adds to a report folder: leakage.png or leakage.csv if there are leaked examples; drift.json and drift.png if the model was
trained on another version of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from remint.data import arrays
from remint.data.arrays import Dataset, Split
from remint.errors import IntegrityError
from remint.evaluation import drift, leakage, translation
from remint.evaluation import features as feature_step
from remint.evaluation.evidence import Evidence
from remint.evaluation.leakage import LeakageFindings
from remint.records import DataSpec, TrainedModel


@dataclass(frozen=True)
class Origin:
    """The training data of a model, and the held-out examples found in them."""

    dataset: Dataset  # the evaluation data
    trained_on: Dataset | None  # None: another version, which is not available
    train: Split | None  # their training split, as today's schema has it
    found: LeakageFindings | None  # None: the training data are not available or cannot be translated

    @classmethod
    def of(cls, bundle: Path, dataset: Dataset, former: Path | None) -> Origin:
        """Find the training data of ``bundle`` and check them for leakage.

        ``former``: folder of the prepared training data if they are not ``dataset``. Raises IntegrityError if it is not the
        dataset version that the model was trained on.
        """
        digest = TrainedModel.read(bundle / "training.json").dataset
        if digest == dataset.version.digest:
            trained_on = dataset
        elif former is None:
            return cls(dataset, None, None, None)
        else:
            trained_on = arrays.load(former)
            if trained_on.version.digest != digest:
                raise IntegrityError(f"{former} is dataset version {trained_on.version.digest[:12]}, not {digest[:12]}")
        train = _as_today(trained_on, dataset.spec)
        found = None if train is None else leakage.find(dataset.held_out, train, dataset.spec)
        return cls(dataset, trained_on, train, found)

    def sealed(self, evidence: Evidence) -> Evidence:
        """Return the evidence with the leakage in its report."""
        found = self.found.leakage if self.found else None
        return replace(evidence, report=evidence.report.model_copy(update={"leakage": found}))

    def write(self, features: Path | None, out: Path) -> None:
        """Write leakage and drift. ``features``: folder of today's extractor; None: the drift has no distance."""
        if self.trained_on is None:
            return
        if self.found is not None and self.train is not None:
            leakage.write(self.found, self.dataset.held_out, self.train, self.dataset.spec, out)
        if self.trained_on is not self.dataset:
            extractor = feature_step.load(features) if features else None
            found = drift.measure_drift(self.trained_on, self.dataset, extractor, extractor.sha256 if extractor else "")
            drift.write(found, self.trained_on, self.dataset, out)


def _as_today(trained_on: Dataset, spec: DataSpec) -> Split | None:
    """Return the training split in the form of data ``spec``; None if that has no such form."""
    if trained_on.spec.fits(spec, conditional=False):
        return trained_on.train
    if translation.obstacle(trained_on.spec, spec, conditional=False):
        return None
    return translation.translate(trained_on.train, trained_on.spec, spec)
