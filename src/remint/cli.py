"""The command line, on top of flows/.

Exit status: 0 the command did what it says (a refusal to promote is a result), 1 a run failed, 2 the input is wrong.
With ``--json`` exactly one JSON document goes to standard output; progress goes to standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from remint import config, screens, terminal, workspace
from remint.errors import RemintError
from remint.home import Home

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ModelRef = Annotated[str, typer.Argument(help="NAME (its champion), NAME@champion, NAME@challenger or NAME/7.")]


def main() -> None:
    """Entry point: our errors become one or two lines and an exit status, never a traceback."""
    try:
        app()
    except RemintError as error:
        terminal.err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        terminal.err.print("interrupted", soft_wrap=True)
        raise SystemExit(1) from None


@app.callback()
def _about() -> None:
    """Retrains generative models on schedule and promotes only what is proven better."""


def here() -> tuple[Home, config.Params]:
    """The home of the repository around the current folder, and its settings, both checked."""
    repository = workspace.repository_of(Path.cwd())
    return Home.of(repository).ensure(), config.load(repository)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


@app.command()
def run(
    pipelines: Annotated[list[str], typer.Argument(help="Names below pipelines: in params.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value below the pipeline's name; recorded with the version.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; goes into the ledger.")] = "",
    as_json: AsJson = False,
) -> None:
    """Retrain now: version the data, train, judge, register, and promote what is proven better.

    Example: remint run digits-vae --set training.steps=20
    """
    home, params = here()
    for name in pipelines:
        params.pipeline(name)
        config.validate(config.override(config.read(home.repository), name, set_ or []))
    from flows import server

    with server.api(home, terminal.say):
        from flows import progress
        from flows.run import run as run_flows

        with terminal.Display() as display:
            progress.listeners.append(display)
            results = run_flows(params, list(dict.fromkeys(pipelines)), set_ or [], reason)
    errors = [(name, result) for name, result in results.items() if isinstance(result, RemintError)]
    outcomes = [result for result in results.values() if isinstance(result, dict)]
    if as_json:
        print_json(outcomes)
    elif outcomes:
        screens.outcomes(home, outcomes)
    for name, error in errors:
        terminal.err.print(f"[red]error:[/red] {name}: {escape(str(error))}", soft_wrap=True)
    if errors:
        raise SystemExit(min(error.exit_status for _, error in errors))


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model; all of them where left out.")] = None, as_json: AsJson = False
) -> None:
    """What is registered, and what is champion.

    Example: remint models digits-vae
    """
    home, _ = here()
    from remint import queries

    answer = queries.models(home, name)
    if as_json:
        print_json(answer)
    else:
        screens.models(answer)


@app.command()
def why(model: ModelRef, as_json: AsJson = False) -> None:
    """What a version was made from, how it compares with the champion before it, and why it was promoted or not.

    Example: remint why digits-vae@champion
    """
    home, _ = here()
    from remint import queries

    answer = queries.why(home, model)
    if as_json:
        print_json(answer)
    else:
        screens.why(answer)


@app.command()
def history(model: Annotated[str, typer.Argument(help="NAME of a model.")], as_json: AsJson = False) -> None:
    """The ledger of one model: every decision, who took it, when and why, and whether the chain verifies.

    Example: remint history digits-vae
    """
    home, _ = here()
    from remint import queries

    answer = queries.history(home, model)
    if as_json:
        print_json(answer)
    else:
        screens.history(model, answer)


@app.command()
def promote(
    model: ModelRef, reason: Annotated[str, typer.Option(help="Why; goes into the ledger.")], as_json: AsJson = False
) -> None:
    """Make a version the champion by a person's word: one that awaits approval, or one that the gate refused.

    Example: remint promote digits-vae/3 --reason "looked at the samples"
    """
    _decide(model, "promoted", reason, as_json)


@app.command()
def reject(
    model: ModelRef, reason: Annotated[str, typer.Option(help="Why; goes into the ledger.")], as_json: AsJson = False
) -> None:
    """Turn a version down by a person's word; the champion stays.

    Example: remint reject digits-vae/3 --reason "smears the sevens"
    """
    _decide(model, "rejected", reason, as_json)


def _decide(model: str, action: Literal["promoted", "rejected"], reason: str, as_json: bool) -> None:
    home, _ = here()
    from remint import queries

    row = queries.decide(home, model, action, reason)
    if as_json:
        print_json(row)
    else:
        name = row["model"]
        terminal.out.print(
            f"{name}/{row['version']} was {action} by {row['who']}; champion: {screens.standing(name, row['champion_after'])}"
        )


@app.command()
def sample(
    model: ModelRef,
    count: Annotated[int, typer.Option("-n", min=1, max=100_000, help="How many samples.")] = 64,
    output: Annotated[
        Path, typer.Option("-o", help="A .png (a grid), a .npy (uint8, N x C x H x W), or a .csv of a table.")
    ] = Path("samples.png"),
    of_class: Annotated[str | None, typer.Option("--class", help="Of a conditional model: the class to draw.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends on the seed and i only.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw from a registered model, the champion unless another is named.

    Example: remint sample digits-vae -n 64 -o grid.png
    """
    home, _ = here()
    from remint import queries

    answer = queries.sample(home, model, count, seed, of_class, output)
    if as_json:
        print_json(answer)
    else:
        terminal.out.print(f"{answer['count']} samples of {answer['model']} with seed {seed}: {answer['path']}", soft_wrap=True)


