"""Commands for the care of registered versions and stores: rebuild, audit and gc."""

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
    """Rebuild a version from the files and tags that it was registered with, and compare data, weights, report and metrics.

    Example: remint rebuild digits-vae/7
    """
    home = Home.of(git.repository_of(Path.cwd())).ensure()  # no params.yaml: the version has its own
    from remint.maintenance import rebuild as rebuilding

    with terminal.Display() as display, processes.interruptible():
        answer = rebuilding.rebuild(home, model, display)
    if as_json:
        print_json(answer.to_json())
    else:
        screens.rebuild(answer)
    if not answer.reproduced:
        raise SystemExit(1)


@app.command()
def audit(
    repair: Annotated[bool, typer.Option("--repair", help="Make the safe repairs, then audit again.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read the bytes of all versions and of DVC's remote; load served and kept versions.")
    ] = False,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="Leave out Prefect and start no server.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare git, DVC's remote, MLflow, its files, the ledger and Prefect. Exit status 1 if they differ.

    Example: remint audit --repair
    """
    home, _ = here()
    from flows.stack.audit import run_audit

    found = run_audit(home, terminal.say, repair=repair, deep=deep, prefect=not no_prefect)
    if as_json:
        print_json(found.to_json())
    else:
        screens.audit(found)
    if any(not finding.repaired and not finding.note for finding in found.findings):
        raise SystemExit(1)


@app.command()
def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Remove the listed things; refused if a root is damaged.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0.0, help="Age in days; younger things stay, with everything that they need.")
    ] = 7.0,
    keep_champions: Annotated[
        int,
        typer.Option(
            "--keep-champions", min=1, help="Champions to keep per model, with the present one: rollback can return to them."
        ),
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """List things in MLflow, DVC's cache and remote, REMINT_HOME and refs/remint that are not needed; with --apply remove them.

    Needed are champions, versions that a rollback can return to, versions with another alias, with the tag remint.keep or
    awaiting approval or shadow, the things that running jobs use, and everything that is needed to rebuild these versions.

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


@app.command("export-state")
def export_state(
    folder: Annotated[Path, typer.Argument(help="A new folder, or one of an earlier export.")], as_json: AsJson = False
) -> None:
    """Write ledger, registry and the files of its runs to a folder, to move them to other stores. Nothing here is changed.

    Stop the workers and servers first. The same command goes on after an interruption.

    Example: remint export-state /mnt/remint-state
    """
    home, _ = here()
    from remint.maintenance import state

    done = state.export_state(home, folder.absolute(), terminal.say)
    if as_json:
        print_json(done.to_json())
    else:
        screens.exported(done, folder)


@app.command("import-state")
def import_state(
    folder: Annotated[Path, typer.Argument(help="The folder of remint export-state.")], as_json: AsJson = False
) -> None:
    """Copy a state into the stores of REMINT_LEDGER, MLFLOW_TRACKING_URI and REMINT_ARTIFACTS, and verify all of it.

    Stores with other content are refused. What is there already is compared and kept: the same command goes on after an
    interruption. Exit status 1 if the audit at the end finds something.

    Example: remint import-state /mnt/remint-state
    """
    home, _ = here()
    from remint.maintenance import state

    done = state.import_state(home, folder.absolute(), terminal.say)
    if as_json:
        print_json(done.to_json())
    else:
        screens.imported(done)
    if any(not finding.note for finding in done.findings):
        raise SystemExit(1)
