"""Real retraining without its steps: job, lease, settings and checkout, and the records that a test writes there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from remint.evaluation.evidence import Evidence
from remint.promotion.outcome import Outcome, Verdict
from remint.promotion.retraining import Retraining
from remint.records import DatasetVersion, TrainedModel
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import Params, read_params, validate_params
from remint.stores.dvc import Workspace
from remint.stores.git import Commit
from remint.stores.ledger import leases

Events = list[tuple[str, dict[str, Any]]]  # events with their fields

CLEAN_COMMIT = Commit("c" * 40, dirty=False)
OUTCOME = Outcome(
    pipeline="m",
    dataset="d",
    dataset_version="d" * 64,
    weights_sha256="w" * 64,
    model="m",
    version=4,
    champion=3,
    trained=True,
    unchanged=False,
    metrics={},
    context={},
    decision=Verdict(verdict="kept", reasons=(), rules=()),
    report="",
    seconds={},
)
REPOSITORY = Path(__file__).parents[2]


def params_of(pipeline: str, **blocks: Any) -> Params:
    """Return this repository's settings with some blocks of one pipeline replaced."""
    content = read_params(REPOSITORY)
    content["pipelines"][pipeline] |= blocks
    return validate_params(content)


@contextmanager
def retraining(
    home: Home,
    params: Params,
    pipeline: str,
    *,
    commit: Commit = CLEAN_COMMIT,
    checkout: Path | None = None,  # None: an empty folder
    events: Events | None = None,
) -> Iterator[Retraining]:
    """Open a retraining as flows/job.py does, but with its own lease: some tests run two at once on one pipeline."""
    recorded: Events = [] if events is None else events
    with jobs.live(home, pipeline=pipeline, commit=commit.sha, flow_run="") as record:
        folder = checkout or home.workspaces / record.id
        (folder / ".dvc").mkdir(parents=True, exist_ok=True)
        (folder / ".dvc/config").touch()
        with leases.held(home, f"{pipeline} {record.id}", leases.Holder.of(pipeline, record), print) as lease:
            yield Retraining(
                home=home,
                record=record,
                pipeline=pipeline,
                params=params,
                overrides={},
                reason="",
                commit=commit,
                dvc=Workspace(folder, home, logs=record.folder),
                lease=lease,
                listener=lambda _, event, fields: recorded.append((event, fields)),
            )
        shutil.rmtree(folder)


def write_records(job: Retraining, dataset: DatasetVersion, trained: TrainedModel, evidence: Evidence) -> None:
    """Write the records that the steps would have written."""
    for folder in (job.out("prepared", job.settings.dataset), job.out("trained")):
        folder.mkdir(parents=True)
    dataset.write(job.out("prepared", job.settings.dataset) / "dataset.json")
    np.save(job.out("prepared", job.settings.dataset) / "held_out.npy", np.arange(20.0).reshape(10, 2))
    trained.write(job.out("trained") / "training.json")
    evidence.save(job.out("reports"))
