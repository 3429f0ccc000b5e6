"""Check that a bundle loads in a fresh process and draws the samples that training recorded.

python -m remint.serving.fresh BUNDLE    the fresh process; it reports through remint.runtime.events
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, RemintError, RunError, UserError, by_name
from remint.runtime import processes
from remint.runtime.events import EVENTS, emit, run_step

MOST_THREADS = 1_024


def check(bundle: Path, log: Path, environment: Mapping[str, str] | None = None) -> str:
    """Load a sealed bundle in a fresh process, draw the recorded samples again, and return one sentence about the comparison.

    ``log``: file to which the output of the process is appended. ``environment``: variables added to those of this process,
    with the PYTHONPATH of the code that loads the bundle; None: the code of this process.

    Raises IntegrityError if a file is damaged, the model cannot be loaded here, or the samples are not finite or differ from
    the record; RunError if the process fails in another way.
    """
    events = log.with_suffix(".jsonl")
    events.unlink(missing_ok=True)
    errors: list[RemintError] = []
    reports: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "error":
            errors.append(by_name(event["kind"], event["message"]))
        elif event["event"] == "checked":
            reports.append(event["how"])

    own_code = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    status = processes.run_process(
        [sys.executable, "-P", "-m", "remint.serving.fresh", str(bundle.absolute())],  # -P: do not import from the current folder
        cwd=log.absolute().parent,
        env={**os.environ, **(own_code if environment is None else environment), EVENTS: str(events.absolute())},
        log=log,
        events=events,
        on_event=listen,
    )
    if errors:
        if isinstance(errors[0], UserError):  # a missing plug-in or device: not the user's mistake here
            raise IntegrityError(f"the model does not load here: {errors[0]}")
        raise errors[0]
    if status or not reports:
        raise RunError(f"the model failed to draw samples in a fresh process: {_last_line(log, status)} (full output: {log})")
    return reports[0]


def _last_line(log: Path, status: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if status > 0 and lines else f"it ended with status {status}"


def _main(folder: str) -> None:
    import torch

    from remint.distributed.machine import deterministic, fingerprint
    from remint.models import probe
    from remint.models.bundle import load_model, spec_of

    bundle = Path(folder)
    model, spec, recorded = load_model(bundle), spec_of(bundle), probe.read(bundle)
    threads = _threads(bundle)
    with deterministic(threads):
        machine = probe.with_block_size(fingerprint(torch.device("cpu"), threads, 1))
        count = recorded.count if recorded else probe.sample_count(spec)
        redrawn = probe.compute(model, spec, recorded.seed if recorded else probe.SEED, count)
    problem = probe.nonfinite_values(model, spec, redrawn)
    if problem:
        raise IntegrityError(f"{problem}: train again")
    if recorded is None:
        emit("checked", how="loaded and drew finite samples; training recorded no samples to compare")
        return
    exact = machine == recorded.machine
    problem = probe.difference(recorded.arrays, redrawn, exact=exact)
    how = (
        "to the bit"
        if exact
        else f"within {probe.SHARE_TOLERANCE:.0%} of pixels by one level and {probe.RELATIVE_TOLERANCE} of numbers"
    )
    if problem:
        raise IntegrityError(f"the model's output differs from the output recorded at training ({how}): {problem}")
    kinds = ", ".join(name for name in recorded.arrays if name != "class") or "none of samples, log_prob and elbo"
    emit("checked", how=f"{count} {kinds} as recorded at training, {how}")


def _threads(bundle: Path) -> int:
    from remint.records import TrainedModel

    try:
        threads = TrainedModel.read(bundle / "training.json").fingerprint["threads"]
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"{bundle}/training.json is not a training record ({type(error).__name__})") from error
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise IntegrityError(f"{bundle}/training.json has an invalid number of threads: {str(threads)[:100]!r}")
    return threads


if __name__ == "__main__":
    run_step(_main)
