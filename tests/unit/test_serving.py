"""The served model: sample i is a function of (seed, i), and MLflow serves the same samples in a fresh process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from remint.errors import IntegrityError, SettingsError, UserError
from remint.models import contract
from remint.models.bundle import save_model
from remint.models.draw import BLOCK
from remint.records import Column, TrainedModel
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.serving import model as serving
from remint.serving.anomalies import calibration
from remint.serving.load import load_version
from remint.serving.model import ServedModel
from remint.serving.pyfunc import _load_pyfunc
from remint.settings.recipe import GanSettings
from remint.stores.mlflow import package
from tests.support import registry_cases as cases
from tests.support.calibrated_cases import dataset_of
from tests.support.models_cases import CASES, WHOLE, Case
from tests.support.promotion_cases import MODEL, append_row, copy_home


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    cases.make_bundle(folder)
    return folder


class Echo:
    """Model whose samples are its noise."""

    sample_noise = 4

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        self.sizes.append(len(noise_BN))
        return ((noise_BN + 8) * 16).clamp(0, 255).to(torch.uint8).reshape(-1, 1, 2, 2)


def test_sample_i_is_a_function_of_seed_and_i(bundle: Path) -> None:
    served = serving.load(bundle)
    many_NCHW = served.sample(2 * BLOCK + 3, seed=7)
    assert many_NCHW.shape == (2 * BLOCK + 3, 1, 4, 4) and many_NCHW.dtype == np.uint8 and many_NCHW.max() < cases.SPEC.levels
    for count in (0, 1, 5, BLOCK, BLOCK + 1):
        assert np.array_equal(served.sample(count, seed=7), many_NCHW[:count])
    assert not np.array_equal(served.sample(8, seed=8), many_NCHW[:8])
    assert len(np.unique(many_NCHW.reshape(len(many_NCHW), -1), axis=0)) > BLOCK  # each index has separate noise


def test_samples_use_the_noise_that_the_contract_defines() -> None:
    """Against a reference: one standard_normal of (seed, index) for each sample, in blocks of one size."""
    echo = Echo()
    spec = contract_spec(shape=(1, 2, 2))
    x_NCHW = ServedModel(echo, spec).sample(BLOCK + 2, seed=3)
    noise_ND = torch.stack([contract.standard_normal((4,), 3, index) for index in range(BLOCK + 2)])
    assert np.array_equal(x_NCHW, Echo().sample(noise_ND).numpy())
    assert echo.sizes == [BLOCK, BLOCK]


def contract_spec(shape: tuple[int, int, int]) -> cases.DataSpec:
    return cases.DataSpec(shape=shape, levels=256)


def test_the_random_state_of_the_caller_is_unchanged(bundle: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    serving.load(bundle).sample(3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_request_row_is_the_first_sample_of_its_seed(bundle: Path) -> None:
    import pandas as pd

    served = serving.load(bundle)
    x_NCHW = _load_pyfunc(str(bundle)).predict(pd.DataFrame({"seed": [5, 9, 5]}))
    expected = np.stack([served.sample(1, seed)[0] for seed in (5, 9, 5)])
    assert np.array_equal(x_NCHW, expected)


def test_a_damaged_bundle_is_not_served(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "model.json").write_text("{}")
    for load in (serving.load, lambda folder: _load_pyfunc(str(folder))):
        with pytest.raises(IntegrityError, match="damaged"):
            load(tmp_path / "bundle")


def test_a_family_that_cannot_sample_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "load_model", lambda folder, device: contract.Model())
    with pytest.raises(UserError, match="cannot sample"):
        serving.load(bundle)


def test_a_conditional_model_of_a_table_is_served_with_its_columns_and_by_class(tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    member = Column(name="member", categories=("false", "true"), type="bool")
    spec = WHOLE.model_copy(update={"classes": 2, "class_names": ("false", "true"), "label": member, "label_at": 1})
    case = Case("gan", GanSettings(latent=3, hidden=8, layers=1, conditional=True), spec)
    save_model(tmp_path / "trained", case.build().float(), "gan", case.settings, spec)
    manifest.seal(tmp_path / "trained")
    packed = package.pack(tmp_path / "trained", spec, "remint==0", tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(packed))
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["seed", "class", "children", "colour", "height", "steps", "member"]
    assert signature.inputs.required_input_names() == []
    names = ["children", "member", "colour", "height", "steps"]
    assert package._mlflow_type(Column(name="grade", categories=("1", "2"), type="double")).name == "double"
    kinds = {column["name"]: column["type"] for column in signature.outputs.to_dict()}
    assert kinds == dict(zip(names, ("long", "boolean", "string", "double", "long"), strict=True))
    seeds = list(range(40))
    drawn = model.predict(pd.DataFrame({"seed": seeds}))
    assert list(drawn.columns) == names and 0 < drawn["member"].sum() < 40
    for words in ([True, False], ["true", "false"]):
        given = model.predict(pd.DataFrame({"seed": seeds, "class": words * 20}))
        assert given["member"].tolist() == [True, False] * 20
        same = drawn["member"] == given["member"]
        assert given[same].equals(drawn[same]), "the class that the model draws by itself gives the same row"
    grade = ServedModel(
        _load_pyfunc(str(tmp_path / "trained")).served.model, spec.model_copy(update={"class_names": ("0", "1"), "label": None})
    )
    assert [grade.class_named(name) for name in ("1", "1.0", "0.0")] == [1, 1, 0]
    with pytest.raises(SettingsError, match="unknown class 'maybe'"):
        model.predict(pd.DataFrame({"seed": [1], "class": ["maybe"]}))


@pytest.mark.parametrize("name", ["vae-residual", "flow-table", "vae-mixture"])
def test_mlflow_calls_each_method(tmp_path: Path, name: str) -> None:
    import mlflow
    import pandas as pd

    case = CASES[name]
    spec = case.spec
    if spec.is_table and case.settings.conditional:
        label = Column(name="kind", categories=("0", "1", "2"), type="int64")
        spec = spec.model_copy(update={"label": label, "class_names": label.categories})
    save_model(tmp_path / "trained", case.build(spec).float(), case.family, case.settings, spec)
    manifest.seal(tmp_path / "trained")
    model = mlflow.pyfunc.load_model(str(package.pack(tmp_path / "trained", spec, "remint==0", tmp_path / "model")))
    served = serving.load(tmp_path / "trained")
    x_NX, y_N = served.draw([(1, index) for index in range(5)])
    if spec.is_table:
        request = data = served.in_source_form(x_NX, y_N)
        own: dict[str, object] = {}
    else:
        data, own = x_NX, {"of_class": [0, 1, 2, 0, 1]}
        request = pd.DataFrame({"x": [x.tolist() for x in x_NX], "class": [0, 1, 2, 0, 1]})

    def asked(method: str, **options: object) -> object:
        return model.predict(request, params={"method": method, **options})

    assert np.array_equal(asked("encode"), served.encode(data, **own))
    again = served.reconstruct(data, **own)
    assert again.equals(asked("reconstruct")) if spec.is_table else np.array_equal(asked("reconstruct"), again)
    assert np.array_equal(asked("log_prob", draws=3, seed=4), served.log_prob(data, draws=3, seed=4, **own).values)
    one = model.predict(pd.DataFrame({"seed": [3]}), params={"temperature": 0.5})
    cold = served.in_source_form(*served.draw([(3, 0)], temperature=0.5))
    assert cold.equals(one) if spec.is_table else np.array_equal(one, cold)
    with pytest.raises(SettingsError, match="did you mean 'encode'"):
        asked("encoed")


def test_mlflow_scores_with_the_calibration_beside_the_bundle(tmp_path: Path) -> None:
    import mlflow

    case, folder = CASES["vae-mixture"], tmp_path / "trained"
    sha256 = save_model(folder, case.build().float(), case.family, case.settings, case.spec)
    dataset = dataset_of(case)
    TrainedModel(
        pipeline="p",
        dataset=dataset.version.digest,
        spec=case.spec,
        recipe={},
        weights_sha256=sha256,
        steps=1,
        best_step=1,
        validation=None,
        world_size=1,
        fingerprint={},
    ).write(folder / "training.json")
    manifest.seal(folder)
    calibration.calibrate(folder, dataset, tmp_path / "made")
    packed = package.pack(folder, case.spec, "remint==0", tmp_path / "model", tmp_path / "made")
    assert package.unpack(packed) == packed / "data/bundle"
    rows = serving.load(folder).sample(30, seed=2)
    found = mlflow.pyfunc.load_model(str(packed)).predict(rows, params={"method": "score", "fdr": 0.2})
    made = calibration.read(tmp_path / "made", TrainedModel.read(folder / "training.json").key)
    served = replace(serving.load(folder), calibration=lambda: made)
    assert found.equals(served.score(rows, fdr=0.2).to_pandas())
    (tmp_path / "other").mkdir()
    plain = package.pack(folder, case.spec, "remint==0", tmp_path / "other/model")
    with pytest.raises(UserError, match="has no calibration"):
        mlflow.pyfunc.load_model(str(plain)).predict(rows, params={"method": "score"})


@pytest.mark.slow
def test_mlflow_serves_the_champion_in_a_fresh_process(bundle: Path, tmp_path: Path) -> None:
    store = cases.tracking(tmp_path / "home")
    version = cases.register(store, bundle)
    store.set_alias(version.name, "champion", version.version)
    program = "\n".join(
        [
            "import sys, mlflow, numpy as np, pandas as pd",
            "mlflow.set_tracking_uri(sys.argv[1])",
            "model = mlflow.pyfunc.load_model('models:/digits-flow@champion')",
            "np.save(sys.argv[2], model.predict(pd.DataFrame({'seed': range(6)})))",
            "print(model.metadata.signature.outputs.to_json())",
        ]
    )
    command = [sys.executable, "-c", program, store.uri, str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    served = serving.load(store.fetch(version, tmp_path / "got"))
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.stack([served.sample(1, seed)[0] for seed in range(6)]))
    assert '"dtype": "uint8", "shape": [-1, 1, 4, 4]' in done.stdout


LOAD = "import remint, sys; print(remint.load(sys.argv[1], repository=sys.argv[2]).sample(2, seed=5).sum())"


def test_a_home_that_cannot_be_written_is_enough_to_load(registered: Home, tmp_path: Path, make_repository: Any) -> None:
    home = copy_home(registered, tmp_path / "home")
    append_row(home, "promoted", 1)
    repository = make_repository({"a": ""})
    first = load_version(home, MODEL).sample(2, seed=5).sum()  # which fetches the bundle

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in home.path.rglob("*")}

    before = files()
    subprocess.run(["chmod", "-R", "a-w", home.path], check=True)
    try:
        # root may write everywhere, unless it gives that up
        plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
        command = [*plain, sys.executable, "-c", LOAD, MODEL, repository]
        environment = {**os.environ, "REMINT_HOME": str(home.path)}
        assert subprocess.run([*plain, "touch", home.path / "new"], capture_output=True).returncode == 1, "it can be written"
        loaded = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    finally:
        subprocess.run(["chmod", "-R", "u+w", home.path], check=True)
    assert loaded.stdout.strip() == str(first) and files() == before
