"""Missing values of a person's examples, drawn given the observed ones. Nothing is fitted to the input.

Each example is completed several times. A gap is filled with the mean of the draws (a number, a pixel) or their most frequent
category; the draws' 5% and 95% quantiles are its 90% interval. With D draws the k-th least has the quantile k / (D + 1), so the
interval covers as often as it says if the model is right, from 19 draws on.

Shapes: N examples, M examples of one part, G of them with gaps, B a block of chains, D draws, X the axes of one example,
P numbers of a packed example.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from remint.data.blocks import LARGEST_BLOCK
from remint.errors import SettingsError, UserError
from remint.models.contract import CanImpute
from remint.records import DataSpec
from remint.serving import blocks
from remint.serving.blocks import Progress, content_noise, silent
from remint.serving.imputation import filling, masks
from remint.serving.inputs import Examples

if TYPE_CHECKING:
    import pandas as pd

    from remint.serving.model import ServedModel

DRAWS = 20
LEVEL = 0.9  # of the intervals
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
MOST_DRAWS = 10_000
CHAINS = 128  # in every pass of a model: a chain enlarges the rounding of a pass of another size, step by step
NUMBERS = 2**22  # of noise in a pass, above which it has fewer chains
CELL = ["row", "column", "value", "low", "high", "shares"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Consecutive examples in the model's form, completed."""

    x_MX: Array  # with each gap filled
    missing_MX: Array  # bool
    at_G: Array  # places of the examples with gaps
    low_GX: Array  # of the 90% interval, float64; for a category without meaning
    high_GX: Array
    drawn_GDX: Array


@dataclass(frozen=True)
class Imputation:
    """Completed examples of an input, and the spread of each filled value."""

    filled: Any  # a table in the form of the input, else images, uint8 (N, C, H, W)
    cells: pd.DataFrame | None = None  # of a table: each filled cell with its interval, or the shares of its categories
    low: Array | None = None  # of images: the 90% interval of each value, uint8 (N, C, H, W); observed values have no width
    high: Array | None = None
    draws: list[Any] = field(default_factory=list)  # each completion in the form of ``filled``, if they were asked for
    set_aside: dict[str, str] = field(default_factory=dict)  # file or row of the input -> reason


