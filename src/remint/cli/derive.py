"""Commands that make something of a registered model: augment and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remint.cli import terminal
from remint.cli.app import AsJson, Served, app, print_json
from remint.cli.use import Data, SkipBad, load_served


@app.command()
def augment(
    model: Served,
    data: Data,
    output: Annotated[Path, typer.Option("-o", help="A new folder for the examples and their manifest.json.")],
    per_class: Annotated[int, typer.Option(min=1, help="Classes with fewer examples are filled up to so many.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Example i of a class depends only on the seed and i.")] = 0,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also train classifiers with and without the examples, five times, and compare.")
    ] = False,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Draw synthetic examples for scarce classes, in the format of the data. The model must be conditional.

    Example: remint augment shapes-vae data/shapes --per-class 200 -o augmented/
    """
    served = load_served(model)
    from remint.serving.augmentation.augmenting import augment as fill_up

    with terminal.counting("drawn") as progress:
        made = fill_up(served, data, output, per_class, seed, evaluate=evaluate, skip_bad=skip_bad, progress=progress)
    if as_json:
        print_json(made.to_json())
        return
    filled = ", ".join(f"{counts.synthetic} {name}" for name, counts in made.counts.items() if counts.synthetic)
    terminal.out.print(f"{made.synthetic} examples by {made.model} ({filled}): {made.path}", soft_wrap=True, markup=False)
    for each in made.benefits:
        terminal.out.print(each.text(), soft_wrap=True, markup=False)


@app.command()
def export(
    model: Served,
    output: Annotated[Path, typer.Option("-o", help="A file that ends in .onnx or in .pt2 (torch.export).")],
    method: Annotated[str, typer.Option(help="sample, decode, encode, log_prob or elbo.")] = "sample",
    as_json: AsJson = False,
) -> None:
    """Write one method of a model as a graph that runs without remint, once it gave what the model gives.

    Example: remint export digits-vae -o digits-vae.onnx --method encode
    """
    served = load_served(model)
    from remint.serving.exporting.export import export as export_method

    made = export_method(served, output, method)
    if as_json:
        print_json(made.to_json())
        return
    inputs = ", ".join(f"{name} {form}" for name, form in made.inputs.items())
    terminal.out.print(f"{method} of {made.model}: {made.path}", soft_wrap=True, markup=False)
    terminal.out.print(
        f"Its inputs are {inputs}. It gave what the model gives, for {made.compared} examples.", soft_wrap=True, markup=False
    )
