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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import betabinom
from torch import Tensor

from remint.data.arrays import Split
from remint.evaluation import plots
from remint.records import DataSpec, Leakage
from remint.runtime.events import emit

TOLERANCE = 0.02  # largest RMS difference of a near copy, as a share of an image's range or of a column's standard deviation
# Tables: also a limit, as a share of the median neighbour distance, because with few columns all rows are near.
NEIGHBOUR_TOLERANCE = 0.1
NEIGHBOURS = 512  # training rows that this median is computed from
GRID = 8  # boxes along each side of an image
ASKED = 4096  # training rows that the share by chance is computed from
LEVEL, LEVEL_OF_NEAR = 0.009, 0.001  # probabilities that independent rows are refused for exact, and for exact and near, copies
BLOCK, WIDE, PAIRS = 1024, 8192, 2048  # held-out examples, training examples, and pairs in memory at a time
SHOWN = 16  # pairs in the picture

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LeakageFindings:
    """Copies of held-out examples in a training split, with their indices."""

    leakage: Leakage
    pairs: tuple[tuple[int, int], ...]  # held-out, training: exact ones first


def find(held_out: Split, train: Split, spec: DataSpec) -> LeakageFindings:
    """Find exact and near copies of held-out examples in the training split. Labels are ignored.

    Memory: P numbers per example, and full examples only a block at a time.
    """
    if held_out.id_N is not None and train.id_N is not None:
        return _find_by_id(held_out.id_N, train.id_N)
    digest_M = [content(x_X) for x_X in train.x_NX]
    place = {digest: index for index, digest in enumerate(digest_M)}
    exact = {index: place[digest] for index, digest in enumerate(map(content, held_out.x_NX)) if digest in place}
    others_N = np.setdiff1d(np.arange(len(held_out)), list(exact))
    metric = _Rows(spec, train) if spec.is_table else _Images(spec)
    near = _near(held_out.x_NX, others_N, train.x_NX, metric)
    count = len(held_out)
    equal = alike = _Chance(0.0, 1, count)
    if isinstance(metric, _Rows):
        equal, alike = _by_chance(train.x_NX, digest_M, metric, count)
    leakage = Leakage(
        checked=count,
        exact=len(exact),
        near=len(near),
        tolerance=metric.criterion,
        chance=alike.share,
        least=equal.least / count,
        beyond=max(equal.beyond(len(exact)), alike.beyond(len(exact) + len(near))),
    )
    if leakage.share:
        emit("leakage", exact=len(exact), near=len(near), checked=len(held_out))
    return LeakageFindings(leakage, (*sorted(exact.items()), *sorted(near.items())))


def _find_by_id(id_N: Array, id_M: Array) -> LeakageFindings:
    """Find the same rows in data whose rows repeat: those with equal content and occurrence."""
    _, index_N, index_M = np.intersect1d(id_N, id_M, return_indices=True)
    leakage = Leakage(checked=len(id_N), exact=len(index_N), near=0, tolerance="rows of equal values and occurrence", beyond=None)
    if leakage.share:
        emit("leakage", exact=leakage.exact, near=0, checked=leakage.checked)
    return LeakageFindings(leakage, tuple(sorted(zip(index_N.tolist(), index_M.tolist(), strict=True))))


def write(found: LeakageFindings, held_out: Split, train: Split, spec: DataSpec, out: Path) -> None:
    """Write the first pairs, if there are any: leakage.png, held-out and training images side by side, or leakage.csv."""
    if not found.pairs:
        return
    pairs = np.array(found.pairs[:SHOWN])
    x_NX = np.stack([held_out.x_NX[pairs[:, 0]], train.x_NX[pairs[:, 1]]], axis=1).reshape(-1, *spec.shape)
    if not spec.is_table:
        title = f"{len(found.pairs)} held-out images, each with its training image to the right"
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


def _by_chance(x_MX: Array, digest_M: list[bytes], rows: _Rows, count: int) -> tuple[_Chance, _Chance]:
    """Return what chance gives of exact copies, and of exact and near ones, among ``count`` held-out rows.

    The share is that of training rows, of at most ASKED, that have a copy among the others. Given these, the share of
    independent rows has a beta law (Jeffreys' prior), and their count a beta-binomial one. Copies come in pairs, so rows are
    taken for half as many independent observations.
    """
    asked = np.unique(np.linspace(0, len(x_MX) - 1, num=min(len(x_MX), ASKED)).astype(np.int64))
    times = Counter(digest_M)
    alone = np.array([m for m in asked if times[digest_M[m]] == 1], dtype=np.int64)
    equal = len(asked) - len(alone)
    found = []
    for copied, level in ((equal, LEVEL), (equal + len(_near(x_MX, alone, x_MX, rows)), LEVEL_OF_NEAR)):
        law = betabinom(count, copied / 2.0 + 0.5, (len(asked) - copied) / 2.0 + 0.5)
        at_least_K = law.sf(np.arange(-1, count))  # probability of at least K copies, K = 0, 1, .. count
        found.append(_Chance(copied / len(asked), int((at_least_K > level).sum()), count))
    return found[0], found[1]


