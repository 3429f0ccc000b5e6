"""Commands that add blocks to params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from remint.cli import completion, terminal
from remint.cli.app import app
from remint.errors import SettingsError
from remint.settings.edit import add_pipeline
from remint.settings.params import PARAMS, PipelineSettings, validate_params
from remint.stores import git

new = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(new, name="new")

Kind = Literal["image", "table"]


@new.callback()
def _about() -> None:
    """Add a block to params.yaml."""


@new.command()
def pipeline(
    name: Annotated[str, typer.Argument(help="The new pipeline.")],
    template: Annotated[str, typer.Option("--from", help="The pipeline to copy.", autocompletion=completion.pipelines)],
    dataset: Annotated[
        str,
        typer.Option(
            help="Dataset to train on, a new one with --source; if omitted, that of --from.", autocompletion=completion.datasets
        ),
    ] = "",
    source: Annotated[
        str, typer.Option(help="Source of a new dataset: a folder or file (relative to the repository), or an address.")
    ] = "",
    kind: Annotated[Kind | None, typer.Option(help="Kind of the new dataset; if omitted, table for .csv and .parquet.")] = None,
) -> None:
    """Add a pipeline to params.yaml: a copy of another one, for your dataset. The rest of the file does not change.

    Example: remint new pipeline cats-vae --from digits-vae --dataset cats --source data/cats
    """
    repository = git.repository_of(Path.cwd())
    if not source and kind:
        raise SettingsError("--kind applies to a new dataset only: give its --source as well")
    if source and not dataset:
        raise SettingsError("--source adds a new dataset: give its name with --dataset")
    block = _dataset(repository, dataset, source, kind) if source else None
    params = add_pipeline(repository, name, template, dataset, block)
    written, copied = params.pipelines[name], params.pipelines[template]
    lines = [f"Added pipeline {name} to {PARAMS}, with the settings of {template} and the dataset {written.dataset}."]
    if written.dataset != copied.dataset:
        lines += _bounds_to_check(name, written)
    lines += [f'Next: git commit -m "Add {name}" {PARAMS}   (a version of uncommitted settings is not promoted)']
    lines += [f"      remint run {name}"]
    lines += ["      remint deploy   (for its schedule)"] if written.schedule else []
    terminal.out.print("\n".join(map(escape, lines)), soft_wrap=True)


def _dataset(repository: Path, name: str, source: str, kind: Kind | None) -> dict[str, Any]:
    """Return the block of a new dataset. Raises SettingsError or DataError if there is nothing at its source."""
    from remint.data import shipped, sources

    by_name = "table" if source.lower().endswith(sources.TABLES) or source in shipped.TABLES else "image"
    block = {"source": source, "kind": kind or by_name}
    settings = validate_params({"datasets": {name: block}, "pipelines": {}}).datasets[name]
    if not source.startswith(sources.REMOTE):
        sources.locate_source(name, settings, repository, fetched=None)
    return block


def _bounds_to_check(name: str, settings: PipelineSettings) -> list[str]:
    """Return a line on the bounds that were chosen for the other dataset and may not fit this one."""
    bounds = [
        f"{metric}: {word} {value}"
        for metric, bound in settings.promotion.require.items()
        for word, value in (("min", bound.min), ("max", bound.max))
        if value is not None
    ]
    if not bounds:
        return []
    key, old = f"pipelines.{name}.promotion.require", ", ".join(bounds)
    return [f"Set {key} for this data: {old} comes from the old one. Without {key} the first run suggests bounds."]
