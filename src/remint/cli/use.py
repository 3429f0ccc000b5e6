"""Commands that use registered models: sample and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remint.cli import completion, screens, terminal
from remint.cli.app import AsJson, ModelRef, app, here, print_json


@app.command()
def sample(
    model: ModelRef,
    count: Annotated[int, typer.Option("-n", min=1, max=100_000, help="How many samples.")] = 64,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            help="File to write: images as .png (a grid) or .npy (uint8, N x C x H x W), a table as .csv or .parquet. "
            "By default samples.png, or samples.csv or .parquet as the table's source.",
        ),
    ] = None,
    of_class: Annotated[str | None, typer.Option("--class", help="Class to draw, for a conditional model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends only on the seed and i.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a registered model, by default the champion.

    Example: remint sample digits-vae -n 64 -o grid.png
    """
    home, _ = here()
    from remint.promotion import queries

    answer = queries.sample(home, model, count, seed, of_class, output)
    if as_json:
        print_json(answer)
    else:
        terminal.out.print(f"{answer['count']} samples of {answer['model']} with seed {seed}: {answer['path']}", soft_wrap=True)
        if answer["without"]:
            terminal.out.print(
                f"The column '{answer['without']}' is not drawn: only a model with conditional: true knows the label."
            )


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(help="Each NAME (its champion), NAME@challenger or NAME/7.", autocompletion=completion.model_refs),
    ],
    output: Annotated[Path, typer.Option("-o", help="The picture, a .png.")] = Path("compare.png"),
    as_json: AsJson = False,
) -> None:
    """Compare models side by side: metrics, seconds to draw and to score, size, and how each grows with the data.

    Example: remint compare digits-vae digits-gan digits-flow
    """
    home, _ = here()
    from remint.promotion import side_by_side

    answer = side_by_side.compare(home, names, output, terminal.say)
    if as_json:
        print_json(answer.to_json())
    else:
        screens.comparison(answer)
