"""Commands for schedules, the local stack and this machine: deploy, up, metrics, init and doctor."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from remint.cli import screens, terminal
from remint.cli.app import AsJson, app, here, print_json
from remint.errors import SettingsError
from remint.runtime.home import Home
from remint.settings.params import LatestParams, load_params
from remint.stores import git

# Addresses that are not stored in a deployment: they may contain a password, and Prefect shows a deployment's content.
STORES = ("MLFLOW_TRACKING_URI", "REMINT_LEDGER", "REMINT_ARTIFACTS", "REMINT_DVC_REMOTE")


@app.command()
def deploy(
    branch: Annotated[str, typer.Option(help="Branch whose head scheduled jobs build; the current branch if omitted.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the changes only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create the Prefect deployments that params.yaml asks for, and remove others.

    They are a retraining per pipeline with a schedule or triggers, a flow per trigger, a form per pipeline with approval: manual,
    and a judge of waiting versions per pipeline with serving.shadow.

    Lists the changes first: new (+), changed (~), unchanged, removed (-). Deployments that were paused in Prefect stay paused.

    Example: remint deploy --branch main
    """
    home, params = here()
    branch = branch or git.branch_of(home.repository)
    git.commit_of(home.repository, branch)
    from flows.server import server

    with server.api(home, terminal.say):
        from flows.stack import deploy as deployment
        from flows.stack import notify

        if params.notify is not None:
            notify.find_block(params.notify)
        planned = deployment.plan(home, params, branch)
        if not as_json:
            for change in planned:
                terminal.out.print(escape(deployment.describe(change)), soft_wrap=True)
        done = planned if dry_run else deployment.deploy(home, params, planned)
    if as_json:
        print_json([asdict(change) for change in done])
        return
    if params.notify is not None:
        told = ", ".join(event.replace("_", " ") for event in params.notify.events)
        terminal.out.print(f"Prefect's block {params.notify.block} tells these events: {told}", soft_wrap=True)
    if dry_run:
        return
    deployed = [change for change in done if change.action != "removed"]
    nothing = "No pipeline has a schedule:, triggers:, serving.shadow or approval: manual in params.yaml."
    terminal.out.print("They run only while a server and a worker run: remint up" if deployed else nothing)
    own = [name for name in STORES if os.environ.get(name)]
    if deployed and own:
        terminal.out.print(
            f"A run gets the environment of its worker: set {', '.join(own)} there to the same values.", soft_wrap=True
        )


@app.command()
def up() -> None:
    """Start the local stack in this terminal: Prefect server, MLflow server, a worker that runs the schedules, and the console.

    Example: remint up
    """
    home, _ = here()
    from flows.stack.up import up as start

    raise SystemExit(start(home))


@app.command()
def metrics(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port.")] = 9108,
    host: Annotated[str, typer.Option(help="Address to listen at. The default is this machine only.")] = "127.0.0.1",
) -> None:
    """Serve Prometheus metrics of the whole installation at /metrics: retrainings, champions, approvals, drift, queue, trainings.

    The console of remint up and remint serve have them too. Set REMINT_SERVE_TOKEN to ask for a token.

    Example: remint metrics --port 9108
    """
    home, _ = here()
    from flows.stack.metrics import serve

    serve(home, LatestParams(home.repository), host, port, terminal.say)


@app.command()
def worker(
    pool: Annotated[str, typer.Option(help="Work pool of Prefect; it is made if it is missing.")] = "remint",
) -> None:
    """Run flow runs of one work pool on this host until it is stopped: those that resources: of a pipeline sends there.

    Serves the Prefect server at PREFECT_API_URL, else that of remint up. Needs a clone for the pool remint only. On SIGTERM
    its runs write a checkpoint and are handed back to Prefect.

    Example: remint worker --pool gpu
    """
    from flows.server import place, server

    home = place.home_to_serve(with_clone=pool == "remint")
    address = os.environ.get("PREFECT_API_URL") or (server.stack(home) or {}).get("prefect")
    if not address:
        raise SettingsError(server.NO_ADDRESS)
    os.environ["PREFECT_API_URL"] = address
    from flows.stack.worker import main

    main(home, pool)


@app.command()
def init() -> None:
    """Create the databases of Prefect, MLflow and the ledger, so that the first run does not wait for them.

    Example: remint init
    """
    home, _ = here()
    from flows.server import server

    server.initialise(home, terminal.say)


@app.command()
def doctor(
    production: Annotated[
        bool, typer.Option("--production", help="Try every part for real: probes are written, read back and deleted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Report missing parts of this machine and how to get them, and open servers. Exit status 1 if there are any.

    Checks Python, git, packages, torch, disk, DVC's remote, S3, MLflow, the ledger and Prefect, and changes nothing. With
    --production also writing, versions of servers, clocks, migrations, devices with NCCL, and the alert rules.

    Example: remint doctor --production
    """
    home = Home.of(git.repository_of(Path.cwd()))
    from flows.stack import doctor as checks
    from remint.maintenance.doctor import Symptom, facts

    try:
        found = checks.run_doctor(home, load_params(home.repository), real=production)
    except SettingsError as error:
        params = Symptom(about="params", level="missing", what=f"{error}", why="No pipeline runs.", do="Correct params.yaml.")
        found = [params, *checks.run_doctor(home, None, real=production)]
    if as_json:
        print_json([each.to_json() for each in found])
    else:
        screens.doctor(facts(home), found)
    if any(each.level != "note" for each in found):
        raise SystemExit(1)