def _median_neighbour(rows: _Rows, train: Split) -> float | None:
    """Return the median distance of evenly spaced training rows to their nearest unequal row; None if all rows are equal."""
    chosen = np.unique(np.linspace(0, len(train) - 1, num=min(len(train), NEIGHBOURS)).astype(np.int64))
    from_BP = torch.from_numpy(rows.full(train.x_NX[chosen]))
    nearest_B = torch.full((len(chosen),), torch.inf, dtype=torch.float64)
    for at in range(0, len(train), WIDE):
        apart_BM = torch.cdist(from_BP, torch.from_numpy(rows.full(train.x_NX[at : at + WIDE])))
        nearest_B = torch.minimum(nearest_B, apart_BM.masked_fill_(apart_BM < 1e-6, torch.inf).amin(dim=1))
    found_B = nearest_B[nearest_B.isfinite()]
    return float(found_B.median()) if len(found_B) else None


def _near(x_NX: Array, others_N: Array, x_MX: Array, metric: _Images | _Rows) -> dict[int, int]:
    """Return, for each of ``others_N`` with near copies among x_MX, the index of the nearest. A row is no copy of itself."""
    if not len(others_N):
        return {}
    p_MP = _reduced(x_MX, np.arange(len(x_MX)), metric)
    p_NP = _reduced(x_NX, others_N, metric)
    centre_P = p_MP.mean(dim=0)
    p_MP, p_NP = p_MP - centre_P, p_NP - centre_P
    axis_P = torch.linalg.eigh((p_MP.T @ p_MP).double()).eigenvectors[:, -1].to(p_MP.dtype)
    (p_NP, along_N, order_N), (p_MP, along_M, order_M) = _sorted(p_NP, axis_P), _sorted(p_MP, axis_P)
    nearest: dict[int, tuple[float, int]] = {}
    for i_B, j_B in _candidates(p_NP, along_N, p_MP, along_M, metric.limit):
        left, right = others_N[order_N[i_B]], order_M[j_B]
        if x_NX is x_MX:
            left, right = left[left != right], right[left != right]
        apart_B = np.sqrt(((metric.full(x_NX[left]) - metric.full(x_MX[right])) ** 2).sum(axis=1))
        for held_out, training, apart in zip(left.tolist(), right.tolist(), apart_B.tolist(), strict=True):
            if apart <= metric.limit and (apart, training) < nearest.get(held_out, (np.inf, -1)):
                nearest[held_out] = (apart, training)
    return {held_out: training for held_out, (_, training) in nearest.items()}


def _reduced(x_NX: Array, chosen_N: Array, metric: _Images | _Rows) -> Tensor:
    blocks = [metric.reduced(x_NX[chosen_N[at : at + BLOCK]]) for at in range(0, len(chosen_N), BLOCK)]
    return torch.from_numpy(np.concatenate(blocks))


def _sorted(p_NP: Tensor, axis_P: Tensor) -> tuple[Tensor, Array, Array]:
    """Sort projections by their coordinate on an axis; return projections, coordinates and order."""
    along_N = p_NP @ axis_P
    order_N = torch.argsort(along_N, stable=True)
    return p_NP[order_N], along_N[order_N].numpy(), order_N.numpy()


def _candidates(p_NP: Tensor, along_N: Array, p_MP: Tensor, along_M: Array, limit: float) -> Iterator[tuple[Array, Array]]:
    """Yield blocks of pairs, as indices in the two sorted lists: all pairs within ``limit``, and few others."""
    square_N, square_M = p_NP.square().sum(dim=1), p_MP.square().sum(dim=1)
    # |a|^2 + |b|^2 - 2 a b loses digits if a and b are long: ``slack`` allows for this error.
    slack = 16.0 * torch.finfo(p_NP.dtype).eps * float(square_N.max() + square_M.max())
    reach = limit + slack**0.5
    for at in range(0, len(p_NP), BLOCK):
        rows = slice(at, at + BLOCK)
        first, last = np.searchsorted(along_M, [along_N[rows][0] - reach, along_N[rows][-1] + reach])
        for start in range(int(first), int(last), WIDE):
            columns = slice(start, min(start + WIDE, int(last)))
            apart_BM = torch.addmm(square_M[columns], p_NP[rows], p_MP[columns].T, alpha=-2.0)
            i_B, j_B = (apart_BM <= (limit**2 + slack - square_N[rows, None])).nonzero().T.numpy()
            for chunk in range(0, len(i_B), PAIRS):
                yield i_B[chunk : chunk + PAIRS] + at, j_B[chunk : chunk + PAIRS] + start
