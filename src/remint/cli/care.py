"""Commands that take care of what is registered: rebuild it, hold the stores against each other, collect what nothing reaches."""

from __future__ import annotations

from pathlib import Path

from remint import processes, screens, terminal, workspace
from remint.cli.app import AsJson, ModelRef, app, print_json
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