def impute(
    served: ServedModel,
    data: Any,
    draws: int = DRAWS,
    seed: int = 0,
    missing: Any = None,
    of_class: str | int | None = None,
    keep_draws: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Imputation:
    """Return the input with its gaps filled. ``missing``: of images, see masks.py. ``keep_draws``: keep each completion.

    A conditional model takes each row's class from the input or ``of_class``, else draws it too.

    Raises UserError if the family does not impute, DataError if the input has no examples of the model.
    """
    if served.spec.is_table and missing is not None:
        raise SettingsError("a table marks what is missing by empty cells: remove the mask")
    import pandas as pd

    data, missing = (data, None) if served.spec.is_table else masks.split(served.spec, data, missing)
    with served.examples(data, gaps=True, **options) as examples:
        parts = list(completions(served, examples, missing, draws, seed, of_class, progress))
        set_aside = dict(examples.set_aside)
        if served.spec.is_table:
            whole = [part.drawn_GDX[:, number] for number in range(draws if keep_draws else 0) for part in parts]
            each = [_with_draw(parts, whole[at : at + len(parts)]) for at in range(0, len(whole), len(parts))]
            filled, *others = [filling.fill(served, data, examples.row_N, some) for some in (parts, *each)]
            table = pd.DataFrame(cells(served.spec, examples.row_N, parts), columns=CELL)
            return Imputation(filled, table, draws=others, set_aside=set_aside)
    low, high = (np.concatenate([_bounds(part, of) for part in parts]) for of in ("low_GX", "high_GX"))
    each = [_with_draw(parts, [part.drawn_GDX[:, k] for part in parts]) for k in range(draws if keep_draws else 0)]
    filled, *others = [np.concatenate([part.x_MX for part in some]) for some in (parts, *each)]
    return Imputation(filled, low=low, high=high, draws=others, set_aside=set_aside)


def completions(
    served: ServedModel,
    examples: Examples,
    missing_NX: Array | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    of_class: str | int | None = None,
    progress: Progress = silent,
) -> Iterator[Part]:
    """Yield the examples, completed, in parts of bounded memory. ``missing_NX``: bool; None: the NaN of rows."""
    if not isinstance(served.model, CanImpute):
        raise UserError(f"{served.ref}: its family does not impute: use a vae, vaegan or flow")
    if not 1 <= draws <= MOST_DRAWS:
        raise SettingsError(f"draws: {draws}: expected 1 to {MOST_DRAWS:,}")
    if missing_NX is not None and len(missing_NX) not in (1, len(examples)):
        raise SettingsError(f"{len(missing_NX)} masks for {len(examples)} images: give one for all, or one for each")
    served = replace(served, model=copy.deepcopy(served.model).double())  # for the same reason as CHAINS
    known = examples.y_N is not None or of_class is not None
    y_N = served.classes_of(examples, of_class) if known else None
    at, numbers = 0, draws * (2 * served.spec.dims + 1)
    for x_MX in examples.x_NX.read(max(1, LARGEST_BLOCK // (4 * numbers))):
        missing_MX = np.isnan(x_MX) if missing_NX is None else _rows(missing_NX, at, len(x_MX))
        y_M = None if y_N is None else y_N[at : at + len(x_MX)]
        at += len(x_MX)
        yield _complete(served, x_MX, missing_MX, y_M, draws, seed)
        progress(at, len(examples))


def _rows(missing_NX: Array, at: int, count: int) -> Array:
    """Return the masks of some examples; one mask is that of all."""
    if len(missing_NX) == 1:
        return np.broadcast_to(missing_NX, (count, *missing_NX.shape[1:]))
    return missing_NX[at : at + count]


def _complete(served: ServedModel, x_MX: Array, missing_MX: Array, y_M: Array | None, draws: int, seed: int) -> Part:
    at_G = np.flatnonzero(missing_MX.reshape(len(x_MX), -1).any(1))
    x_GX, missing_GX = x_MX[at_G], missing_MX[at_G]
    drawn_GDX = np.empty((len(at_G), draws, *x_GX.shape[1:]), x_MX.dtype)
    if len(at_G):
        observed_GP = (~missing_GX).reshape(len(at_G), -1)
        packed_GP = np.concatenate([np.where(observed_GP, x_GX.reshape(len(at_G), -1), 0), observed_GP], axis=1)
        number_D1 = np.arange(draws)[:, None]
        chains = [np.concatenate([np.tile(packed_P, (draws, 1)), number_D1], axis=1) for packed_P in packed_GP]
        packed_BP = np.concatenate(chains).astype(np.float32)
        y_B = None if y_M is None else np.repeat(y_M[at_G], draws)
        assert isinstance(served.model, CanImpute)
        size = max(1, min(CHAINS, NUMBERS // served.model.impute_noise))
        parts = blocks.apply(lambda packed, y: _draw(served, packed, y, seed), packed_BP, y_B, served.device, block=size)
        drawn_GDX = np.concatenate(list(parts)).reshape(drawn_GDX.shape)
    low_GX, high_GX = np.quantile(drawn_GDX.astype(np.float64), TAILS, axis=1, method="weibull")
    x_MX = x_MX.copy()
    x_MX[at_G] = np.where(missing_GX, _centre(served.spec, drawn_GDX), x_GX)
    return Part(x_MX, missing_MX, at_G, low_GX, high_GX, drawn_GDX)


def _draw(served: ServedModel, packed_BP: Tensor, y_B: Tensor | None, seed: int) -> Tensor:
    """Return one completion of each packed example: its values, which of them are observed, and the draw's number."""
    model, spec = served.model, served.spec
    assert isinstance(model, CanImpute)
    noise_BN = content_noise(packed_BP, model.impute_noise, "impute", seed).double()
    values_BP, observed_BP, _ = torch.split(packed_BP, [spec.dims, spec.dims, 1], dim=1)
    x_BX = values_BP.view(-1, *spec.shape)
    completed_BX: Tensor = model.impute(
        x_BX if spec.is_table else x_BX.to(torch.uint8), observed_BP.view_as(x_BX) > 0, noise_BN, y_B
    )
    return completed_BX


def _centre(spec: DataSpec, drawn_GDX: Array) -> Array:
    """Return the mean of numbers and pixels over the draws, and the most frequent category."""
    mean_GX: Array = drawn_GDX.mean(1, dtype=np.float64)
    for place, column in enumerate(spec.columns):
        if column.categories:
            mean_GX[:, place] = shares(drawn_GDX[:, :, place], len(column.categories)).argmax(1)
    centre_GX: Array = (mean_GX if spec.is_table else np.rint(mean_GX)).astype(drawn_GDX.dtype)
    return centre_GX


def shares(drawn_GD: Array, size: int) -> Array:
    """Return the share of each category among the draws, (G, size)."""
    share_GK: Array = (drawn_GD[:, :, None] == np.arange(size)).mean(1)
    return share_GK


def _with_draw(parts: list[Part], drawn: list[Array]) -> list[Part]:
    """Return the parts with one completion in place of the filled values."""
    found = []
    for part, drawn_GX in zip(parts, drawn, strict=True):
        x_MX = part.x_MX.copy()
        x_MX[part.at_G] = drawn_GX
        found.append(Part(x_MX, part.missing_MX, part.at_G, part.low_GX, part.high_GX, part.drawn_GDX))
    return found


def _bounds(part: Part, which: str) -> Array:
    bound_MX = part.x_MX.copy()
    bound_MX[part.at_G] = np.where(part.missing_MX[part.at_G], np.rint(getattr(part, which)), part.x_MX[part.at_G])
    return bound_MX


def cells(spec: DataSpec, row_N: Array | None, parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    """Yield each filled cell of a table: row (of the input, from 1), column, value, low, high; or shares of its categories."""
    at = 0
    for part in parts:
        x_GD = part.x_MX[part.at_G]
        value, low, high = (filling.originals(spec, each) for each in (x_GD, part.low_GX, part.high_GX))
        for g, place in enumerate(part.at_G.tolist()):
            row = at + place if row_N is None else int(row_N[at + place])
            for d in np.flatnonzero(part.missing_MX[place]).tolist():
                column = spec.columns[d]
                cell = {"row": row + 1, "column": column.name, "value": value[column.name][g]}
                if column.numeric:
                    yield cell | {"low": low[column.name][g], "high": high[column.name][g], "shares": None}
                else:
                    share_K = shares(part.drawn_GDX[g : g + 1, :, d], len(column.categories))[0]
                    of = {name: float(share) for name, share in zip(column.categories, share_K, strict=True) if share}
                    yield cell | {"low": None, "high": None, "shares": of}
        at += len(part.x_MX)
