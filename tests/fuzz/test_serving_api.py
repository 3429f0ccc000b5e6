"""Requests from the server's own OpenAPI document, and requests that are nearly right: no 5xx, and one line for each refusal."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from remint.runtime.home import Home
from remint.serving.app.api import create_app
from remint.serving.app.follow import Follower
from remint.serving.app.limits import Limits
from remint.serving.app.slot import Slot, Version
from remint.serving.model import ServedModel
from tests.support.calibrated_cases import calibrated_model
from tests.support.models_cases import CASES
from tests.support.trials import Trial, Trials

MODELS = ("vae-mixture", "vae-whole", "flow")  # a calibrated table, rows with classes, images
OUTCOMES = {200, 404, 413, 422}
CONFORM = [not_a_server_error, status_code_conformance, content_type_conformance]
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": False}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)


def served(name: str) -> ServedModel:
    if name == "vae-mixture":
        return calibrated_model(CASES[name])
    return ServedModel(CASES[name].build().float().requires_grad_(False), CASES[name].spec, ref=f"{name}/1")


@pytest.fixture(scope="module")
def models() -> dict[str, ServedModel]:
    return {name: served(name) for name in MODELS}


@pytest.fixture
def app(models: dict[str, ServedModel], tmp_path: Path) -> Iterator[Any]:
    slots = {name: Slot(name, 99) for name in models}
    for name, slot in slots.items():
        slot.version = Version(models[name], 1, "", "")
    follower = Follower(Home.of(tmp_path), {}, 3600.0, "cpu", print)
    follower._thread.start()
    return create_app(slots, follower, Limits(examples=50, seconds=120.0))


def check(status: int, said: Any) -> None:
    assert status in OUTCOMES, (status, said)
    assert status == 200 or (isinstance(said["detail"], str) and "\n" not in said["detail"]), said


def run(strategy: st.SearchStrategy[Any], examples: int, trial: Trial, ask: Callable[[Any], int]) -> list[int]:
    """Send requests of a strategy, the same ones for the same trial. Return the status of each."""
    statuses: list[int] = []

    @seed(trial.random.randrange(2**32))
    @settings(max_examples=examples, **QUIET)
    @given(strategy)
    def send(drawn: Any) -> None:
        statuses.append(ask(drawn))

    send()
    trial.note(requests=len(statuses), server_errors=sum(status >= 500 for status in statuses))
    return statuses


@pytest.mark.case(34)
def test_no_request_of_the_openapi_document_is_a_server_error(app: Any, trials: Trials) -> None:
    schema = schemathesis.openapi.from_dict(app.app.openapi())
    schema.app = app
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 13
    with asgi.get_client(app) as client:

        def ask(drawn: tuple[Any, str | None]) -> int:
            case, name = drawn
            if name and "name" in case.path_parameters:
                case.path_parameters["name"] = name
            said = case.call(session=client)
            case.validate_response(said, checks=CONFORM)
            check(said.status_code, said.json() if said.status_code != 200 else None)
            return int(said.status_code)

        for trial in trials(short=1, full=20):
            for operation, mode in product(operations, GenerationMode):
                if operation.method == "post" or mode == GenerationMode.POSITIVE:  # what is asked without a body is never wrong
                    names = st.sampled_from((*MODELS, *MODELS, None))
                    run(st.tuples(operation.as_strategy(generation_mode=mode), names), 12, trial, ask)


def bodies(model: ServedModel) -> dict[str, dict[str, Any]]:
    """Return a right body of each method."""
    of_class = {"class": 0} if model.conditional else {}
    made = model.sample(2, seed=1, **({"of_class": 0} if of_class else {}))
    if isinstance(made, pd.DataFrame):
        given = {"rows": made.astype(object).where(made.notna(), None).to_dict("records"), **of_class}
    else:
        given = {"x": made.tolist(), **of_class}
    z = np.zeros((2, model.latent_size)).tolist()
    return {
        "sample": {"count": 2, "seed": 0, "temperature": 0.5, **of_class},
        "decode": {"z": z, **of_class},
        "log_prob": {**given, "draws": 2},
        "impute": {**given, "draws": 2, **({} if model.spec.is_table else {"missing": np.eye(*model.spec.shape[1:]).tolist()})},
        "interpolate": {**given, "steps": 3},
        **dict.fromkeys(("encode", "reconstruct", "score"), given),
    }


@st.composite
def spoilt(draw: Any, body: dict[str, Any]) -> dict[str, Any]:
    """A copy in which a few parts, at any depth, are another value, are gone, or are there twice."""
    made = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        node: Any = made
        while node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if isinstance(node[key], list | dict) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            how = draw(st.sampled_from(("replaced", "removed", "twice")))
            if how == "removed":
                del node[key]
            elif how == "twice" and isinstance(node, list):
                node.append(node[key])
            else:
                node[key] = draw(values)
            break
    return made


@pytest.mark.case(34)
def test_requests_that_are_nearly_right_are_answered_or_refused_in_one_line(
    app: Any, models: dict[str, ServedModel], trials: Trials
) -> None:
    with TestClient(app, raise_server_exceptions=False) as http:

        def ask(drawn: tuple[str, dict[str, Any]]) -> int:
            path, body = drawn
            said = http.post(path, content=json.dumps(body))  # with NaN and Infinity, which JSON does not have
            check(said.status_code, said.json())
            return said.status_code

        for trial in trials(short=1, full=20):
            found: set[int] = set()
            for name, model in models.items():
                for method, body in bodies(model).items():
                    path = f"/v1/models/{name}:{method}"
                    assert ask((path, body)) == 200 or (method == "score" and name != "vae-mixture")
                    found |= {*run(st.tuples(st.just(path), spoilt(body)), 8, trial, ask)}
            assert found >= {200, 422}
