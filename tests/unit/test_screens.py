"""Text output of the commands."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.stack import audit as stack_audit
from remint.cli import app, maintenance, screens, terminal
from remint.maintenance.audit.fault import Fault, Finding, fault
from remint.maintenance.audit.run import Audit
from remint.promotion import gallery
from remint.promotion.outcome import Verdict
from remint.promotion.queries import VersionEntry
from remint.records import MetricValue
from remint.runtime.home import Home
from tests.support.retraining_cases import OUTCOME


@pytest.mark.parametrize(("champion", "ref"), [(3, "m"), (None, "m/4")])
def test_next_commands_name_a_version_where_there_is_no_champion(champion: int | None, ref: str) -> None:
    line = screens.next_commands(OUTCOME.model_copy(update={"champion": champion}))
    assert line == f"Next: remint why {ref}   remint sample {ref}   remint history m   remint up"


@pytest.mark.parametrize("number", ["nan", "inf", "1e12"])
@pytest.mark.parametrize("option", ["--every", "--seconds"])
def test_a_server_takes_no_time_that_no_clock_can_wait(
    option: str, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["serve", option, number])
    assert done.exit_code == 2 and f"Invalid value for '{option}'" in done.output


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (False, "m: data, settings and code of its training are those of m/4: nothing was trained; m/3 is in production."),
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


def test_a_notice_stays_on_a_terminal_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=written, force_terminal=True, width=120, highlight=False))
    with terminal.Display() as display:
        assert display.bars is not None
        display("m", "step", {"name": "data"})
        display("m", "notice", {"text": "column index: left out"})
        display("m", "step", {"name": "train"})
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in written.getvalue().splitlines()]
    assert "m: column index: left out" in [line.strip() for line in shown]


def entry(name: str, version: int, data: str) -> VersionEntry:
    value = MetricValue(name="nll", value=1.0, low=0.5, high=1.5, n=9, seed=0)
    return VersionEntry(
        name=name, version=version, aliases=(), weights_sha256="", dataset_version=data * 64, commit="", dirty=False,
        created="", verdict="kept", metrics={"nll": value},
    )  # fmt: skip


def test_metrics_on_other_data_than_the_newest_version_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    screens.models([entry("a", 3, "2"), entry("a", 2, "1"), entry("a", 1, "2"), entry("b", 1, "1")], None)
    lines = capsys.readouterr().out.splitlines()
    assert [("* nll" in line) for line in lines[1:5]] == [False, True, False, False]
    assert lines[5].startswith("* measured on other data than the newest version of the model: not comparable with its metrics.")
    screens.models([entry("a", 3, "2"), entry("b", 1, "1")], None)
    assert "*" not in capsys.readouterr().out


ORPHAN, RUN = (fault(kind, "x", "It is so.", "None.", "None.").finding for kind in ("orphan", "run"))
MENDED = RUN.model_copy(update={"repaired": True})


@pytest.mark.parametrize(
    ("found", "status", "last"),
    [
        ([], 0, "nothing wrong: 2 versions of 1 model, 1 read to the last byte"),
        ([ORPHAN], 0, "nothing wrong: 2 versions of 1 model, 1 read to the last byte; 1 note"),
        ([ORPHAN, RUN], 1, "1 left (2 versions of 1 model, 1 read to the last byte; 1 note)"),
        ([MENDED], 0, "1 repaired, 0 left (2 versions of 1 model, 1 read to the last byte)"),
        ([MENDED, ORPHAN], 0, "1 repaired, 0 left (2 versions of 1 model, 1 read to the last byte; 1 note)"),
    ],
)
def test_an_audit_that_finds_things_that_only_take_space_ends_well(
    found: list[Finding], status: int, last: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked = Audit([Fault(each) for each in found], models=1, versions=2, roots=1)
    monkeypatch.setattr(maintenance, "here", lambda: (Home.of(tmp_path), None))
    monkeypatch.setattr(stack_audit, "run_audit", lambda *_, **__: looked)
    done = CliRunner().invoke(app, ["audit"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (status, last)
