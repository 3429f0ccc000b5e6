"""Leakage: held-out examples that are also in the training split. A model scores too well on examples that it has seen.

    exact   the same decoded array, by its digest
    near    not the same, but the root-mean-square difference to a training example is within a tolerance

An example's split is a function of its content (data/splits.py), so one dataset version has no exact copies in two splits,
unless split.group or split.time divide it. This check verifies that. It also finds near copies, whose content and therefore
split may differ, and copies in the training split of a champion that was trained on another version or with another split.

Rows of a narrow table repeat by chance. The training split itself tells how often: the share of its rows that have a copy
among its other rows is the share of independent rows that would have one. Only copies beyond that count, where there are more
than chance gives with a probability of LEVEL.

The search finds all near copies. The sums over the boxes of a grid of at most 8 x 8, each divided by the square root of its
number of pixels, are an orthogonal projection of an image: projected distances are never above image distances. So the
search looks for near pairs of projections, sorted along their axis of greatest variance, and compares these in full.

Shapes: N held-out examples, M training examples, X the axes of one example, P numbers that pairs are sought by, B block.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import betabinom

from remint.data.arrays import Split
from remint.data.sampler import spaced_indices
from remint.evaluation import near_copies, plots
from remint.records import DataSpec, Leakage
from remint.runtime.events import emit

TOLERANCE = 0.02  # largest RMS difference of a near copy, as a share of an image's range or of a column's standard deviation
# Tables: also a limit, as a share of the median neighbour distance, because with few columns all rows are near.
NEIGHBOUR_TOLERANCE = 0.1
NEIGHBOURS = 512  # training rows that this median is computed from
GRID = 8  # boxes along each side of an image
ASKED = 4096  # training rows that the share by chance is computed from
LEVEL, LEVEL_OF_NEAR = 0.009, 0.001  # probabilities that independent rows are refused for exact, and for exact and near, copies
DIGESTS, IDS = 2**18, 2**22  # held-out examples whose digests, and training examples whose ids, are in memory at a time
SHOWN, KEPT = 16, 10_000  # pairs in the picture; of exact and of near ones in the findings

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LeakageFindings:
    """Copies of held-out examples in a training split, with their indices."""

    leakage: Leakage
    pairs: tuple[tuple[int, int], ...]  # held-out, training: exact ones first, at most KEPT of each kind


def find(held_out: Split, train: Split, spec: DataSpec) -> LeakageFindings:
    """Find exact and near copies of held-out examples in the training split. Labels are ignored.

    Memory: three numbers per held-out example; everything else only for a part of the examples at a time.
    """
    if held_out.id_N is not None and train.id_N is not None:
        return _find_by_id(held_out.id_N, train.id_N)
    metric = _Rows(spec, train) if spec.is_table else _Images(spec)
    asked_B = spaced_indices(len(train), ASKED) if spec.is_table else np.empty(0, dtype=np.int64)
    exact_N, alone_B = _exact(held_out.x_NX, train.x_NX, asked_B)
    near_N = near_copies.near_copies(held_out.x_NX, np.flatnonzero(exact_N < 0), train.x_NX, metric)
    count, exact, near = len(held_out), int((exact_N >= 0).sum()), int((near_N >= 0).sum())
    equal = alike = _Chance(0.0, 1, count)
    if isinstance(metric, _Rows):
        equal, alike = _by_chance(train.x_NX, asked_B, alone_B, metric, count)
    leakage = Leakage(
        checked=count,
        exact=exact,
        near=near,
        tolerance=metric.criterion,
        chance=alike.share,
        least=equal.least / count,
        beyond=max(equal.beyond(exact), alike.beyond(exact + near)),
    )
    if leakage.share:
        emit("leakage", exact=exact, near=near, checked=count)
    return LeakageFindings(leakage, (*_pairs(exact_N), *_pairs(near_N)))


def _pairs(place_N: Array) -> list[tuple[int, int]]:
    """Return the first pairs of a held-out example and its training example; a negative place: it has none."""
    found = np.flatnonzero(place_N >= 0)[:KEPT]
    return list(zip(found.tolist(), place_N[found].tolist(), strict=True))


def _exact(x_NX: Array, x_MX: Array, asked_B: Array) -> tuple[Array, Array]:
    """Return the index of an equal example among x_MX for each of x_NX, or -1; and whether each of asked_B is alone there."""
    exact_N = np.full(len(x_NX), -1, dtype=np.int64)
    asked, times = [content(x_X) for x_X in x_MX[asked_B]], Counter[bytes]()
    for start in range(0, len(x_NX), DIGESTS):  # digests of a part of the held-out examples; all training examples go by
        places = defaultdict[bytes, list[int]](list)
        for index, x_X in enumerate(x_NX[start : start + DIGESTS], start):
            places[content(x_X)].append(index)
        counted = set(asked) if start == 0 else set()
        for training, x_X in enumerate(x_MX):
            digest = content(x_X)
            if digest in places:
                exact_N[places[digest]] = training
            if digest in counted:
                times[digest] += 1
    return exact_N, np.array([times[digest] == 1 for digest in asked], dtype=bool)


def _find_by_id(id_N: Array, id_M: Array) -> LeakageFindings:
    """Find the same rows in data whose rows repeat: those with equal content and occurrence."""
    sorted_N = np.sort(id_N)
    found = [np.flatnonzero(_among(id_M[at : at + IDS], sorted_N)) + at for at in range(0, len(id_M), IDS)]
    training = np.concatenate([*found, np.empty(0, dtype=np.int64)]).astype(np.int64)
    order = np.argsort(id_M[training])
    place_N = np.full(len(id_N), -1, dtype=np.int64)
    held_N = np.flatnonzero(_among(id_N, id_M[training][order]))
    place_N[held_N] = training[order][np.searchsorted(id_M[training][order], id_N[held_N])]
    leakage = Leakage(checked=len(id_N), exact=len(held_N), near=0, tolerance="rows of equal values and occurrence", beyond=None)
    if leakage.share:
        emit("leakage", exact=leakage.exact, near=0, checked=leakage.checked)
    return LeakageFindings(leakage, tuple(_pairs(place_N)))


def _among(value_N: Array, sorted_M: Array) -> Array:
    """Return which values are among the sorted ones, bool (N,)."""
    if not len(sorted_M):
        return np.zeros(len(value_N), dtype=bool)
    among_N: Array = sorted_M[np.searchsorted(sorted_M, value_N).clip(max=len(sorted_M) - 1)] == value_N
    return among_N


def write(found: LeakageFindings, held_out: Split, train: Split, spec: DataSpec, out: Path) -> None:
    """Write the first pairs, if there are any: leakage.png, held-out and training images side by side, or leakage.csv."""
    if not found.pairs:
        return
    pairs = np.array(found.pairs[:SHOWN])
    x_NX = np.stack([held_out.x_NX[pairs[:, 0]], train.x_NX[pairs[:, 1]]], axis=1).reshape(-1, *spec.shape)
    if not spec.is_table:
        title = f"{found.leakage.exact + found.leakage.near} held-out images, each with its training image to the right"
        plots.sample_grid(out / "leakage.png", x_NX, spec.levels, title, columns=min(8, len(x_NX)))
        return
    from remint.data import rows  # late import: images do not need pyarrow

    with (out / "leakage.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["split", *(column.name for column in spec.columns)])
        for index, x_D in enumerate(x_NX):
            writer.writerow(
                [
                    ("held_out", "train")[index % 2],
                    *(rows.text(column, x, 9) for column, x in zip(spec.columns, x_D, strict=True)),
                ]
            )


def content(x_X: Array) -> bytes:
    """Return the SHA-256 of an example's values. All NaN are equal, and -0.0 equals 0.0."""
    if x_X.dtype.kind == "f":
        x_X = np.where(np.isnan(x_X), np.float32(np.nan), x_X + np.float32(0.0))
    return hashlib.sha256(np.ascontiguousarray(x_X).tobytes()).digest()