@app.command()
def spread(
    pipeline: Annotated[str, typer.Argument(help="A name below pipelines: in params.yaml.")],
    seeds: Annotated[int, typer.Option(min=3, max=100, help="How many seeds, from training.seed upwards.")] = 5,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value below the pipeline's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train one recipe with several seeds and record what its metrics differ by: margin: auto asks for more than that.

    Example: remint spread digits-flow --seeds 5
    """
    home, params = here()
    params.pipeline(pipeline)
    settings = config.validate(config.override(config.read(home.repository), pipeline, set_ or [])).pipeline(pipeline)
    first = settings.training.seed
    confidence = settings.promotion.improve.confidence if settings.promotion.improve else 0.95
    from flows import server

    with server.api(home, terminal.say):
        from flows import progress
        from flows.run import interruptible
        from flows.spread import seed_spread

        with terminal.Display() as display, interruptible():
            progress.listeners.append(display)
            answer = seed_spread(pipeline, list(range(first, first + seeds)), set_ or [], confidence)
    if as_json:
        print_json(answer)
    else:
        screens.spread(answer)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="Each NAME (its champion), NAME@challenger or NAME/7.")],
    output: Annotated[Path, typer.Option("-o", help="The picture, a .png.")] = Path("compare.png"),
    as_json: AsJson = False,
) -> None:
    """Models side by side: metrics, seconds to draw and to score, size, and how each grows with the data.

    Example: remint compare digits-vae digits-gan digits-flow
    """
    home, _ = here()
    from remint import comparison

    answer = comparison.compare(home, names, output, terminal.say)
    if as_json:
        print_json(answer)
    else:
        screens.comparison(answer)


@app.command()
def deploy(
    branch: Annotated[str, typer.Option(help="Scheduled jobs build its head; the current branch where left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Give each pipeline with a schedule a Prefect deployment; take away those of pipelines without one.

    Example: remint deploy --branch main
    """
    home, params = here()
    branch = branch or workspace.branch_of(home.repository)
    workspace.commit_of(home.repository, branch)
    from flows import server

    with server.api(home, terminal.say):
        from flows.deploy import deploy as deploy_flows

        deployed = deploy_flows(home, params, branch)
    if as_json:
        print_json(deployed)
        return
    for entry in deployed:
        schedule = ", ".join(f"{key} {value}" for key, value in entry["schedule"].items())
        terminal.out.print(f"{entry['deployment']}: {schedule}, from the head of {branch}", soft_wrap=True)
    terminal.out.print(
        "Schedules fire while a server and a worker run: remint up" if deployed else "No pipeline has a schedule: in params.yaml."
    )


@app.command()
def up() -> None:
    """Start the local stack in this terminal: Prefect server, MLflow server, and a worker that runs the schedules.

    Example: remint up
    """
    home, _ = here()
    from flows.stack import up as start

    raise SystemExit(start(home))


@app.command()
def init() -> None:
    """Make the databases of Prefect, MLflow and the ledger, so that the first run need not wait for it.

    Example: remint init
    """
    home, _ = here()
    from flows import server

    server.initialise(home, terminal.say)
