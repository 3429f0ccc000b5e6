"""resources: of a pipeline: pools by step, each mistake in one line, and no part of any memo key."""

from __future__ import annotations

from typing import Any

import pytest

from flows.stack import doctor
from remint.errors import SettingsError
from remint.settings.params import Params
from remint.settings.resources import Pool, ResourceSettings
from remint.settings.steps import resolved
from tests.support.retraining_cases import params_of

NAME = "digits-flow"
GPUS = {"pool": "gpus", "variables": {"image": "registry.example.org/remint:1", "gpus": 2}}


def resources(**given: Any) -> ResourceSettings:
    return params_of(NAME, resources=given).pipelines[NAME].resources


def test_a_step_runs_elsewhere_if_its_pool_is_not_that_of_the_retraining() -> None:
    assert resources().pools == {} and resources(default="cpu", train="cpu").pools == {}
    found = resources(default="cpu", train="gpu", evaluate=GPUS)
    assert found.pools == {"train": Pool(pool="gpu"), "evaluate": Pool(pool="gpus", variables=GPUS["variables"])}
    assert found.elsewhere("snapshot") is None and found.elsewhere("calibrate") is None
    assert resources(train="remint").pools == {"train": Pool(pool="remint")}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trian": "gpu"}, "resources: unknown key 'trian': did you mean 'train'?"),
        ({"snapshot": "gpu"}, "resources: unknown key 'snapshot': expected one of calibrate, default, evaluate, features, train"),
        ({"train": 3}, "resources.train: expected the name of a work pool, or {pool: .., variables: {..}}, not 3"),
        ({"train": "a/b"}, "resources.train: expected the name of a work pool: letters, digits, '.', '_' and '-', not 'a/b'"),
        ({"train": {"pol": "gpu"}}, "resources.train: unknown key 'pol': did you mean 'pool'?"),
        ({"train": {}}, "resources.train.pool: missing"),
        ({"train": {"pool": "gpu", "variables": 2}}, "resources.train.variables: input should be a valid dictionary, not 2"),
    ],
)
def test_each_mistake_is_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        resources(**given)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_another_pool_runs_no_step_again() -> None:
    plain, placed = params_of(NAME), params_of(NAME, resources={"train": "gpu", "default": "cpu"})
    assert list(resolved(plain)) == list(resolved(placed))


def test_the_doctor_asks_for_a_worker_of_each_pool() -> None:
    def pools(**given: Any) -> dict[str, list[str]]:
        params = params_of(NAME, resources=given)
        return doctor.needed_pools(Params.model_construct(datasets=params.datasets, pipelines={NAME: params.pipelines[NAME]}))

    assert pools() == {"remint": [NAME]}
    assert pools(train="gpu") == {"gpu": [NAME], "remint": [NAME]}
    assert pools(train="gpu", default="cpu") == {"cpu": [NAME], "gpu": [NAME]}