class _Images:
    """Metric of images: Euclidean over all values, in levels."""

    def __init__(self, spec: DataSpec) -> None:
        _, *sides = spec.image
        self.rows, self.columns = (np.arange(min(GRID, side)) * side // min(GRID, side) for side in sides)
        sizes = [np.diff(starts, append=side) for starts, side in zip((self.rows, self.columns), sides, strict=True)]
        self.root = np.sqrt(np.outer(*sizes)).astype(np.float32)
        self.limit = TOLERANCE * (spec.levels - 1) * spec.dims**0.5
        self.criterion = f"root-mean-square difference of at most {TOLERANCE:.0%} of the range of values"

    def full(self, x_BX: Array) -> Array:
        return x_BX.reshape(len(x_BX), -1).astype(np.float64)

    def reduced(self, x_BX: Array) -> Array:
        """Return the projection of images x_BX onto the boxes, float32 (B, P)."""
        sums = np.add.reduceat(np.add.reduceat(x_BX.astype(np.float32), self.rows, axis=2), self.columns, axis=3)
        p_BP: Array = (sums / self.root).reshape(len(x_BX), -1)
        return p_BP


class _Rows:
    """Metric of rows: standardised numbers. Rows that differ in a category or in a missing value are never near."""

    def __init__(self, spec: DataSpec, train: Split) -> None:
        self.numeric_D = np.array([column.numeric for column in spec.columns])
        numbers = max(1, int(self.numeric_D.sum()))
        self.limit = TOLERANCE * numbers**0.5
        self.apart = 2.0 * self.limit
        typical = _median_neighbour(self, train)
        self.limit = min(self.limit, NEIGHBOUR_TOLERANCE * typical) if typical is not None else self.limit
        self.criterion = (
            f"equal categories, and a root-mean-square difference of the numbers of at most {self.limit / numbers**0.5:.2g} "
            f"standard deviations ({TOLERANCE:g}, or {NEIGHBOUR_TOLERANCE:g} of the median neighbour distance if that is less)"
        )

    def full(self, x_BX: Array) -> Array:
        missing_BD = np.isnan(x_BX)
        known_BD = np.where(missing_BD, 0.0, x_BX.astype(np.float64))
        return np.concatenate([np.where(self.numeric_D, known_BD, known_BD * self.apart), missing_BD * self.apart], axis=1)

    reduced = full


@dataclass(frozen=True)
class _Chance:
    """Copies that independent examples would give: their share, and the least count that is too many for chance."""

    share: float
    least: int
    checked: int

    def beyond(self, copies: int) -> float:
        """Return the share of held-out examples that chance does not explain."""
        return max(0.0, copies / self.checked - self.share) if copies >= self.least else 0.0


def _by_chance(x_MX: Array, asked_B: Array, alone_B: Array, rows: _Rows, count: int) -> tuple[_Chance, _Chance]:
    """Return what chance gives of exact copies, and of exact and near ones, among ``count`` held-out rows.

    The share is that of training rows, of at most ASKED, that have a copy among the others. Given these, the share of
    independent rows has a beta law (Jeffreys' prior), and their count a beta-binomial one. Copies come in pairs, so rows are
    taken for half as many independent observations.
    """
    equal = len(asked_B) - int(alone_B.sum())
    alike = equal + int((near_copies.near_copies(x_MX, asked_B[alone_B], x_MX, rows) >= 0).sum())
    found = []
    for copied, level in ((equal, LEVEL), (alike, LEVEL_OF_NEAR)):
        law = betabinom(count, copied / 2.0 + 0.5, (len(asked_B) - copied) / 2.0 + 0.5)
        at_least_K = law.sf(np.arange(-1, count))  # probability of at least K copies, K = 0, 1, .. count
        found.append(_Chance(copied / len(asked_B), int((at_least_K > level).sum()), count))
    return found[0], found[1]


def _median_neighbour(rows: _Rows, train: Split) -> float | None:
    """Return the median distance of evenly spaced training rows to their nearest unequal row; None if all rows are equal."""
    chosen = spaced_indices(len(train), NEIGHBOURS)
    from_BP = torch.from_numpy(rows.full(train.x_NX[chosen]))
    nearest_B = torch.full((len(chosen),), torch.inf, dtype=torch.float64)
    for at in range(0, len(train), near_copies.WIDE):
        apart_BM = torch.cdist(from_BP, torch.from_numpy(rows.full(train.x_NX[at : at + near_copies.WIDE])))
        nearest_B = torch.minimum(nearest_B, apart_BM.masked_fill_(apart_BM < 1e-6, torch.inf).amin(dim=1))
    found_B = nearest_B[nearest_B.isfinite()]
    return float(found_B.median()) if len(found_B) else None
