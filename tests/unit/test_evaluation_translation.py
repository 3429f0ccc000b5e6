"""A model of a former schema, measured on examples of the present one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from remint.data import columns
from remint.data.arrays import Dataset, Split
from remint.errors import DataError
from remint.evaluation import translation
from remint.models.contract import CanSample, HasElbo, HasLogProb, standard_normal
from remint.records import Column, DatasetVersion, DataSpec, TrainedModel
from tests.support.models_cases import CASES, GAPPED, WHOLE, Case, examples

WIDER = {"categories": ("black", "blue", "green", "red")}
FORMER = WHOLE.model_copy(update={"class_names": ("a", "b", "c")})


def present(former: DataSpec) -> DataSpec:
    """Return a later schema: another order, other means and scales, one more category and one more class."""
    age, colour, height, steps = former.columns
    columns = (
        steps.model_copy(update={"mean": 7e3, "scale": 2e3}),
        height.model_copy(update={"mean": 168.0, "scale": 9.0}),
        colour.model_copy(update=WIDER),
        age.model_copy(update={"most": 9}),
    )
    return former.model_copy(update={"columns": columns, "classes": 4, "class_names": ("z", "a", "b", "c")})


def originals(x_ND: torch.Tensor, spec: DataSpec) -> dict[str, list[Any]]:
    """Return rows in original units, by column."""
    return {
        column.name: np.round(x_N.double().numpy() * column.scale + column.mean, 3).tolist()
        if column.numeric
        else [column.categories[int(place)] for place in x_N]
        for column, x_N in zip(spec.columns, x_ND.unbind(1), strict=True)
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["flow-whole", "vae-whole", "gan-whole"])
def test_a_translated_model_draws_the_same_rows_and_has_the_density_of_the_new_scale(name: str) -> None:
    case = Case(CASES[name].family, CASES[name].settings, FORMER)
    model, ours = case.build(), present(FORMER)
    translated = translation.Translated(model, FORMER, ours)
    for protocol in (CanSample, HasLogProb, HasElbo):
        assert isinstance(translated, protocol) == isinstance(model, protocol)
    y_B = torch.tensor([1, 2, 3] * 4) if model.conditional else None
    noise_BN = standard_normal((12, model.sample_noise), 0).double()
    drawn = originals(translated.sample(noise_BN, y_B), ours)
    expected = originals(model.sample(noise_BN, None if y_B is None else y_B - 1), FORMER)
    assert drawn == {
        key: pytest.approx(expected[key], abs=2e-2) if key in ("height", "steps") else expected[key] for key in drawn
    }
    assert drawn["children"] == [round(value) for value in drawn["children"]]
    x_BD = torch.stack([torch.tensor(_standardised(expected, column), dtype=torch.float64) for column in ours.columns], dim=1)
    shift = np.log(9.0 / 12.0)  # of height, the only real-valued column
    their_BD = torch.stack([torch.tensor(_standardised(expected, column)).double() for column in FORMER.columns], dim=1)
    their_y = None if y_B is None else y_B - 1
    if isinstance(model, HasLogProb) and isinstance(translated, HasLogProb):
        noise = standard_normal((12, model.density_noise), 1).double()
        found, own = translated.log_prob(x_BD, noise, y_B), model.log_prob(their_BD, noise, their_y)
        torch.testing.assert_close(found, own + shift, atol=1e-6, rtol=1e-6)
    if isinstance(model, HasElbo) and isinstance(translated, HasElbo):
        noise = standard_normal((3, 12, model.latent_noise), 1).double()
        found, own = translated.elbo(x_BD, noise, y_B), model.elbo(their_BD, noise, their_y)
        torch.testing.assert_close(found, own + shift, atol=1e-6, rtol=1e-6)


def test_whole_numbers_keep_their_bits_on_another_scale() -> None:
    """Rows are in single precision, in which 1,234,567 of a scale of 1,000 is off by up to 0.06."""
    number_ND = np.random.default_rng(0).integers(0, 2_000_000, size=(500, 1)).astype(np.float64)
    number_ND[::50] = np.nan
    wide, narrow = (
        Column(name="steps", mean=mean, scale=scale, least=0, most=2_000_000) for mean, scale in ((3.5, 1e3), (1e6, 77.7))
    )
    for theirs, ours in ((wide, narrow), (narrow, wide)):
        x_ND = columns.standardise(number_ND, (theirs,))
        translated = translation.translate(
            Split(x_ND, None), DataSpec(shape=(1,), columns=(theirs,)), DataSpec(shape=(1,), columns=(ours,))
        )
        np.testing.assert_array_equal(translated.x_NX, columns.standardise(number_ND, (ours,)))


def _standardised(rows: dict[str, list[Any]], column: Column) -> list[float]:
    if column.numeric:
        return [(value - column.mean) / column.scale for value in rows[column.name]]
    return [float(column.categories.index(value)) for value in rows[column.name]]


@pytest.mark.parametrize("name", ["flow-whole", "vae-whole", "vae-mixture-whole"])
@torch.no_grad()
def test_a_model_of_the_present_schema_is_taken_given_that_its_example_can_be_described(name: str) -> None:
    """Against draws: the share of describable samples, and the distribution of the others' columns."""
    ours = present(FORMER if name == "flow-whole" else GAPPED.model_copy(update={"class_names": FORMER.class_names}))
    model = Case(CASES[name].family, CASES[name].settings, ours).build().float()
    truncated = translation.Truncated(model, FORMER, ours, conditional=model.conditional)
    assert isinstance(model, CanSample) and isinstance(truncated, CanSample)
    y_B = torch.full((6000,), 2) if model.conditional else None
    noise_BN = standard_normal((6000, model.sample_noise), 3)
    plain_BX, given_BX = model.sample(noise_BN, y_B), truncated.sample(noise_BN, y_B)
    known_B = plain_BX[:, 2] != 0  # black is new
    gapless_B = ~plain_BX.isnan().any(1)  # the former data lack nothing
    known_B, share = known_B & gapless_B, float(known_B[gapless_B].double().mean())
    assert 0.02 < share < 0.98 and bool((given_BX[:, 2] != 0).all()) and not bool(given_BX.isnan().any())
    assert bool(gapless_B.all()) == (name == "flow-whole")
    assert torch.equal(given_BX[known_B].nan_to_num(), plain_BX[known_B].nan_to_num())
    for column in range(4):
        left, right = plain_BX[known_B, column].nan_to_num(), given_BX[:, column].nan_to_num()
        error = float((left.var() / len(left) + right.var() / len(right)).sqrt())
        assert abs(float(left.mean() - right.mean())) < 4 * error + 1e-6, column
    x_BX, count = plain_BX[known_B][:20], 20
    few_y = None if y_B is None else y_B[:count]
    if isinstance(model, HasLogProb) and isinstance(truncated, HasLogProb):
        noise = standard_normal((count, model.density_noise), 1)
        found = truncated.log_prob(x_BX, noise, few_y).double() - model.log_prob(x_BX, noise, few_y)
    else:
        assert isinstance(model, HasElbo) and isinstance(truncated, HasElbo)
        noise = standard_normal((1, count, model.latent_noise), 1)
        found = (truncated.elbo(x_BX, noise, few_y).double() - model.elbo(x_BX, noise, few_y))[0]
    expected = torch.full((count,), -np.log(share), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=4 * ((1 - share) / share / 3400) ** 0.5, rtol=0)


