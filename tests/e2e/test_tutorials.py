"""The tutorials as written: their settings, their commands, and their output except for numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from remint.settings.params import read_params, write_params
from tests.support.team import SOURCE, Team

BLOCK = re.compile(r"^```(sh|yaml|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\b[0-9a-f]{10}\b|[+-]?\d[\d.]*")


def normalised_lines(output: str) -> set[str]:
    """Return the lines with # in place of each number and digest, which depend on the machine, and with single blanks."""
    return {" ".join(NUMBER.sub("#", line).split()) for line in output.splitlines()} - {""}


def follow(team: Team, page: Path) -> None:
    """Add the page's settings, run its commands, and compare their output with the page."""
    printed = ""
    for kind, block in BLOCK.findall(page.read_text()):
        if kind == "yaml":
            content = read_params(team.folder)
            for name, added in parse_block(block, team.folder / "added").items():
                content[name] |= added
            write_params(content, team.folder)
        elif kind == "sh":
            printed = team.sh(f"set -e\n{block}", new=False)
        else:
            missing = normalised_lines(block) - normalised_lines(printed)
            assert not missing, f"{page.name} shows {missing}, and the command said\n{printed}"


def parse_block(block: str, folder: Path) -> dict[str, dict[str, object]]:
    """Parse a YAML block as params.yaml is parsed."""
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(block)
    content = read_params(folder)
    (folder / "params.yaml").unlink()
    folder.rmdir()
    return content


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("table", "flats-vae"),
        pytest.param("pictures", "shapes-vae", marks=pytest.mark.soak),
        pytest.param("augment", "kinds-vae", marks=pytest.mark.soak),
        pytest.param("missing-values", "homes-vae", marks=pytest.mark.soak),
        pytest.param("anomalies", "logins-vae", marks=pytest.mark.soak),
    ],
)
def test_a_tutorial_ends_in_a_promoted_champion(lone_team: Team, prefect_server: str, page: str, model: str) -> None:
    lone_team.api = prefect_server
    follow(lone_team, SOURCE / f"docs/tutorials/{page}.md")
    (champion,) = [each for each in lone_team.json("models", model) if "champion" in each["aliases"]]
    assert champion["verdict"] == "promoted"
    assert not lone_team.sh("git status --porcelain"), "the next version would be built from uncommitted work"
