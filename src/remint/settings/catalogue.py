"""Table of the metrics: needs, features, direction and unit. The modules in evaluation/ measure them.

The table is separate so that params.yaml can be checked without torch. Metrics of samples are measured in features, named by
the suffix: ``_domain``: of the dataset itself, ``_inception``: of the 2015 Inception network, ``_program``: of a torch.export
program. Only the Frechet distance in Inception features is called ``fid``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Need = Literal["log_prob", "elbo", "sample", "classes", "score"]
Features = Literal["domain", "inception", "program"]
Better = Literal["lower", "higher"]

FEATURES: tuple[Features, ...] = ("domain", "inception", "program")


@dataclass(frozen=True)
class Facts:
    """Facts of one metric."""

    needs: Need  # a protocol of models/contract.py, as ModelSettings.can names it; classes: samples given the class; score: any
    features: Features | None = None  # in which it is measured
    better: Better = "lower"
    in_unit: bool = False  # whether its values are in the data's unit (records.DataSpec.unit)
    default: bool = False  # whether it is measured if ``metrics:`` is absent and the model has ``needs``
    costly: bool = False  # whether it is a default only where a rule of promotion names it
    module: str = ""  # module in remint.evaluation that measures it; empty for a plug-in, which measures itself


def in_features(metric: str, features: Features) -> str:
    """Return the name of a sample metric in these features."""
    special = {("fd", "inception"): "fid", ("fd_infinity", "inception"): "fid_infinity"}
    return special.get((metric, features), f"{metric}_{features}")


ANOMALY_METRICS = ("anomaly_auroc", "anomaly_average_precision")  # of examples that evaluation.anomalies names

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
    "iwae": Facts("elbo", in_unit=True, default=True, costly=True, module="likelihood"),
    "class_agreement": Facts("classes", "domain", better="higher", module="agreement"),
    "novelty": Facts("sample", better="higher", module="neighbours"),
    **{metric: Facts("score", better="higher", module="anomalies") for metric in ANOMALY_METRICS},
    **{
        in_features(metric, features): Facts(
            "sample", features, better, default=(metric, features) == ("fd", "domain"), module=module
        )
        for metric, (module, better) in _SAMPLES.items()
        for features in FEATURES
    },
}


def default_metrics(can: frozenset[str], ruled: Collection[str] = ()) -> list[str]:
    """Return the metrics to measure if params.yaml names none, for a model with these protocols.

    ``ruled``: metrics that rules of promotion name. A costly metric is measured only for them.
    """
    chosen = ((name, facts) for name, facts in METRICS.items() if facts.default and facts.needs in can)
    return [name for name, facts in chosen if not facts.costly or name in ruled]
