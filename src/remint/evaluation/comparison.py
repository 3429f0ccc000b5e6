"""Records of the side-by-side comparison of models (promotion/side_by_side.py)."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from remint.records import MetricValue, Record

SIZE: Final = "size"  # the sides of images or the columns of a table grow
COUNT: Final = "examples"  # the number of drawn or scored examples grows


class Cost(Record):
    """Quality of one model, and the cost of drawing and scoring."""

    model: str  # NAME/7
    family: str
    dataset: str
    dataset_version: str  # digest of the DatasetVersion
    examples: str  # DataSpec.text()
    metrics: dict[str, MetricValue]
    draw: MetricValue | None  # seconds of 1,000; None: the model cannot sample
    score: MetricValue | None
    parameters: int
    bytes: int  # of the weights


class Growth(Record):
    """One model at one size of the examples, or for one count of them."""

    model: str  # NAME/7
    family: str
    grows: Literal["size", "examples"]  # SIZE, COUNT
    value: int
    shape: tuple[int, ...]
    parameters: int | None  # None: the family cannot be built so large
    unavailable_reason: str = Field(serialization_alias="why_not")  # why it cannot be built; "": it can
    draw: MetricValue | None = None  # seconds; None: not possible, or too slow to measure
    score: MetricValue | None = None
