"""Commands that use registered models: sample, encode, decode, reconstruct, interpolate, impute and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remint.cli import completion, screens, terminal
from remint.cli.app import AsJson, Served, app, here, print_json

if TYPE_CHECKING:
    from remint.serving.files import Written
    from remint.serving.model import ServedModel

OfClass = Annotated[str | None, typer.Option("--class", help="Class of all examples, for a conditional model.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Set examples aside that do not fit, and count them.")]
Data = Annotated[str, typer.Argument(help="A folder or file in the formats of datasets:, such as new.csv or images/.")]
ExamplesFile = Annotated[
    Path,
    typer.Option("-o", help="Images: .png (a grid), .npy, .npz, or a new folder of .png files. A table: .csv or .parquet."),
]


@app.command()
def sample(
    model: Served,
    count: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 64,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            help="Images: .png (a grid), .npy or .npz (uint8, N x C x H x W), or a new folder of .png files. A table: .csv or "
            ".parquet. By default samples.png (.npz of 2 or 4 channels), or samples.csv or .parquet as the table's source.",
        ),
    ] = None,
    of_class: Annotated[str | None, typer.Option("--class", help="Class to draw, for a conditional model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends only on the seed and i.")] = 0,
    temperature: Annotated[float, typer.Option(help="Times the latents: below 1 for more typical samples.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a registered model, by default the champion.

    Example: remint sample digits-vae -n 64 -o grid.png
    """
    served = load_served(model)
    from remint.serving import files

    with terminal.counting("drawn") as progress:
        written = files.sample(served, count, output, seed, of_class, temperature, progress)
    _report(written, f"{count} samples of {written.model} with seed {seed}", as_json)


@app.command()
def encode(
    model: Served,
    data: Data,
    output: Annotated[Path, typer.Option("-o", help="The latents: .npy or .npz (float32, N x Z), .csv or .parquet.")],
    of_class: OfClass = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Write the latent of each example.

    Example: remint encode digits-vae images/ -o latents.npy
    """
    served = load_served(model)
    from remint.serving import files

    with terminal.counting("encoded") as progress:
        written = files.encode(served, data, output, of_class, skip_bad, progress)
    _report(written, f"latents of {written.count} examples, by {written.model}", as_json)


@app.command()
def decode(
    model: Served,
    latents: Annotated[Path, typer.Argument(help="Latents as encode writes them: .npy (N x Z), .npz with z, .csv or .parquet.")],
    output: ExamplesFile,
    of_class: OfClass = None,
    as_json: AsJson = False,
) -> None:
    """Write the example of each latent.

    Example: remint decode digits-vae latents.npy -o decoded.png
    """
    served = load_served(model)
    from remint.serving import files

    with terminal.counting("decoded") as progress:
        written = files.decode(served, latents, output, of_class, progress)
    _report(written, f"{written.count} examples, decoded by {written.model}", as_json)


@app.command()
def reconstruct(
    model: Served,
    data: Data,
    output: ExamplesFile,
    of_class: OfClass = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Encode each example and decode it again.

    Example: remint reconstruct digits-vae images/ -o again.png
    """
    served = load_served(model)
    from remint.serving import files

    with terminal.counting("reconstructed") as progress:
        written = files.reconstruct(served, data, output, of_class, skip_bad, progress)
    _report(written, f"{written.count} examples, reconstructed by {written.model}", as_json)


@app.command()
def interpolate(
    model: Served,
    first: Annotated[str, typer.Argument(help="The first example: an image, or a table of one row.")],
    last: Annotated[str, typer.Argument(help="The last example.")],
    output: ExamplesFile,
    steps: Annotated[int, typer.Option(min=2, max=1_000, help="How many examples, with both ends.")] = 12,
    of_class: OfClass = None,
    as_json: AsJson = False,
) -> None:
    """Write the examples on the way from one example to another.

    Example: remint interpolate digits-vae a.png b.png -o strip.png
    """
    served = load_served(model)
    from remint.serving import files

    written = files.interpolate(served, first, last, output, steps, of_class)
    _report(written, f"{steps} examples from {first} to {last}, by {written.model}", as_json)


@app.command()
def impute(
    model: Served,
    data: Data,
    output: Annotated[
        Path,
        typer.Option(
            "-o", help="A table: .csv or .parquet, as the input. Images: .png, .npy, .npz, or a new folder of .png files."
        ),
    ],
    draws: Annotated[int, typer.Option(min=1, max=10_000, help="How often each example is completed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="A completion depends only on the seed and the example.")] = 0,
    mask: Annotated[
        str | None,
        typer.Option(help="Images: a picture or .npy that is not 0 where values are missing. By default the alpha channel."),
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(help="Tables: .csv of the filled cells, with 90% intervals or shares of categories.")
    ] = None,
    of_class: OfClass = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Fill in missing values: the mean, or most frequent category, of several draws. What is there stays as it is.

    Example: remint impute cancer-flow data.csv -o filled.csv --cells cells.csv
    """
    served = load_served(model)
    from remint.serving.imputation import files as impute_files

    with terminal.counting("imputed") as progress:
        written = impute_files.impute(served, data, output, draws, seed, mask, cells, of_class, skip_bad, progress)
    _report(written, f"{written.count} examples with {written.filled} values filled in, by {written.model}", as_json)


def load_served(ref: str) -> ServedModel:
    """Load a model of the repository around the current folder, or a published model: that needs no repository."""
    from remint.serving.load import is_published, load_version, of_published

    if is_published(ref):
        return of_published(ref)
    home, _ = here()
    return load_version(home, ref)


def _report(written: Written, what: str, as_json: bool) -> None:
    """Print where the result is, and what of the input is not in it."""
    if as_json:
        print_json(written.to_json())
        return
    terminal.out.print(f"{what}: {written.path}", soft_wrap=True, markup=False)
    if written.without:
        known = "only a model with conditional: true knows the label"
        terminal.out.print(f"The column '{written.without}' is not drawn: {known}.", markup=False)
    if written.ignored:
        names = ", ".join(written.ignored)
        terminal.out.print(f"The model does not know the columns {names}: they were not used.", soft_wrap=True, markup=False)
    if written.set_aside:
        name, reason = next(iter(written.set_aside.items()))
        terminal.out.print(f"{len(written.set_aside)} set aside, such as {name}: {reason}", soft_wrap=True, markup=False)


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
