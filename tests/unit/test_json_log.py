"""Logs as JSON: one object a line, with what is known of it and without secrets, from remint's own lines and from libraries."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from datetime import UTC, datetime

import pytest

from remint.cli import terminal
from remint.cli.app import main
from remint.runtime import json_log

SECRET = 'hunter2"and\\more'  # JSON writes it in another way than the text


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", SECRET)


def test_a_line_has_time_level_logger_and_message_and_no_secret() -> None:
    found = json.loads(json_log.line(f"two\nlines with {SECRET}", "WARNING", pipeline="digits-vae", step="", at=0.5))
    assert found == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "WARNING",
        "logger": "remint",
        "message": "two\nlines with ***",
        "pipeline": "digits-vae",
    }
    assert "\n" not in json_log.line("two\nlines")
    now = datetime.fromisoformat(json.loads(json_log.line("x"))["time"])
    assert abs((datetime.now(UTC) - now).total_seconds()) < 60


def test_records_of_libraries_keep_their_arguments_and_exceptions() -> None:
    record = logging.LogRecord("library", logging.ERROR, "f.py", 1, "refused %s", (SECRET,), None)
    try:
        raise ValueError(f"no {SECRET}")
    except ValueError:
        record.exc_info = sys.exc_info()
    found = json.loads(json_log.JsonFormatter("default", "%H", "%").format(record))
    assert (found["logger"], found["level"], found["message"]) == ("library", "ERROR", "refused ***")
    assert found["exception"].endswith("ValueError: no ***") and SECRET not in found["exception"]


def test_commands_and_servers_write_json_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json_log.of_uvicorn() is None
    monkeypatch.setenv("REMINT_LOG", "json")
    terminal.say("[a] line")
    terminal.error(f"no {SECRET}")
    terminal.Display()("digits-vae", "progress", {"name": "train", "step": 3, "steps": 9})
    terminal.Display()("digits-vae", "notice", {"text": "Prefect's log has it"})
    config = json_log.of_uvicorn()
    assert config is not None
    logging.config.dictConfig(config)
    logging.getLogger("uvicorn.error").error("of uvicorn")
    logging.getLogger("uvicorn").handlers.clear()
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["level"], each["message"]) for each in found] == [
        ("INFO", "[a] line"),
        ("ERROR", "no ***"),
        ("INFO", "digits-vae: trains 3/9"),
        ("ERROR", "of uvicorn"),
    ]


def test_another_value_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REMINT_LOG", "yaml")
    monkeypatch.setattr(sys, "argv", ["remint", "models"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "REMINT_LOG: expected json or text, not 'yaml'" in capsys.readouterr().err
