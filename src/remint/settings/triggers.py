"""Triggers of a retraining besides the schedule: new data, and drift. The block triggers: of a pipeline."""

from __future__ import annotations

from pydantic import field_validator, model_validator

from remint.settings.base import SECONDS, Settings, seconds_of

UNITS = "smhdw"
LEAST_WATCH, LEAST_MONITOR = SECONDS["m"], SECONDS["h"]  # a check takes about as long at most
LONGEST = 365 * SECONDS["d"]


def _seconds(duration: str) -> int:
    """Return a duration in seconds. Raises ValueError if it is none."""
    seconds = seconds_of(duration, UNITS)
    if seconds is None:
        raise ValueError(f"expected a duration, such as 15m, 12h or 3d, not {duration[:100]!r}")
    return seconds


class DataTrigger(Settings):
    """Retraining when the files or objects of the dataset's sources changed."""

    every: str = "15m"  # time between two looks at the names, sizes and times of the source: at least 1m, at most 365d

    @field_validator("every")
    @classmethod
    def _check_every(cls, every: str) -> str:
        if _seconds(every) < LEAST_WATCH:
            raise ValueError(f"expected at least 1m, not {every}: a look may take longer than that")
        if _seconds(every) > LONGEST:
            raise ValueError(f"expected at most 365d, not {every}: new data would wait for longer than a year")
        return every

    @property
    def seconds(self) -> int:
        return _seconds(self.every)


class DriftTrigger(Settings):
    """Retraining when today's data drifted from the data that the champion was trained on (remint monitor)."""

    every: str = "1d"  # time between two checks: at least 1h
    cooldown: str = "3d"  # no new alarm for so long after an alarm: at least every, at most 365d

    @field_validator("every")
    @classmethod
    def _check_every(cls, every: str) -> str:
        if _seconds(every) < LEAST_MONITOR:
            raise ValueError(f"expected at least 1h, not {every}: a check prepares the data and measures the champion on them")
        return every

    @field_validator("cooldown")
    @classmethod
    def _check_cooldown(cls, cooldown: str) -> str:
        if _seconds(cooldown) > LONGEST:
            raise ValueError(f"expected at most 365d, not {cooldown}: drift would go unnoticed for longer than a year")
        return cooldown

    @model_validator(mode="after")
    def _check_order(self) -> DriftTrigger:
        if self.rest < self.seconds:
            default = "" if "cooldown" in self.model_fields_set else ", the default,"
            raise ValueError(f"cooldown: {self.cooldown}{default} is shorter than every, {self.every}: raise it")
        return self

    @property
    def seconds(self) -> int:
        return _seconds(self.every)

    @property
    def rest(self) -> int:
        """Seconds of the cooldown."""
        return _seconds(self.cooldown)


class TriggerSettings(Settings):
    """Events that start a retraining, with or without a schedule. They are checked by remint deploy's flows."""

    data_changed: DataTrigger | None = None  # None: changed data start nothing; {} is every 15 minutes
    drift: DriftTrigger | None = None  # None: drift starts nothing; {} is once a day

    @property
    def on(self) -> bool:
        """Whether anything starts a retraining."""
        return self.data_changed is not None or self.drift is not None
