"""Retraining of a plug-in family by the command line, with the code of the job's own checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from remint.settings.params import read_params, write_params
from tests.support.team import Team

SOURCE = "examples/pixelcnn/family.py"


@pytest.fixture
def with_pixelcnn(team: Team) -> Team:
    """Team with a short pipeline of the example family."""
    content = read_params(team.folder)
    flow = content["pipelines"]["digits-flow"]
    training = {**flow["training"], "steps": 20}
    model = {"hidden": 8, "layers": 2}
    content["pipelines"]["digits-pixelcnn"] = {**flow, "family": "pixelcnn", "model": model, "training": training}
    write_params(content, team.folder)
    team.sh("git commit -qam 'a pipeline of a plug-in'")
    return team


@pytest.mark.soak
def test_a_plug_in_is_trained_promoted_and_sampled_and_a_broken_one_is_named(with_pixelcnn: Team, tmp_path: Path) -> None:
    (outcome,) = with_pixelcnn.json("run", "digits-pixelcnn")
    assert outcome["trained"] and set(outcome["metrics"]) == {"nll", "fd_domain"}
    assert outcome["decision"]["verdict"] == "promoted"
    with_pixelcnn.remint("sample", "digits-pixelcnn", "-n", "4", "-o", str(tmp_path / "grid.png"))

    # Only the copy in the job's checkout is broken: the installed entry point leads to another tree.
    (with_pixelcnn.folder / SOURCE).write_text("raise RuntimeError('broken')\n")
    done = with_pixelcnn.remint("run", "digits-pixelcnn", status=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "pipelines.digits-pixelcnn: family 'pixelcnn': its plug-in examples.pixelcnn.family" in line
    assert "cannot be imported: RuntimeError: broken" in line


@pytest.mark.soak
def test_a_plug_in_that_was_edited_is_trained_again(with_pixelcnn: Team) -> None:
    (first,) = with_pixelcnn.json("run", "digits-pixelcnn")
    text = (with_pixelcnn.folder / SOURCE).read_text()
    edited = text.replace("return -in_unit(", "return -2.0 * in_unit(")
    assert edited != text
    (with_pixelcnn.folder / SOURCE).write_text(edited)
    (second,) = with_pixelcnn.json("run", "digits-pixelcnn")
    assert second["trained"] and second["weights_sha256"] != first["weights_sha256"]
    assert f"uncommitted changes in {SOURCE}" in " ".join(second["decision"]["reasons"])
