"""Parts and groups of images, from their paths: ``split.held_out`` of one source, and ``split.group``.

Shapes: N images.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from remint.data import folder, splits
from remint.data.values import Raw
from remint.errors import DataError
from remint.settings.split import SplitSettings

Array = np.ndarray[Any, Any]


def part(name: str, wanted: str, raw: Raw) -> Array:
    """Return a mask of the images in one part of the source, bool (N,): in a folder, or in the IDX files of that name."""
    paths = folder.split_paths(raw.names)
    apart_N = np.array([path[0] == wanted and len(path) > 1 for path in paths])
    if not apart_N.any():
        found = ", ".join(sorted({path[0] for path in paths if len(path) > 1})) or "none"
        raise DataError(
            f"params.yaml: datasets.{name}.split.held_out: {raw.where} has no part '{wanted}' (its parts: {found}): correct it; "
            f"a source of its own is written as a path, such as ./{wanted}"
        )
    return apart_N


def groups(name: str, split: SplitSettings, pattern: str, raw: Raw) -> Array:
    """Return the hash of each image's group, uint64 (N,): of the part of its path that the pattern's group matches."""
    key = f"params.yaml: datasets.{name}.split.group"
    if not raw.names:
        raise DataError(f"{key}: {raw.where} has no paths of images: use a folder or an archive of image files, or remove it")
    found = [re.search(pattern, path) for path in raw.names]
    group_N = [match[1] for match in found if match and match[1]]
    if len(group_N) < len(found):
        path = next(path for path, match in zip(raw.names, found, strict=True) if not (match and match[1]))
        count = len(found) - len(group_N)
        raise DataError(
            f"{key}: {raw.where}: '{pattern}' finds no group in {count} of {len(found)} paths, such as {path}: correct it"
        )
    return splits.group_words(key, split, group_N)
