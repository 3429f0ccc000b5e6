"""Checks of a version before it is served: its recorded samples again, and finite answers that are not far slower.

The canary asks each method that the family has for the recorded samples, and for held-out examples where the version's report
has some. Requests of people are never part of it: anybody can send them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from remint.distributed.machine import fingerprint
from remint.errors import IntegrityError, RemintError, UserError
from remint.models import probe
from remint.models.contract import HasElbo, HasLatent, HasLogProb
from remint.serving.anomalies import scoring
from remint.serving.app.answers import Request, answer
from remint.serving.model import Array, ServedModel

SLOWER = 5.0  # times the seconds of the present version
LEAST_SECONDS = 0.1  # below, a time is not compared: it is mostly noise
REPEATS, ATTEMPTS = 3, 3


def check_samples(served: ServedModel) -> None:
    """Draw the recorded samples again. Raises IntegrityError if they differ."""
    assert served.folder is not None
    recorded = probe.read(served.folder)
    if recorded is None:
        return
    redrawn = probe.compute(served.model, served.spec, recorded.seed, recorded.count)
    problem = probe.nonfinite_values(served.model, served.spec, redrawn)
    machine = probe.with_block_size(fingerprint(torch.device("cpu"), torch.get_num_threads(), 1))
    problem = problem or probe.difference(recorded.arrays, redrawn, exact=machine == recorded.machine)
    if problem:
        raise IntegrityError(f"its output differs from the output recorded at training: {problem}")


def run(served: ServedModel, present: ServedModel | None, held_out_NX: Array | None) -> str:
    """Answer the canary batch. Return what was checked, as a sentence.

    Raises IntegrityError if an answer is an error, is not finite, or takes SLOWER times the time of the present version.
    """
    checked = []
    for request in requests(served, held_out_NX):
        try:
            values = answered(served, request)
        except RemintError as error:
            raise IntegrityError(f"the canary's {request.method} failed: {error}") from error
        except Exception as error:
            raise IntegrityError(f"the canary's {request.method} failed: {type(error).__name__}: {error}") from error
        if not np.isfinite(values).all():
            raise IntegrityError(f"the canary's {request.method} has values that are not finite")
        if present is not None and present.spec == served.spec and isinstance(present.model, type(served.model)):
            _check_speed(served, present, request)
        checked.append(request.method)
    count = 0 if held_out_NX is None else len(held_out_NX)
    return f"drew its recorded samples, and answered {', '.join(checked)}, with {count} held-out examples"


def requests(served: ServedModel, held_out_NX: Array | None) -> Iterator[Request]:
    """Yield the canary's requests: those that this family answers."""
    count = probe.sample_count(served.spec)
    classes = np.arange(count) % served.spec.classes if served.conditional else None
    yield Request("sample", places=[(probe.SEED, index) for index in range(count)], y_N=classes, options={"temperature": 1.0})
    x_NX = held_out_NX
    if x_NX is None:
        x_NX, _ = served.draw([(probe.SEED, index) for index in range(count)], None if classes is None else classes.tolist())
    y_N = np.arange(len(x_NX)) % served.spec.classes if served.conditional else None
    if isinstance(served.model, HasLogProb | HasElbo):
        yield Request("log_prob", x_NX, y_N)
    if _is_calibrated(served):
        yield Request("score", x_NX)
    if isinstance(served.model, HasLatent):
        yield Request("encode", x_NX, y_N)
        yield Request("reconstruct", x_NX, y_N)


def _is_calibrated(served: ServedModel) -> bool:
    try:
        scoring.read_calibration(served)
    except UserError:
        return False
    return True


def _check_speed(served: ServedModel, present: ServedModel, request: Request) -> None:
    """Raise IntegrityError if a version is far slower than the present one, in each of some attempts: a machine may be busy.

    A request that the present version cannot answer is not compared: it may have no calibration, or take no classes.
    """
    try:
        _seconds(present, request)
    except Exception:  # noqa: BLE001  its faults are no reason to keep it
        return
    for attempt in range(ATTEMPTS):
        pairs = [[_seconds(each, request) for each in (served, present)] for _ in range(REPEATS)]  # in turns
        seconds, before = map(min, zip(*pairs, strict=True))
        if seconds <= max(LEAST_SECONDS, SLOWER * before):
            return
        if attempt == ATTEMPTS - 1:
            raise IntegrityError(f"the canary's {request.method} took {seconds:.2f} s, the present version takes {before:.2f} s")


def _seconds(served: ServedModel, request: Request) -> float:
    began = time.monotonic()
    answer(served, [request])
    return time.monotonic() - began


def answered(served: ServedModel, request: Request) -> Array:
    """Return the numbers of an answer."""
    values = answer(served, [request])[0].values
    if hasattr(values, "select_dtypes"):
        values = values.select_dtypes("number").fillna(0.0).to_numpy(dtype=float)
    return np.asarray(values, dtype=float)
