"""Missing values of a person's examples, drawn given the observed ones. Nothing is fitted to the input.

Each example is completed several times. A gap is filled with the mean of the draws (a number, a pixel) or their most frequent
category; the draws' 5% and 95% quantiles are its 90% interval.

Shapes: N examples, M examples of one part, G of them with gaps, D draws, X the axes of one example.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from remint.errors import SettingsError, UserError
from remint.models.contract import CanImpute
from remint.records import DataSpec
from remint.serving.blocks import Progress, silent
from remint.serving.imputation import chains, filling, masks
from remint.serving.imputation.chains import DRAWS, Part, shares
from remint.serving.inputs import Examples

if TYPE_CHECKING:
    import pandas as pd

    from remint.serving.model import ServedModel

MOST_DRAWS = 10_000
CELL = ["row", "column", "value", "low", "high", "shares"]

Array = np.ndarray[Any, Any]


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
    """Yield the examples, completed (chains.complete). Raises UserError if the family does not impute."""
    if not isinstance(served.model, CanImpute):
        raise UserError(f"{served.ref}: its family does not impute: use a vae, vaegan or flow")
    if not 1 <= draws <= MOST_DRAWS:
        raise SettingsError(f"draws: {draws}: expected 1 to {MOST_DRAWS:,}")
    if missing_NX is not None and len(missing_NX) not in (1, len(examples)):
        raise SettingsError(f"{len(missing_NX)} masks for {len(examples)} images: give one for all, or one for each")
    known = examples.y_N is not None or of_class is not None
    y_N = served.classes_of(examples, of_class) if known else None
    yield from chains.complete(served.model, served.spec, examples.x_NX, y_N, missing_NX, draws, seed, served.device, progress)


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
