"""What a model was trained on, held against what judges it: what leaks, and what drifted since.

Added to a report folder: leakage.png or leakage.csv where there are pairs to show; drift.json and drift.png where the model
was trained on another version of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from remint.data import arrays
from remint.data.arrays import Dataset
from remint.errors import IntegrityError
from remint.evaluation import drift, leakage
from remint.evaluation import features as feature_step
from remint.evaluation.evidence import Evidence
from remint.evaluation.leakage import LeakageFindings
from remint.records import TrainedModel


@dataclass(frozen=True)
class Origin:
    """The data that a model was trained on, and what of the held-out split stands in them."""

    dataset: Dataset  # that the model is judged with
    trained_on: Dataset | None  # None: another version, which cannot be had
    found: LeakageFindings | None  # None where the two are not of one schema either

    @classmethod
    def of(cls, bundle: Path, dataset: Dataset, former: Path | None) -> Origin:
        """``former``: folder of the prepared data that the model was trained on, where they are not ``dataset``.

        Raises IntegrityError where they are not those that the model names.
        """
        digest = TrainedModel.read(bundle / "training.json").dataset
        if digest == dataset.version.digest:
            trained_on = dataset
        elif former is None:
            return cls(dataset, None, None)
        else:
            trained_on = arrays.load(former)
            if trained_on.version.digest != digest:
                raise IntegrityError(f"{former} is dataset version {trained_on.version.digest[:12]}, not {digest[:12]}")
        fits = trained_on.spec.fits(dataset.spec, conditional=False)
        found = leakage.find(dataset.held_out, trained_on.train, dataset.spec) if fits else None
        return cls(dataset, trained_on, found)

    def sealed(self, evidence: Evidence) -> Evidence:
        """The evidence with what leaks in its report."""
        found = self.found.leakage if self.found else None
        return replace(evidence, report=evidence.report.model_copy(update={"leakage": found}))

    def write(self, features: Path | None, out: Path) -> None:
        """The pictures, and the drift; its distance with the extractor of today's data, where there is one (``features``)."""
        if self.trained_on is None:
            return
        if self.found is not None:
            leakage.write(self.found, self.dataset.held_out, self.trained_on.train, self.dataset.spec, out)
        if self.trained_on is not self.dataset:
            extractor = feature_step.load(features) if features else None
            found = drift.of(self.trained_on, self.dataset, extractor, extractor.sha256 if extractor else "")
            drift.write(found, self.trained_on, self.dataset, out)
