"""Settings of a dataset: its source, how examples are read, and the split."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from remint.settings.base import Fraction, Positive, Settings
from remint.settings.split import SplitSettings, check_source

SIZES = ("size", "image_size", "img_size", "resolution")  # names of resize.size in other programs
Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest", "pad"]


class ResizeSettings(Settings):
    """Common size of all images. Each is cropped around its centre to this aspect ratio and resampled, or padded with zeros."""

    size: list[Positive] = Field(min_length=2, max_length=2)  # H, W
    filter: Filter = "lanczos"  # lanczos, bicubic, bilinear, box, nearest: as in Pillow; pad: zeros around, no resampling


class DatasetSettings(Settings):
    """One entry of ``datasets:``."""

    source: str  # sklearn:NAME | a folder | file.npy/.npz/.csv/.parquet/.zip/.tar/.tar.gz | idx:FOLDER | s3://bucket/prefix
    kind: Literal["image", "table"] = "image"
    shape: list[Positive] | None = Field(
        default=None, min_length=3, max_length=3
    )  # images: C, H, W that all have already; to change the size: resize
    levels: Annotated[int, Field(ge=2, le=256)] | None = None  # pixel values are 0 .. levels-1; None: as in the source
    bits: Annotated[int, Field(ge=8, le=16)] | None = None  # of image values in 16 bits; None: as the range of all shows
    channels: Literal[1, 3] | None = None  # 1: convert image files to grey, 3: to RGB; None: unchanged, all must be alike
    resize: ResizeSettings | None = None  # images; None: all must have one size already
    undecodable: Fraction = 0.01  # largest share of image files that may be set aside as broken
    label: str | None = None  # tables: the class column; None: no classes (sklearn: its target)
    categorical: list[str] = []  # tables: integer columns that are categories; text columns always are
    numeric: list[str] = []  # tables: columns of numbers, whatever they look like: an index, codes, $1,234.50, shares in %
    drop: list[str] = []  # tables: columns to leave out
    missing: Literal["keep", "drop_rows"] = "keep"  # tables: keep or drop rows with missing values
    placeholders: list[str] | None = None  # tables: cells that are missing values, beside empty ones; None: NA, null, - and so on
    schema_version: Positive = 1  # raise by one: the next import learns a new schema instead of refusing data that does not fit
    split: SplitSettings = SplitSettings()

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, block: Any) -> Any:
        """Refuse a size of images that is not in ``resize.size``, with the line that is meant."""
        for key, value in block.items() if isinstance(block, dict) else ():
            size = [value, value] if type(value) is int else value
            is_size = isinstance(size, list) and [type(each) for each in size] == [int, int]
            if key in SIZES or (key in ("shape", "resize") and is_size):
                raise ValueError(f"key '{key}': did you mean 'resize: {{size: {size if is_size else '[H, W]'}}}'?")
        return block

    _check_source = field_validator("source")(check_source)

    @property
    def sources(self) -> dict[str, str]:
        """All sources, by their key below ``datasets.NAME``."""
        return {"source": self.source} | ({} if self.split.source is None else {"split.held_out": self.split.source})

    @model_validator(mode="after")
    def _check_kind(self) -> DatasetSettings:
        others = {
            "image": ("label", "categorical", "numeric", "drop", "missing", "placeholders"),
            "table": ("shape", "levels", "bits", "channels", "resize"),
        }
        for key in others[self.kind]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} does not apply to kind: {self.kind}: remove it, or correct kind")
        return self

    @model_validator(mode="after")
    def _check_split(self) -> DatasetSettings:
        group, time = self.split.group, self.split.time
        if time is not None and self.kind == "image":
            raise ValueError("split.time does not apply to kind: image: remove it, or correct kind")
        if self.split.part is not None and self.kind == "table":
            raise ValueError(
                f"split.held_out: a table has no part '{self.split.part}': name a file, such as data/{self.split.part}.csv"
            )
        if self.split.stratify and self.kind == "table" and self.label is None and not self.source.startswith("sklearn:"):
            raise ValueError("split.stratify needs classes: name their column in label, or remove it")
        if group is not None and self.kind == "image":
            try:
                count = re.compile(group).groups
            except re.error as error:
                raise ValueError(f"split.group: {group!r} is not a regular expression ({error}): correct it") from None
            if count != 1:
                raise ValueError(
                    f"split.group: {group!r} has {count} groups: put one part of the path into parentheses, as in '(.*)/[^/]*'"
                )
        elif self.label is not None and self.label in (group, time):
            raise ValueError(
                f"split: '{self.label}' is the label, and some classes would be in one split only: name another column"
            )
        return self
