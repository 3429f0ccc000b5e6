"""What each metric asks for and what its numbers mean, the one table of it. Its module in evaluation/ measures it.

It stands apart so that params.yaml is checked against it without torch. Metrics of samples are measured in features, and
their names say in which: ``_domain`` of the dataset itself, ``_inception`` of the 2015 Inception network, ``_program`` of a
torch.export program. Only the Frechet distance in Inception's features is called ``fid``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Need = Literal["log_prob", "elbo", "sample", "classes"]
Features = Literal["domain", "inception", "program"]
Better = Literal["lower", "higher"]

FEATURES: tuple[Features, ...] = ("domain", "inception", "program")


@dataclass(frozen=True)
class Facts:
    """One metric."""

    needs: Need  # a protocol of models/contract.py, as ModelSettings.can names it; classes: samples of a conditional model
    features: Features | None = None  # that it is measured in
    better: Better = "lower"
    in_unit: bool = False  # whether it is in the data's unit (records.DataSpec.unit)
    default: bool = False  # whether it is measured where ``metrics:`` is left out and the model has what it needs
    module: str = ""  # of remint.evaluation that measures it; of a plug-in: its own


def in_features(metric: str, features: Features) -> str:
    """The name of a metric of samples in these features."""
    special = {("fd", "inception"): "fid", ("fd_infinity", "inception"): "fid_infinity"}
    return special.get((metric, features), f"{metric}_{features}")


_SAMPLES: dict[str, tuple[str, Better]] = {
    "fd": ("distance", "lower"),
    "fd_infinity": ("distance", "lower"),
    "kid": ("kernel", "lower"),
    "precision": ("neighbours", "higher"),
    "recall": ("neighbours", "higher"),
    "density": ("neighbours", "higher"),
    "coverage": ("neighbours", "higher"),
}

METRICS: dict[str, Facts] = {
    "nll": Facts("log_prob", in_unit=True, default=True, module="likelihood"),
    "elbo": Facts("elbo", in_unit=True, default=True, module="likelihood"),
    "iwae": Facts("elbo", in_unit=True, default=True, module="likelihood"),
    "class_agreement": Facts("classes", "domain", better="higher", module="agreement"),
    "novelty": Facts("sample", better="higher", module="neighbours"),
    **{
        in_features(metric, features): Facts(
            "sample", features, better, default=(metric, features) == ("fd", "domain"), module=module
        )
        for metric, (module, better) in _SAMPLES.items()
        for features in FEATURES
    },
}


def by_default(can: frozenset[str]) -> list[str]:
    """What is measured of a model that has these protocols where params.yaml names no metrics."""
    return [name for name, facts in METRICS.items() if facts.default and facts.needs in can]
