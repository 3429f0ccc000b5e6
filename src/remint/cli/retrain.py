"""Commands that train or judge: run, spread and monitor."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from remint.cli import completion, screens, terminal
from remint.cli.app import AsJson, app, here, print_json
from remint.errors import RemintError
from remint.runtime import processes
from remint.settings.params import apply_overrides, read_params, validate_params


@app.command()
def run(
    pipelines: Annotated[
        list[str], typer.Argument(help="Names below pipelines: in params.yaml.", autocompletion=completion.pipelines)
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value below the pipeline's name; recorded with the version.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason, recorded in the ledger.")] = "",
    as_json: AsJson = False,
) -> None:
    """Retrain now: version the data, train, evaluate, register, and promote a model that is shown to be better.

    Example: remint run digits-vae --set training.steps=20
    """
    from remint.promotion.retraining import check_missing

    home, params = here()
    changed = {}
    for name in pipelines:
        params.pipeline(name)
        changed[name] = validate_params(apply_overrides(read_params(home.repository), name, set_ or []))
        check_missing(home, changed[name], name)
    from flows.server import server

    with server.api(home, terminal.say):
        from flows import elsewhere
        from flows.run import retrain_pipelines as run_flows
        from flows.server import progress

        for name, settings in changed.items():
            elsewhere.check(settings, name)
        with terminal.Display() as display:
            progress.listeners.append(display)
            results = run_flows(params, list(dict.fromkeys(pipelines)), set_ or [], reason)
    errors = [(name, result) for name, result in results.items() if isinstance(result, RemintError)]
    outcomes = [result for result in results.values() if not isinstance(result, RemintError)]
    if as_json:
        print_json([outcome.to_json() for outcome in outcomes])
    elif outcomes:
        screens.outcomes(home, outcomes)
    for name, error in errors:
        terminal.error(f"{name}: {error}")
    if errors:
        raise SystemExit(min(error.exit_status for _, error in errors))


@app.command()
def spread(
    pipeline: Annotated[str, typer.Argument(help="A name below pipelines: in params.yaml.", autocompletion=completion.pipelines)],
    seeds: Annotated[int, typer.Option(min=3, max=100, help="How many seeds, from training.seed upwards.")] = 5,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value below the pipeline's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train one recipe with several seeds and record how much its metrics differ. margin: auto asks for more than that.

    Example: remint spread digits-flow --seeds 5
    """
    from remint.promotion.retraining import check_missing

    home, params = here()
    params.pipeline(pipeline)
    changed = validate_params(apply_overrides(read_params(home.repository), pipeline, set_ or []))
    check_missing(home, changed, pipeline)
    settings = changed.pipeline(pipeline)
    first = settings.training.seed
    confidence = settings.promotion.improve.confidence if settings.promotion.improve else 0.95
    from flows.server import server

    with server.api(home, terminal.say):
        from flows.server import process_tags, progress
        from flows.spread import seed_spread

        with terminal.Display() as display, processes.interruptible(), process_tags.tagged():
            progress.listeners.append(display)
            answer = seed_spread(pipeline, list(range(first, first + seeds)), set_ or [], confidence)
    if as_json:
        print_json(answer.to_json())
    else:
        screens.spread(answer)


@app.command()
def monitor(
    pipeline: Annotated[str, typer.Argument(help="A name below pipelines: in params.yaml.", autocompletion=completion.pipelines)],
    as_json: AsJson = False,
) -> None:
    """Judge the champion on today's data, and hold these against the data that it was trained on. Nothing is trained.

    The check counts: of all champions whose data never drift, at most 5% have an alarm in their whole life.

    Example: remint monitor digits-flow
    """
    home, params = here()
    params.pipeline(pipeline)
    from remint.promotion import monitoring

    if monitoring.reign(home, pipeline) is None:
        answer = monitoring.nothing_to_judge(pipeline)
    else:
        from flows.server import server

        with server.api(home, terminal.say):
            from flows.server import process_tags, progress
            from flows.watch import monitor as judge

            with terminal.Display() as display, processes.interruptible(), process_tags.tagged():
                progress.listeners.append(display)
                answer = cast("monitoring.Monitoring", judge(pipeline))
    if as_json:
        print_json(answer.to_json())
    else:
        screens.monitoring(answer)
