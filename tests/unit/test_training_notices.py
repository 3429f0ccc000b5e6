"""Notices of a training: each event after which it continues is printed as a message for the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.server import progress
from remint.cli.terminal import Display
from remint.distributed import launch
from remint.errors import Interrupted, StepError
from remint.training.checkpoint import Checkpoints
from tests.support.loop_cases import Cliff, Fit, Line, train_line

CLIFF: dict[str, Any] = {"steps": 24, "warmup": 1.0, "learning_rate": 0.1, "checkpoint_every": 5}


@pytest.mark.slow
def test_every_notice_has_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_EVENTS", str(tmp_path / "events.jsonl"))
    model = Line()
    train_line(tmp_path / "cliff", model, [Cliff(model, 0.04)], **CLIFF)
    for _ in range(2):
        model = Line()
        with pytest.raises(StepError):
            train_line(tmp_path / "fails", model, [Cliff(model, -1.0)], skip_limit=0, rollbacks=0)
    model, asked, damaged = Line(), iter([False, True]), Checkpoints(tmp_path / "damaged", "d")
    with pytest.raises(Interrupted):
        train_line(tmp_path / "damaged", model, [Fit(model)], stop=lambda: next(asked))
    (damaged.at(2) / "notes.json").write_text("")
    assert damaged.newest() is None
    launch.emit("restarted", processes=2, message="process 7 was stopped, and all others waited for it")

    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(progress, "listeners", [lambda pipeline, event, fields: heard.append({"event": event, **fields})])
    report = progress.reporter("mine", "train")
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        if json.loads(line)["event"] != "progress":
            report(json.loads(line))
    broke = "the loss of phase cliff is nan"
    assert [Display()._text(each.pop("event"), each) for each in heard] == [
        f"step 13 was skipped, 1 in all so far: {broke}",
        f"step 14 was skipped, 2 in all so far: {broke}",
        f"step 16 was skipped, 4 in all so far: {broke}",
        f"at step 18 6 steps in a row were skipped, the last because {broke}: returns to step 10, learning rate times 0.5 (1 of 2)",
        f"step 1 was skipped, 1 in all so far: {broke}",
        f"this training diverged before (its record: {tmp_path}/fails/d/diverged); it is tried again from step 0",
        f"step 1 was skipped, 1 in all so far: {broke}",
        f"{damaged.at(2)}/notes.json is damaged: its SHA-256 is not the one in manifest.json; it was set aside as "
        f"{damaged.folder}/damaged-00000002, and the checkpoint before it is used",
        "process 7 was stopped, and all others waited for it: it was killed, and all 2 continue from the last checkpoint",
    ]