@pytest.mark.parametrize("name", ["gan-whole", "image"])
def test_a_conditional_model_draws_no_class_that_the_former_data_lack(name: str) -> None:
    image = DataSpec(shape=(1, 4, 4), levels=4, classes=3, class_names=("a", "b", "c"))
    former = FORMER if name == "gan-whole" else image
    ours = (
        present(FORMER) if name == "gan-whole" else image.model_copy(update={"classes": 4, "class_names": ("z", "a", "b", "c")})
    )
    model = Case("gan", CASES["gan-whole"].settings.model_copy(update={"conditional": True}), ours).build().float()
    noise_BN = standard_normal((2000, model.sample_noise), 3)  # type: ignore[attr-defined]
    y_B = model.classes(noise_BN)
    assert y_B is not None and bool((y_B == 0).any())
    for conditional in (True, False):
        truncated = translation.Truncated(model, former, ours, conditional=conditional)
        found_B = truncated.classes(noise_BN)
        assert found_B is not None and bool((found_B == 0).any()) != conditional
        assert torch.equal(found_B[y_B != 0], y_B[y_B != 0])
        assert isinstance(truncated, CanSample)
        torch.testing.assert_close(truncated.sample(noise_BN[:50]), truncated.sample(noise_BN[:50], found_B[:50]))


