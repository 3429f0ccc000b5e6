"""Commands that take care of what is registered: rebuild it, hold the stores against each other, collect what nothing reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remint.cli import screens, terminal
from remint.cli.app import AsJson, ModelRef, app, here, print_json
from remint.runtime import processes
from remint.runtime.home import Home
from remint.stores import git


@app.command()
def rebuild(model: ModelRef, as_json: AsJson = False) -> None:
    """Build a version again from what it carries alone, and compare: data, weights, report and every metric.

    Example: remint rebuild digits-vae/7
    """
    home = Home.of(git.repository_of(Path.cwd())).ensure()  # no params.yaml: the version has its own
    from remint.maintenance import rebuild as again

    with terminal.Display() as display, processes.interruptible():
        answer = again.rebuild(home, model, display)
    if as_json:
        print_json(answer.to_json())
    else:
        screens.rebuild(answer)
    if not answer.reproduced:
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
    from flows.stack.audit import run_audit

    found = run_audit(home, terminal.say, repair=repair, deep=deep, prefect=not no_prefect)
    if as_json:
        print_json(found.to_json())
    else:
        screens.audit(found)
    if any(not finding.repaired for finding in found.findings):
        raise SystemExit(1)


@app.command()
def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Remove what is listed; refused where a root is damaged.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0.0, help="Days; what is younger stays, with all that it needs.")
    ] = 7.0,
    keep_champions: Annotated[
        int,
        typer.Option("--keep-champions", min=1, help="Of each model, the present one among them: a roll back can go to these."),
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """List what nothing needs in MLflow, DVC's cache and remote, REMINT_HOME and refs/remint; with --apply remove it.

    Needed are champions, what a roll back can go to, other aliases, what awaits approval, versions with the tag remint.keep,
    what running jobs use, and all that a rebuild of these takes.

    Example: remint gc --older-than 30 --apply
    """
    home, _ = here()
    from remint.maintenance.gc import collect_garbage

    answer = collect_garbage(home, remove=apply, older_than=older_than, window=keep_champions, say=terminal.say)
    if as_json:
        print_json(answer.to_json())
    else:
        screens.collected(answer)
    if answer.damaged:
        raise SystemExit(1)
