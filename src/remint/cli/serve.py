"""Command that serves models over HTTP."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from remint.cli import completion, terminal
from remint.cli.app import app, here


class Engine(StrEnum):
    one = "one"
    ray = "ray"


@app.command()
def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Each NAME (its champion), NAME@challenger or NAME/7. None: each pipeline, from when it has a champion on.",
            autocompletion=completion.model_refs,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen at. The default is this machine only.")] = "127.0.0.1",
    every: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds between two looks at the ledger.")] = 5.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    body: Annotated[int, typer.Option(min=1, help="MiB of one request's body.")] = 32,
    examples: Annotated[int, typer.Option(min=1, help="Examples of one request.")] = 10_000,
    waiting: Annotated[int, typer.Option(min=1, help="Requests of one model that may wait.")] = 256,
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds until a request is given up.")] = 30.0,
    engine: Annotated[Engine, typer.Option(help="one: this process answers. ray: replicas under Ray Serve answer.")] = Engine.one,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas of --engine ray.")] = 2,
) -> None:
    """Serve champions over HTTP, and switch to a new champion without a dropped request. The console is at /.

    Set REMINT_SERVE_TOKEN to ask for a token, REMINT_SERVE_PERSON to decide on the console's pages, and REMINT_CLUSTER to the
    address of a Ray cluster to use that one.

    Example: remint serve digits-vae digits-flow --port 8000
    """
    home, params = here()
    from flows.stack.console import pages
    from remint.promotion.shadow import settings_of
    from remint.serving.app import cluster, run
    from remint.serving.app.limits import Limits
    from remint.settings.params import LatestParams

    run.check_port(host, port)
    limits, token = Limits(body << 20, examples, waiting, seconds), os.environ.get("REMINT_SERVE_TOKEN")
    refs = names or list(params.pipelines)
    serving = run.Serving(home, refs, limits, every, device, token, terminal.say, settings_of)
    if engine == Engine.ray:
        terminal.say(f"http://{host}:{port}/docs lists what it answers")
        cluster.serve(serving, host, port, replicas)
    else:
        terminal.say(f"http://{host}:{port}/ is the console, /docs lists what it answers")
        run.serve(serving, host, port, pages(home, LatestParams(home.repository)), wait=not names)