@torch.no_grad()
def test_rows_without_new_gaps_are_drawn_where_most_rows_have_one() -> None:
    gapped = [column.model_copy(update={"missing": True, "absent": 0.6}) for column in FORMER.columns]
    ours = FORMER.model_copy(update={"columns": tuple(gapped)})
    model = Case("vae", CASES["vae-whole"].settings, ours).build().float()
    x_ND = examples(ours, 200)
    x_ND[torch.rand(x_ND.shape, generator=torch.Generator().manual_seed(0)) < 0.6] = torch.nan
    model.initialise(x_ND, torch.zeros(200, dtype=torch.int64))
    truncated = translation.Truncated(model, FORMER, ours, conditional=False)
    assert isinstance(truncated, CanSample)
    noise_BN = standard_normal((80, truncated.sample_noise), 0)
    y_B = torch.zeros(80, dtype=torch.int64) if model.conditional else None
    assert float(model.sample(noise_BN, y_B).isnan().any(1).double().mean()) > 0.9  # type: ignore[operator]
    assert not bool(truncated.sample(noise_BN, y_B).isnan().any())
    assert truncated.log_share_K.tolist() == [0.0] * len(truncated.log_share_K), "no category is new"


def dataset_of(spec: DataSpec, x_ND: np.ndarray, y_N: np.ndarray) -> Dataset:
    part = Split(x_ND, y_N)
    facts: dict[str, Any] = {"name": "d", "source": "s", "raw_sha256": "", "split": {}, "files": {}}
    version = DatasetVersion(spec=spec, counts={"train": len(x_ND), "validation": 1, "held_out": len(x_ND)}, **facts)
    return Dataset(version, part, part, part)


def trained_on(spec: DataSpec, *, conditional: bool) -> TrainedModel:
    return TrainedModel(
        pipeline="p", dataset="d", spec=spec, recipe={"model": {"conditional": conditional}}, weights_sha256="w",
        steps=1, best_step=1, validation=None, world_size=1, fingerprint={},
    )  # fmt: skip


@pytest.mark.parametrize("conditional", [False, True])
def test_examples_that_the_former_schema_cannot_describe_are_left_out(conditional: bool) -> None:
    gapped = GAPPED.model_copy(update={"class_names": ("a", "b", "c")})
    ours = present(gapped)
    x_ND = examples(ours, 200).numpy()
    y_N = np.arange(200) % 4
    former = gapped.model_copy(
        update={"columns": (gapped.columns[0], *(column.model_copy(update={"missing": False}) for column in gapped.columns[1:]))}
    )
    full = dataset_of(ours, x_ND, y_N)
    part = translation.restrict(full, trained_on(former, conditional=conditional))
    describes_N = ~np.isnan(x_ND[:, :3]).any(1) & (x_ND[:, 2] != 0)  # black is new, only children may be missing
    if conditional:
        describes_N &= y_N != 0
    np.testing.assert_array_equal(part.held_out.x_NX, x_ND[describes_N])
    np.testing.assert_array_equal(part.held_out.y_N, y_N[describes_N])
    assert 0 < len(part.held_out) < 200 and part.version.digest != full.version.digest
    black = dataset_of(ours, np.where(np.arange(4) == 2, 0.0, x_ND), y_N)
    with pytest.raises(DataError, match="can describe no held-out example"):
        translation.restrict(black, trained_on(former, conditional=conditional))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({0: {"name": "kids"}}, "column 'kids' is new; column 'children' is gone"),
        ({1: {"categories": ("blue", "green")}}, "column 'colour' no longer has red"),
        ({1: {"categories": ()}}, "column 'colour' was categorical, is numeric"),
        ({2: {"least": 0, "most": 9}}, "column 'height' was real-valued, holds whole numbers"),
        ({1: WIDER, 0: {"mean": 3.0}, 3: {"missing": True}}, ""),
    ],
)
def test_what_makes_two_schemas_of_a_table_incomparable(changes: dict[int, Any], reason: str) -> None:
    columns = list(WHOLE.columns)
    for place, update in changes.items():
        columns[place] = columns[place].model_copy(update=update)
    ours = WHOLE.model_copy(update={"columns": tuple(columns)})
    assert translation.obstacle(WHOLE, ours, conditional=False) == reason


def test_images_of_another_form_and_classes_that_are_gone_are_obstacles() -> None:
    image = DataSpec(shape=(1, 2, 2), levels=4, classes=3, class_names=("a", "b", "c"))
    fewer = image.model_copy(update={"classes": 2, "class_names": ("a", "b")})
    assert translation.obstacle(image, fewer, conditional=True) == "class c is gone"
    assert translation.obstacle(image, fewer, conditional=False) == translation.obstacle(fewer, image, conditional=True) == ""
    twelve = image.model_copy(update={"bits": 12})
    assert (
        translation.obstacle(twelve, image, conditional=False)
        == "16-bit values were read as 12 bits, and are now read as 16 bits"
    )
    for other in (image.model_copy(update={"levels": 5}), image.model_copy(update={"shape": (1, 2, 3)}), WHOLE):
        assert translation.obstacle(image, other, conditional=False).startswith("it draws images of shape (1, 2, 2)")
