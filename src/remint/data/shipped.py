"""Datasets shipped with scikit-learn, read from its files: importing sklearn.datasets takes two seconds."""

from __future__ import annotations

import gzip
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np

from remint.data.blocks import Blocks
from remint.data.values import Raw

TARGET = "target"  # class column of sklearn's tables


def _file(name: str) -> Path:
    return Path(str(importlib.metadata.distribution("scikit-learn").locate_file(f"sklearn/datasets/data/{name}")))


def digits() -> Raw:
    """Read the 1,797 handwritten digits of scikit-learn (8 x 8, 17 levels; Alpaydin & Kaynak, UCI, 1998)."""
    with gzip.open(_file("digits.csv.gz"), "rt") as stream:
        table = np.loadtxt(stream, delimiter=",")
    x, y = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]
    return Raw(where="sklearn:digits", x=Blocks.of(x), y=y, levels=17, channels_first=True)


_SIZE, _FORM = (
    ("radius", "texture", "perimeter", "area"),
    ("smoothness", "compactness", "concavity", "concave_points", "symmetry"),
)
_CELL = (*_SIZE, *_FORM, "fractal_dimension")

# file and columns of each table: Wolberg, Mangasarian, Street & Street, 1993; Forina et al., 1988; Fisher, 1936 (all UCI)
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sklearn:breast_cancer": (
        "breast_cancer.csv",
        tuple(f"{how}_{what}" for how in ("mean", "error", "worst") for what in _CELL),
    ),
    "sklearn:wine": (
        "wine_data.csv",
        (
            "alcohol",
            "malic_acid",
            "ash",
            "alcalinity_of_ash",
            "magnesium",
            "total_phenols",
            "flavanoids",
            "nonflavanoid_phenols",
            "proanthocyanins",
            "color_intensity",
            "hue",
            "od280/od315_of_diluted_wines",
            "proline",
        ),
    ),
    "sklearn:iris": ("iris.csv", ("sepal_length", "sepal_width", "petal_length", "petal_width")),
}
IMAGES: dict[str, Callable[[], Raw]] = {"sklearn:digits": digits}


def table(source: str) -> tuple[Path, list[str], tuple[str, ...]]:
    """Return a table's file (a line of counts and class names, then rows without a header), its columns and class names."""
    name, columns = TABLES[source]
    path = _file(name)
    with path.open() as stream:
        _, _, *class_names = stream.readline().strip().split(",")
    return path, [*columns, TARGET], tuple(class_names)
