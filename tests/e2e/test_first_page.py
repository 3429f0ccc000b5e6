"""The commands of the first page of the docs, word for word and in order, but for the local stack and Fashion-MNIST."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.team import SOURCE, Team

COMMAND = re.compile(r"^    ((?:remint|dvc) .*?)(?: +#.*)?$", re.MULTILINE)


@pytest.mark.soak
def test_the_commands_of_the_first_page_work_in_order(trained_team: Team, prefect_server: str, tmp_path: Path) -> None:
    trained_team.api = prefect_server
    page = (SOURCE / "docs/index.md").read_text()
    first, more = (
        page.partition("## First run")[2].partition("## The local stack")[0],
        page.partition("## More ready pipelines")[2],
    )
    commands = [command for command in COMMAND.findall(first + more) if "fashion" not in command]
    assert len(commands) == 14
    for command in (command.replace("/tmp/", f"{tmp_path}/") for command in commands):
        trained_team.sh(f"set -e\n{command}", new=False)
        assert trained_team.sh("git status --porcelain") in ("", "?? dvc.lock\n"), f"{command} left uncommitted work"
    for name in ("grid.png", "threes.png"):
        assert (trained_team.folder / name).read_bytes()[:4] == b"\x89PNG"
