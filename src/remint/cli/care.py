"""Commands that take care of what is registered: rebuild it, hold the stores against each other, collect what nothing reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remint import processes, screens, terminal, workspace
from remint.cli.app import AsJson, ModelRef, app, here, print_json
from remint.home import Home


@app.command()
def rebuild(model: ModelRef, as_json: AsJson = False) -> None:
    """Build a version again from what it carries alone, and compare: data, weights, report and every metric.

    Example: remint rebuild digits-vae/7
    """
    home = Home.of(workspace.repository_of(Path.cwd())).ensure()  # no params.yaml: the version has its own
    from remint import rebuild as again

    with terminal.Display() as display, processes.interruptible():
        answer = again.rebuild(home, model, display)
    if as_json:
        print_json(answer)
    else:
        screens.rebuild(answer)
    if not answer["reproduced"]:
        raise SystemExit(1)


@app.command()
def audit(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is safe to mend, and look again.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read the bytes of all versions and of DVC's remote; load what is served or kept.")
    ] = False,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="Leave Prefect out: no server is started.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hold git, DVC's remote, MLflow, its files, the ledger and Prefect against each other; exit status 1 where they differ.

    Example: remint audit --repair
    """
    home, _ = here()
    from flows.audit import run

    found, looked = run(home, terminal.say, repair=repair, deep=deep, prefect=not no_prefect)
    if as_json:
        print_json([finding.to_json() for finding in found])
    else:
        screens.audit(found, looked)
    if any(not finding.repaired for finding in found):
        raise SystemExit(1)
