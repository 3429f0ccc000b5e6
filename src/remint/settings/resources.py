"""Work pools of a pipeline's steps. The block resources: of a pipeline."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from remint.runtime.home import is_name
from remint.settings.base import Settings

PLACED = ("features", "train", "calibrate", "evaluate")  # steps that may run elsewhere


class Pool(Settings):
    """Work pool of Prefect. A name alone means {pool: NAME}."""

    pool: str
    variables: dict[str, Any] = {}  # job variables of the pool's type: {image: .., gpus: 2}

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, given: Any) -> Any:
        block = {"pool": given} if isinstance(given, str) else given
        if not isinstance(block, dict | Pool):
            raise ValueError(f"expected the name of a work pool, or {{pool: .., variables: {{..}}}}, not {given!r}")
        name = block.get("pool") if isinstance(block, dict) else None
        if isinstance(name, str) and not is_name(name):
            raise ValueError(f"expected the name of a work pool: letters, digits, '.', '_' and '-', not {name[:100]!r}")
        return block


class ResourceSettings(Settings):
    """Work pools of Prefect on which a pipeline's steps run. A step without one runs in the process of the retraining."""

    default: Pool | None = None  # of the retraining itself, where remint deploy starts it; null: remint, the pool of remint up
    features: Pool | None = None  # of the step that learns features for Frechet distances
    train: Pool | None = None  # of the training
    calibrate: Pool | None = None  # of the scores of the calibration split
    evaluate: Pool | None = None  # of the measurement of a new version

    def elsewhere(self, step: str) -> Pool | None:
        """Return the pool of a step that does not run in the process of the retraining."""
        pool: Pool | None = getattr(self, step) if step in PLACED else None
        return None if pool is None or pool == self.default else pool

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools of steps that run elsewhere, by the step."""
        return {step: pool for step in PLACED if (pool := self.elsewhere(step)) is not None}
