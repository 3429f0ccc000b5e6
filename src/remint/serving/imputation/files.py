"""Imputation from file to file: what the command does.

Shapes: see serving/imputation/imputing.py.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from remint.data import rows
from remint.errors import SettingsError
from remint.records import DataSpec
from remint.serving import outputs
from remint.serving.blocks import Progress, silent
from remint.serving.files import Written
from remint.serving.imputation import filling, imputing, masks
from remint.serving.imputation.chains import DRAWS, Part
from remint.serving.imputation.imputing import CELL
from remint.serving.inputs import Examples
from remint.serving.model import ServedModel


class Imputed(Written):
    """Result of an imputation that was written."""

    filled: int  # values that were missing
    draws: int


def impute(
    served: ServedModel,
    data: str,
    output: Path,
    draws: int = DRAWS,
    seed: int = 0,
    mask: str | None = None,
    cells: Path | None = None,
    of_class: str | None = None,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Imputed:
    """Fill the gaps of a table or of masked images, and write them in the form of the input. ``cells``: CSV of the filled cells.

    Where nothing is missing, the file that is written equals the file that was read. Nothing is written after an error.
    """
    spec, source = served.spec, Path(data)
    _check(spec, source, output, mask, cells)
    given, missing = (data, None) if spec.is_table else masks.split(spec, data, mask)
    with served.examples(given, gaps=True, skip_bad=skip_bad) as examples:
        filled = 0

        def counted() -> Iterator[Part]:
            nonlocal filled
            for part in imputing.completions(served, examples, missing, draws, seed, of_class, progress):
                filled += int(part.missing_MX.sum())
                yield part

        if spec.is_table:
            _write_table(served, source, output, cells, examples, counted())
        else:
            _write_images(served, output, len(examples), counted())
        if not filled and not examples.set_aside and source.is_file() and source.suffix.lower() == output.suffix:
            with outputs.whole(output) as temporary:
                shutil.copyfile(source, temporary)
        return Imputed(
            model=served.ref,
            weights_sha256=served.weights_sha256,
            path=str(output),
            count=len(examples),
            seed=seed,
            of_class=of_class,
            set_aside=dict(examples.set_aside),
            ignored=examples.ignored,
            filled=filled,
            draws=draws,
        )


def _check(spec: DataSpec, source: Path, output: Path, mask: str | None, cells: Path | None) -> None:
    outputs.check_examples(output, spec)
    if not spec.is_table:
        if cells is not None:
            raise SettingsError("--cells is of tables: remove it")
        return
    if mask is not None:
        raise SettingsError("--mask is of images, and a table marks what is missing by empty cells: remove it")
    if source.is_file() and source.suffix.lower() != output.suffix:
        raise SettingsError(f"-o {output}: the result has the form of {source}: give a name that ends in {source.suffix.lower()}")
    if cells is not None:
        outputs.check_numbers(cells)
        if cells.suffix != ".csv":
            raise SettingsError(f"--cells {cells}: give a name that ends in .csv")
        if cells.resolve() in (source.resolve(), output.resolve()):
            raise SettingsError(f"--cells {cells}: it is the input or the output: give another name")


def _write_table(
    served: ServedModel, source: Path, output: Path, cells: Path | None, examples: Examples, parts: Iterable[Part]
) -> None:
    """Write the filled table and, beside it, its filled cells."""
    spec, row_N = served.spec, examples.row_N
    with outputs.whole(output) as temporary, nullcontext() if cells is None else outputs.whole(cells) as cells_path:
        passed = parts if cells_path is None else _with_cells(spec, row_N, parts, cells_path)
        if source.is_file():
            filling.write(source, temporary, spec, row_N, filling.fills(spec, passed))
        else:
            rows.write(temporary, (served.table(part.x_MX) for part in passed), spec)


def _with_cells(spec: DataSpec, row_N: np.ndarray | None, parts: Iterable[Part], path: Path) -> Iterator[Part]:
    """Yield the parts; meanwhile write their filled cells as CSV."""
    at = 0
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, CELL, lineterminator="\n")
        writer.writeheader()
        for part in parts:
            some_N = np.arange(at, at + len(part.x_MX)) if row_N is None else row_N[at : at + len(part.x_MX)]
            for cell in imputing.cells(spec, some_N, [part]):
                writer.writerow(_plain(cell))
            at += len(part.x_MX)
            yield part


def _plain(cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {"shares": None if cell["shares"] is None else json.dumps(cell["shares"])}


def _write_images(served: ServedModel, output: Path, count: int, parts: Iterable[Part]) -> None:
    """Write one picture as it is, and several as the name of the output says."""
    if count == 1 and output.suffix in outputs.GRID:
        (part,) = parts
        with outputs.whole(output) as temporary:
            outputs.write_png(temporary, part.x_MX[0], served.spec.levels)
        return
    outputs.write_examples(output, served.spec, ((part.x_MX, None) for part in parts), count, f"{served.ref}, imputed")
