"""Commands that write blocks of params.yaml."""

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
    """Write a new block into params.yaml."""


@new.command()
def pipeline(
    name: Annotated[str, typer.Argument(help="The new pipeline.")],
    template: Annotated[str, typer.Option("--from", help="The pipeline to copy.", autocompletion=completion.pipelines)],
    dataset: Annotated[
        str,
        typer.Option(
            help="What to train on; a new dataset with --source; that of --from if omitted.", autocompletion=completion.datasets
        ),
    ] = "",
    source: Annotated[
        str, typer.Option(help="Adds the dataset: a folder or file (relative to the repository), or an address.")
    ] = "",
    kind: Annotated[Kind | None, typer.Option(help="Of the new dataset; table for .csv and .parquet if omitted.")] = None,
) -> None:
    """Write a pipeline into params.yaml: a copy of another, for a dataset of yours. The rest of the file stays as it is.

    Example: remint new pipeline cats-vae --from digits-vae --dataset cats --source data/cats
    """
    repository = git.repository_of(Path.cwd())
    if not source and kind:
        raise SettingsError("--kind is for a new dataset: give its --source, too")
    if source and not dataset:
        raise SettingsError("--source is for a new dataset: give its name by --dataset")
    block = _dataset(repository, dataset, source, kind) if source else None
    params = add_pipeline(repository, name, template, dataset, block)
    written, copied = params.pipelines[name], params.pipelines[template]
    lines = [f"{PARAMS} has the pipeline {name} now, with the settings of {template} and the dataset {written.dataset}."]
    if written.dataset != copied.dataset:
        lines += _to_set(name, written)
    lines += [f'Next: git commit -m "Add {name}" {PARAMS}   (a version of uncommitted settings is not promoted)']
    lines += [f"      remint run {name}"]
    lines += ["      remint deploy   (for its schedule)"] if written.schedule else []
    terminal.out.print("\n".join(map(escape, lines)), soft_wrap=True)


def _dataset(repository: Path, name: str, source: str, kind: Kind | None) -> dict[str, Any]:
    """The block of a new dataset. Raises SettingsError or DataError where there is nothing at its source."""
    from remint.data import shipped, sources

    by_name = "table" if source.endswith(sources.TABLES) or source in shipped.TABLES else "image"
    block = {"source": source, "kind": kind or by_name}
    settings = validate_params({"datasets": {name: block}, "pipelines": {}}).datasets[name]
    if not source.startswith(sources.REMOTE):
        sources.located(name, settings, repository, fetched=None)
    return block


def _to_set(name: str, settings: PipelineSettings) -> list[str]:
    """What was right for the other dataset and may be wrong for this one."""
    bounds = [
        f"{metric}: {word} {value}"
        for metric, bound in settings.promotion.require.items()
        for word, value in (("min", bound.min), ("max", bound.max))
        if value is not None
    ]
    return [f"Set pipelines.{name}.promotion.require for this data: {', '.join(bounds)} is from the old one."] if bounds else []
