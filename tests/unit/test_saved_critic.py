"""The critic beside the weights of a bundle: as of the served step, outside the key, optional in older versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from remint.data.arrays import Dataset
from remint.errors import IntegrityError, UserError
from remint.models.adversarial import AdversarialGenerator
from remint.models.bundle import CRITIC, MODEL, load_critic, load_model
from remint.runtime import manifest
from remint.training.state import TrainingState
from tests.support import training_cases as cases

WORSENING = {"learning_rate": 1.0, "final_learning_rate": 1.0, "validate_every": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return cases.prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan")
    cases.train_into(cases.recipe("gan-wgan_gp"), dataset, folder)
    return folder / "out"


@pytest.mark.parametrize(("case", "settings"), [("gan", {"collapse": 0.0}), ("vaegan", WORSENING)])
def test_the_critic_is_of_the_step_of_the_served_weights(
    case: str, settings: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    critics: dict[int, dict[str, Tensor]] = {}
    add_row = TrainingState.add_row

    def recorded(state: TrainingState, row: dict[str, float]) -> None:
        assert state.critic is not None
        critics[int(row["step"])] = {name: tensor.clone() for name, tensor in state.critic.state_dict().items()}
        add_row(state, row)

    monkeypatch.setattr(TrainingState, "add_row", recorded)
    trained = cases.train_into(cases.recipe(case, **settings), dataset, tmp_path)
    assert (trained.best_step < 12) == (case == "vaegan"), "the case must be one that gets worse"
    saved = load_file(tmp_path / "out" / CRITIC)
    assert saved.keys() == critics[trained.best_step].keys()
    assert all(torch.equal(tensor, critics[trained.best_step][name]) for name, tensor in saved.items())
    steps = [step for step, state in critics.items() if all(torch.equal(saved[name], state[name]) for name in saved)]
    assert steps == [trained.best_step], "a critic that does not change shows nothing"


def test_the_critic_is_loaded_with_its_weights_and_scores_examples(bundle: Path, dataset: Dataset) -> None:
    model = load_model(bundle)
    assert isinstance(model, AdversarialGenerator)
    before = torch.random.get_rng_state()
    critic = load_critic(bundle, model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not critic.training and not any(parameter.requires_grad for parameter in critic.parameters())
    assert all(torch.equal(critic.state_dict()[name], tensor) for name, tensor in load_file(bundle / CRITIC).items())
    x_BX, y_B = torch.tensor(dataset.train.x_NX[:8]).float(), torch.tensor(dataset.train.y_N[:8])
    score_B = critic(model.space.encode(x_BX), y_B)
    assert score_B.shape == (8,) and len(score_B.unique()) > 1


def rewritten(bundle: Path, folder: Path, **files: bytes | None) -> Path:
    """Copy a bundle with other files (None: without the file), sealed again."""
    folder.mkdir()
    for path in bundle.iterdir():
        content = files.get(path.name.partition(".")[0], path.read_bytes())
        if content is not None:
            (folder / path.name).write_bytes(content)
    manifest.seal(folder)
    return folder


def test_a_version_from_before_loads_without_a_critic(bundle: Path, tmp_path: Path) -> None:
    older = rewritten(bundle, tmp_path / "older", critic=None)
    model = load_model(older)
    with pytest.raises(
        UserError, match="this version of family 'gan' has no critic: gan and vaegan have one, but not in versions"
    ):
        load_critic(older, model)


def test_a_family_without_a_critic_is_named(dataset: Dataset, tmp_path: Path) -> None:
    cases.train_into(cases.recipe("vae", steps=2), dataset, tmp_path)
    assert not (tmp_path / "out" / CRITIC).exists()
    with pytest.raises(UserError, match="family 'vae' has no critic: gan and vaegan have one"):
        load_critic(tmp_path / "out", load_model(tmp_path / "out"))


def test_a_critic_that_does_not_fit_is_refused(bundle: Path, tmp_path: Path) -> None:
    model = load_model(bundle)
    save_file({"net.0.weight": torch.zeros(2, 2)}, tmp_path / "other")
    for name, content in (("shapes", (tmp_path / "other").read_bytes()), ("bytes", b"no tensors")):
        folder = rewritten(bundle, tmp_path / name, critic=content)
        with pytest.raises(IntegrityError, match=r"critic\.safetensors does not hold the critic that model\.json describes"):
            load_critic(folder, model)
    flipped = rewritten(bundle, tmp_path / "flipped")
    damaged = bytearray((flipped / CRITIC).read_bytes())
    damaged[-5] ^= 1
    (flipped / CRITIC).write_bytes(damaged)
    with pytest.raises(IntegrityError, match=r"critic\.safetensors is damaged"):
        load_critic(flipped, model)
    with pytest.raises(IntegrityError, match=r"critic\.safetensors is damaged"):
        load_model(flipped)


def test_settings_that_ask_for_a_huge_critic_are_refused(bundle: Path, tmp_path: Path) -> None:
    huge = (bundle / MODEL).read_text().replace('"hidden": 16', '"hidden": 6000')
    folder = rewritten(bundle, tmp_path / "huge", model=huge.encode())
    with pytest.raises(IntegrityError, match="the network is far larger than the weights"):
        load_critic(folder, load_model(bundle))
