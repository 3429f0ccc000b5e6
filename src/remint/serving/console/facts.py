"""What the playground has to know of a served version."""

from __future__ import annotations

from typing import Any

from remint.models.contract import CanImpute, HasElbo, HasLatent, HasLogProb
from remint.serving.app.slot import Version


def facts(version: Version) -> dict[str, Any]:
    """Return the kind of its examples, its classes, and what it can do, for a script."""
    served = version.served
    spec, model = served.spec, served.model
    classes = list(spec.class_names) or [str(number) for number in range(spec.classes)]
    can = {
        "latents": isinstance(model, HasLatent),
        "impute": isinstance(model, CanImpute),
        "log_prob": isinstance(model, HasLogProb | HasElbo),
    }
    return {
        **version.about,
        "ref": f"{version.about['model']}/{version.number}",
        "shape": None if spec.is_table else list(spec.image),
        "levels": spec.levels,
        "columns": [column.name for column in spec.columns],
        "classes": classes if served.conditional else [],
        "latent_size": served.latent_size if can["latents"] else 0,
        "can": [name for name, able in can.items() if able],
    }
