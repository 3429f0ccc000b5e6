"""Evidence of an evaluation: the report and the values of each metric, on disk and in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from remint.errors import IntegrityError
from remint.records import EvaluationReport

ON_CALIBRATION = "_calibration"  # end of the name of a likelihood on the calibration split, in EvaluationReport.context
PART = "part.json"  # beside the evidence on a part of the held-out examples: how many are described, and of how many


@dataclass(frozen=True)
class Evidence:
    """A report with the values of each metric: one per example, or one per repeated draw."""

    report: EvaluationReport
    values: Mapping[str, np.ndarray]  # by metric name, float64, shape (n,)

    def save(self, folder: Path) -> None:
        """Write report.json and values.npz. The report contains the digest of the values."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "values.npz", allow_pickle=False, **{k: self.values[k] for k in sorted(self.values)})
        sealed = self.report.model_copy(update={"values_sha256": values_digest(self.values)})
        sealed.write(folder / "report.json")

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Read the evidence of ``folder``. Raises IntegrityError if the values do not match the digest in the report."""
        report = EvaluationReport.read(folder / "report.json")
        with np.load(folder / "values.npz", allow_pickle=False) as archive:
            values = {name: archive[name] for name in archive.files}
        if values_digest(values) != report.values_sha256:
            raise IntegrityError(f"{folder}/values.npz does not match the digest in report.json: evaluate again")
        return cls(report, values)


def values_digest(values: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of names, shapes and bytes, in the order of the names. (A zip file's bytes contain timestamps.)"""
    state = hashlib.sha256()
    for name in sorted(values):
        array = values[name]
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()
