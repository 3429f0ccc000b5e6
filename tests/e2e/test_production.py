"""`remint doctor --production` as a command, with a real Prefect server and its real database."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.prefect_server import PrefectServer
from tests.support.team import Team


def test_the_command_tries_every_part_and_finds_prefect_right(shared_team: Team, server: PrefectServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{server.home}/prefect.db"}
    process = shared_team.start("doctor", "--production", "--json", log=log, new=False, **database)
    assert process.wait(timeout=300) == 1, "the ledger is a file of one host"
    found = json.loads(log.read_text())
    wrong = [(each["about"], each["what"]) for each in found if each["level"] != "note"]
    assert [about for about, _ in wrong if about not in ("packages", "disk")] == ["home"], wrong
    assert "files of this host" in str(wrong)
