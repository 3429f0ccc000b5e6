"""Measure one step of the networks of images in other formats: channels_last, bf16, and both.

    python -m benchmarks.formats

Each row is a family at 32 px, with the narrow network of loops.py or, in WIDE, one of its default width. A step is loss and
gradient of all phases, in milliseconds of processor time on one thread, the least of ROUNDS; the formats take turns. Prints
the table, and writes docs/results/formats.json.
"""

from __future__ import annotations

import json
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import loops
from remint.distributed.machine import deterministic, fingerprint
from remint.models.contract import Batch

ROUNDS = 6
FORMATS = {
    "fp32": (False, False),
    "channels_last": (True, False),
    "bf16": (False, True),
    "both": (True, True),
}  # layout, precision
WIDE = {"gan": {"network": "residual"}, "vae": {"network": "residual"}}
OUT = Path(__file__).parents[1] / "docs/results/formats.json"


def step(training: loops.Training, x_BCHW: torch.Tensor, *, bf16: bool) -> float:
    """Return the processor time of loss and gradient of all phases, in seconds."""
    began = time.process_time()
    for phase in training.phases:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = phase(Batch(x_BCHW, torch.randn(len(x_BCHW), phase.noise_size), 0.5, 1))
        loss.backward()
        phase.zero_grad()
    return time.process_time() - began


def measure(name: str, model: dict[str, Any] | None) -> dict[str, float]:
    """Return the milliseconds of a step of a family in each format. ``model``: as in loops.build."""
    seconds = dict.fromkeys(FORMATS, float("inf"))
    trainings = {last: loops.build(name, 32, model) for last in (False, True)}
    for phase in trainings[True].phases:
        phase.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_BCHW = trainings[False].x_NX[: loops.BATCH[32]].float()
    for _ in range(ROUNDS):
        for form, (last, bf16) in FORMATS.items():
            x = x_BCHW.contiguous(memory_format=torch.channels_last) if last else x_BCHW
            seconds[form] = min(seconds[form], step(trainings[last], x, bf16=bf16))
    return {form: 1e3 * value for form, value in seconds.items()}


def main() -> None:
    print(f"{'':10}" + "".join(f"{form:>16}" for form in FORMATS))
    rows = {}
    with deterministic(threads=1):
        for key, name, model in [(name, name, None) for name in loops.FAMILIES] + [(f"{k}, wide", k, WIDE[k]) for k in WIDE]:
            rows[key] = measure(name, model)
            print(f"{key:10}" + "".join(f"{value:13.0f} ms" for value in rows[key].values()), flush=True)
    record = {
        "date": str(date.today()),
        "machine": fingerprint(torch.device("cpu"), 1, 1),
        "load": os.getloadavg()[0],
        "ms": rows,
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
