"""Text output of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from remint.cli import screens
from remint.promotion import gallery
from remint.promotion.outcome import Verdict
from remint.runtime.home import Home
from tests.support.retraining_cases import OUTCOME


@pytest.mark.parametrize(("champion", "ref"), [(3, "m"), (None, "m/4")])
def test_next_commands_name_a_version_where_there_is_no_champion(champion: int | None, ref: str) -> None:
    line = screens.next_commands(OUTCOME.model_copy(update={"champion": champion}))
    assert line == f"Next: remint why {ref}   remint sample {ref}   remint history m   remint up"


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (False, "m: same data, same settings, same code: nothing was trained; m/3 is in production."),
        (True, "m: it was trained again, with the same weights as m/4; m/3 is in production."),
    ],
)
def test_an_unchanged_outcome_says_whether_it_was_trained(
    trained: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gallery, "compare", lambda _home, _done: [])
    promoted = Verdict(verdict="promoted", reasons=(), rules=())
    outcome = OUTCOME.model_copy(update={"trained": trained, "unchanged": True, "decision": promoted})
    screens.outcomes(Home(tmp_path, tmp_path), [outcome])
    printed = capsys.readouterr()
    assert said in " ".join((printed.out + printed.err).split())
