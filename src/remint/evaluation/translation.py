"""Model of another schema, measured on the examples that both schemas can describe.

A raised ``schema_version`` learns new categories, means and scales. A model of the former schema does not fit then. Its examples
are translated by the names of columns, categories and classes, and its densities get the Jacobian of the new scales:

    log p(x) = log p'(x') + sum over the observed real-valued columns of log(scale / scale')

A model of the present schema also expects the new categories. On the examples that both can describe it is taken given that it
draws such an example: log p(x | D) = log p(x) - log P(D). Otherwise it would look worse for what it knows more.

Shapes: N examples, B batch, D columns, K importance samples.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from remint.data.arrays import Dataset, Split
from remint.errors import DataError, RunError
from remint.models.contract import CanSample, HasElbo, HasLogProb, Model, standard_normal
from remint.records import Column, DataSpec, TrainedModel, digest

BLOCK, DRAWS = 512, 8192  # samples drawn at a time, and in all, to measure P(D)
MOST_TRIES = 2048  # at a time only of the rows that are left: one in 100 can be drawn


def obstacle(theirs: DataSpec, ours: DataSpec, *, conditional: bool) -> str:
    """Return why a model of data ``theirs`` can describe no example of data ``ours``; "" if it can describe some."""
    if (theirs.is_table, theirs.levels) != (ours.is_table, ours.levels) or (not ours.is_table and theirs.shape != ours.shape):
        return f"it draws {theirs.text()}, and the data are {ours.text()}"
    if theirs.bits != ours.bits:
        read = [f"{spec.bits or 16} bits" for spec in (theirs, ours)]
        return f"16-bit values were read as {read[0]}, and are now read as {read[1]}"
    if conditional and (gone := [name for name in _classes(theirs) if name not in _classes(ours)]):
        return f"class {', '.join(gone)} is gone"
    former, present = ({column.name: column for column in spec.columns} for spec in (theirs, ours))
    changes = {name: "is new" for name in present if name not in former}
    changes |= {name: _change(column, present[name]) if name in present else "is gone" for name, column in former.items()}
    return "; ".join(f"column '{name}' {change}" for name, change in changes.items() if change)


def _change(former: Column, present: Column) -> str:
    """Return why values of one column cannot be translated; "" if they can."""
    if former.numeric != present.numeric:
        return "was numeric, is categorical" if former.numeric else "was categorical, is numeric"
    if former.whole != present.whole:
        return "was real-valued, holds whole numbers" if present.whole else "held whole numbers, is real-valued"
    if gone := [name for name in former.categories if name not in present.categories]:
        return f"no longer has {', '.join(gone)}"
    return "may no longer lack values" if former.missing and not present.missing else ""


def restrict(dataset: Dataset, trained: TrainedModel) -> Dataset:
    """Return the dataset with those held-out examples that the model can describe. Raises DataError if there are none.

    ``obstacle`` of its data and the dataset must be "".
    """
    held_out, ours, theirs = dataset.held_out, dataset.spec, trained.spec
    fits_N = np.ones(len(held_out), dtype=bool)
    if ours.is_table:
        former = {column.name: column for column in theirs.columns}
        for column, x_N in zip(ours.columns, np.asarray(held_out.x_NX).T, strict=True):
            other = former[column.name]
            if not column.numeric:
                known = [place for place, name in enumerate(column.categories) if name in other.categories]
                fits_N &= np.isin(x_N, known) | np.isnan(x_N)
            if not other.missing:
                fits_N &= ~np.isnan(x_N)
    if is_conditional(trained) and held_out.y_N is not None:
        fits_N &= np.isin(held_out.y_N, [place for place, name in enumerate(_classes(ours)) if name in _classes(theirs)])
    if not fits_N.any():
        raise DataError("the model can describe no held-out example")
    y_N, id_N = (None if each is None else np.asarray(each)[fits_N] for each in (held_out.y_N, held_out.id_N))
    part = Split(np.asarray(held_out.x_NX)[fits_N], y_N, id_N)
    counts = {**dataset.version.counts, "held_out": len(part)}
    split = {**dataset.version.split, "described_by": digest(theirs.to_json())}  # another version: its features are cached apart
    return replace(dataset, version=dataset.version.model_copy(update={"counts": counts, "split": split}), held_out=part)


def translate(split: Split, theirs: DataSpec, ours: DataSpec) -> Split:
    """Return examples of data ``theirs`` without labels as data ``ours`` have them. ``obstacle`` of the two must be ""."""
    if not ours.is_table:
        return split
    x_ND, former = np.asarray(split.x_NX), {column.name: place for place, column in enumerate(theirs.columns)}
    pairs = [(theirs.columns[former[column.name]], column) for column in ours.columns]
    values = [_translated(torch.from_numpy(x_ND[:, former[each.name]].copy()), each, column) for each, column in pairs]
    return Split(torch.stack(values, dim=1).numpy(), None, split.id_N)


def is_conditional(trained: TrainedModel) -> bool:
    return bool(trained.recipe["model"].get("conditional"))


class _Wrapper(Model):
    """A model around another one, with the same capabilities."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.conditional = model, model.conditional
        for protocol, names in (
            (CanSample, {"sample": self._sample, "sample_noise": None}),
            (HasLogProb, {"log_prob": self._log_prob, "density_noise": None}),
            (HasElbo, {"elbo": self._elbo, "latent_noise": None}),
        ):
            if isinstance(model, protocol):
                for name, method in names.items():
                    self.__dict__[name] = getattr(model, name) if method is None else method

    def _sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def _log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def _elbo(self, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Truncated(_Wrapper):
    """A model of data ``ours``, given that its example has only what data ``theirs`` know: categories, classes, gaps.

    The likelihood of a gap has no part in log p(x). P(D) is therefore the share of known categories where no new gap is.
    """

    def __init__(self, model: Model, theirs: DataSpec, ours: DataSpec, *, conditional: bool) -> None:
        """``conditional``: whether the model of data ``theirs`` is, so that it cannot describe new classes either."""
        super().__init__(model)
        former = {column.name: column for column in theirs.columns}
        self.new = {
            place: new_L
            for place, column in enumerate(ours.columns)
            if (new_L := torch.tensor([name not in former[column.name].categories for name in column.categories])).any()
        }
        self.gaps = [place for place, column in enumerate(ours.columns) if column.missing and not former[column.name].missing]
        new_K = [conditional and name not in _classes(theirs) for name in _classes(ours)]
        self.new_class_K = torch.tensor(new_K, dtype=torch.bool)
        self.classes_count = max(1, len(_classes(ours))) if model.conditional else 1
        self.log_share_K = self._log_shares()

    def classes(self, noise_BN: Tensor) -> Tensor | None:
        """Draw again where a class is new, with noise that is a function of the row's own."""
        y_B = self.model.classes(noise_BN)
        if y_B is None:
            return None
        for attempt in range(MOST_TRIES):
            again_B = self.new_class_K[y_B]
            if not bool(again_B.any()):
                return y_B
            fresh_B = self.model.classes(_fresh(noise_BN[again_B], "class", attempt))
            assert fresh_B is not None
            y_B = y_B.masked_scatter(again_B, fresh_B)
        raise RunError(f"{int(again_B.sum())} samples still had new classes after {MOST_TRIES} draws")

    def _known(self, x_BX: Tensor) -> Tensor:
        """Return which examples have no new category."""
        fits_B = torch.ones(len(x_BX), dtype=torch.bool)
        for place, new_L in self.new.items():
            value_B = x_BX[:, place]
            fits_B &= value_B.isnan() | ~new_L[value_B.nan_to_num(0.0).long()]
        return fits_B

    def _gapless(self, x_BX: Tensor) -> Tensor:
        """Return which examples have no gap where the former data have none."""
        return ~x_BX[:, self.gaps].isnan().any(1) if self.gaps else torch.ones(len(x_BX), dtype=torch.bool)

    @torch.no_grad()
    def _log_shares(self) -> Tensor:
        """Return log P(D), for a conditional model by class: from draws, with half a count added."""
        if not isinstance(self.model, CanSample) or not self.new:
            return torch.zeros(self.classes_count, dtype=torch.float64)
        shares = []
        for y in range(self.classes_count):
            y_B = torch.full((BLOCK,), y) if self.conditional else None
            noises = (standard_normal((BLOCK, self.model.sample_noise), "share", y, part) for part in range(DRAWS // BLOCK))
            known_N = torch.cat([self._known(x_BX[self._gapless(x_BX)]) for x_BX in (self.model.sample(e, y_B) for e in noises)])
            shares.append((int(known_N.sum()) + 0.5) / (len(known_N) + 1))
        return torch.tensor(shares, dtype=torch.float64).log()

    def _log_share(self, y_B: Tensor | None) -> Tensor:
        return self.log_share_K[0] if y_B is None else self.log_share_K[y_B]

    def _sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Draw again where an example cannot be described, with noise that is a function of the row's own."""
        assert isinstance(self.model, CanSample)
        y_B = self.classes(noise_BN) if y_B is None and self.conditional else y_B
        x_BX = self.model.sample(noise_BN, y_B)
        for attempt in range(MOST_TRIES):
            again_B = ~(self._known(x_BX) & self._gapless(x_BX))
            if not bool(again_B.any()):
                return x_BX
            x_BX[again_B] = self.model.sample(_fresh(noise_BN[again_B], attempt), None if y_B is None else y_B[again_B])
        raise RunError(f"{int(again_B.sum())} samples still had new categories or gaps after {MOST_TRIES} draws")

    def _log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        log_p_B: Tensor = self.model.log_prob(x_BX, noise_BN, y_B)  # type: ignore[operator]
        return log_p_B - self._log_share(y_B)

    def _elbo(self, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        elbo_KB: Tensor = self.model.elbo(x_BX, noise_KBN, y_B)  # type: ignore[operator]
        return elbo_KB - self._log_share(y_B)


def _fresh(noise_BN: Tensor, *seed: int | str) -> Tensor:
    """Return other noise, of which each row is a function of the row given and the seed."""
    own = [row_N.cpu().numpy().tobytes().hex() for row_N in noise_BN]
    return torch.stack([standard_normal(noise_BN.shape[1:], row, *seed) for row in own]).to(noise_BN)


class Translated(_Wrapper):
    """A model of data ``theirs`` that takes and draws examples of data ``ours``."""

    def __init__(self, model: Model, theirs: DataSpec, ours: DataSpec) -> None:
        """Wrap a model. ``obstacle`` of the two must be ""."""
        super().__init__(model)
        self.theirs, self.ours = theirs, ours
        columns, place = {column.name: column for column in ours.columns}, [column.name for column in ours.columns].index
        self.places = [place(column.name) for column in theirs.columns]  # of their columns among ours
        self.pairs = [(column, columns[column.name]) for column in theirs.columns]

    def classes(self, noise_BN: Tensor) -> Tensor | None:
        y_B = self.model.classes(noise_BN)
        return None if y_B is None else _lookup(_classes(self.theirs), _classes(self.ours))[y_B]

    def _sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        drawn_BX: Tensor = self.model.sample(noise_BN, self._y(y_B))  # type: ignore[operator]  # a model that can sample
        if not self.ours.is_table:
            return drawn_BX
        x_BD = torch.empty_like(drawn_BX)
        for place, (theirs, ours), value_B in zip(self.places, self.pairs, drawn_BX.unbind(1), strict=True):
            x_BD[:, place] = _translated(value_B, theirs, ours)
        return x_BD

    def _log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        log_p_B: Tensor = self.model.log_prob(self._x(x_BX), noise_BN, self._y(y_B))  # type: ignore[operator]
        return log_p_B + self._log_jacobian(x_BX)

    def _elbo(self, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        elbo_KB: Tensor = self.model.elbo(self._x(x_BX), noise_KBN, self._y(y_B))  # type: ignore[operator]
        return elbo_KB + self._log_jacobian(x_BX)

    def _x(self, x_BX: Tensor) -> Tensor:
        if not self.ours.is_table:
            return x_BX
        columns = [
            _translated(x_BX[:, place], ours, theirs) for place, (theirs, ours) in zip(self.places, self.pairs, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def _y(self, y_B: Tensor | None) -> Tensor | None:
        return None if y_B is None else _lookup(_classes(self.ours), _classes(self.theirs))[y_B]

    def _log_jacobian(self, x_BX: Tensor) -> Tensor:
        total_B = torch.zeros(len(x_BX), dtype=torch.float64)
        for place, (theirs, ours) in zip(self.places, self.pairs, strict=True):
            if ours.numeric and not ours.whole:
                total_B += (~x_BX[:, place].isnan()) * math.log(ours.scale / theirs.scale)
        return total_B


def _translated(value_B: Tensor, source: Column, target: Column) -> Tensor:
    """Return standardised values of one column, or indices of its categories, as another schema has them."""
    if source.numeric:
        original_B = value_B.double() * source.scale + source.mean
        original_B = original_B.round() if source.whole else original_B
        return ((original_B - target.mean) / target.scale).to(value_B.dtype)
    missing_B = value_B.isnan()
    found_B = _lookup(source.categories, target.categories)[value_B.nan_to_num(0.0).long()].to(value_B.dtype)
    return found_B.masked_fill(missing_B, torch.nan)


def _lookup(names: tuple[str, ...], others: tuple[str, ...]) -> Tensor:
    """Return the index of each name among the others; that of an unknown name is never used."""
    return torch.tensor([others.index(name) if name in others else 0 for name in names])


def _classes(spec: DataSpec) -> tuple[str, ...]:
    return spec.class_names or tuple(str(y) for y in range(spec.classes))
