"""Imputation of a served model: by array, DataFrame and file, of tables and of masked images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from remint.data import rows
from remint.errors import DataError, RemintError, UserError
from remint.models import posterior
from remint.models.contract import CanImpute, Model
from remint.records import Column, DataSpec
from remint.serving import blocks, inputs, outputs
from remint.serving.imputation import chains, coverage, imputing
from remint.serving.imputation.files import impute
from remint.serving.model import ServedModel
from remint.serving.pyfunc import Predictor
from tests.support.models_cases import CASES, MIXED, SQUARE, WHOLE, Case, examples

LONG = (posterior.ANNEALED, posterior.SETTLED)
ABLE = [name for name, case in CASES.items() if "impute" in case.settings.can]


@pytest.fixture(autouse=True)
def few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here does not depend on how well a chain mixes."""
    monkeypatch.setattr(posterior, "ANNEALED", 3)
    monkeypatch.setattr(posterior, "SETTLED", 2)


def served(name: str, spec: DataSpec | None = None, *, double: bool = False) -> ServedModel:
    model = CASES[name].build(spec).requires_grad_(False)
    return ServedModel(model if double else model.float(), spec or CASES[name].spec, ref="m/1")


def gapped(case: Case, count: int, share: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Return examples and which of their values are missing; of an image all channels of a pixel."""
    x = examples(case.spec, count).numpy()
    gone = coverage.remove(case.spec, x, share, 5)
    return (np.where(gone, np.nan, x).astype(np.float32), gone | np.isnan(x)) if case.spec.is_table else (x, gone)


def completed(model: ServedModel, x: np.ndarray, gone: np.ndarray, draws: int = 3) -> list[chains.Part]:
    found = inputs.Examples(blocks.Blocks.of(x), None)
    return list(imputing.completions(model, found, gone, draws))


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLE)
def test_completions_keep_what_is_there_and_do_not_depend_on_batch_or_order(name: str, rtol: float = 1e-10) -> None:
    case, count = CASES[name], 7
    model = served(name, double=True)
    x, gone = gapped(case, count)
    order = np.random.default_rng(0).permutation(count)
    (whole,), (other,), (one,) = (completed(model, x[take], gone[take]) for take in (np.arange(count), order, order[:1]))
    assert np.array_equal(whole.x_MX[~gone], x[~gone]) and not np.isnan(whole.x_MX).any()
    drawn = np.zeros((count, 3, *case.spec.shape))
    drawn[whole.at_G] = whole.drawn_GDX
    expected = drawn[order][other.at_G]
    np.testing.assert_allclose(other.drawn_GDX, expected, rtol)
    np.testing.assert_allclose(one.drawn_GDX, expected[:1] if len(one.at_G) else one.drawn_GDX, rtol)
    kept = np.broadcast_to(x[whole.at_G][:, None], whole.drawn_GDX.shape)
    observed = np.broadcast_to(~gone[whole.at_G][:, None], kept.shape)
    assert np.array_equal(whole.drawn_GDX[observed], kept[observed])


@pytest.mark.soak
@pytest.mark.parametrize("name", ABLE)
def test_long_chains_do_not_depend_on_batch_or_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain enlarges every difference of rounding, so the passes have one size."""
    monkeypatch.setattr(posterior, "ANNEALED", LONG[0])
    monkeypatch.setattr(posterior, "SETTLED", LONG[1])
    test_completions_keep_what_is_there_and_do_not_depend_on_batch_or_order(name, rtol=1e-6)


def test_parts_of_any_size_give_the_same_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = served("vae-table")
    x, gone = gapped(CASES["vae-table"], 9)
    (whole,) = completed(model, x, gone)
    monkeypatch.setattr(chains, "LARGEST_BLOCK", 300)
    parts = completed(model, x, gone)
    assert len(parts) > 3
    np.testing.assert_allclose(np.concatenate([part.drawn_GDX for part in parts]), whole.drawn_GDX, rtol=1e-6)


def test_a_gap_is_filled_with_the_mean_or_the_most_frequent_category() -> None:
    model = served("vae-mixture")
    x, gone = gapped(CASES["vae-mixture"], 6)
    (part,) = completed(model, x, gone, draws=19)
    for g, place in enumerate(part.at_G):
        for d, column in enumerate(MIXED.columns):
            if not gone[place, d]:
                continue
            drawn = part.drawn_GDX[g, :, d]
            if column.numeric:
                assert part.x_MX[place, d] == pytest.approx(drawn.mean(), rel=1e-5)
                assert (part.low_GX[g, d], part.high_GX[g, d]) == pytest.approx((drawn.min(), drawn.max()))
            else:
                assert part.x_MX[place, d] == np.bincount(drawn.astype(int)).argmax()


def test_a_dataframe_keeps_its_index_types_and_observed_values() -> None:
    model = served("vae-mixture")
    frame = pd.DataFrame(
        {
            "note": ["a", "b", "c"],
            "height": [171.25, np.nan, 180.125],
            "colour": pd.Categorical(["red", None, "green"]),
            "smokes": ["yes", "no", None],
            "age": [np.nan, 31.0, 0.1 + 0.2],
        },
        index=[5, 7, 9],
    )
    before = frame.copy()
    found = model.impute(frame, draws=4, keep_draws=True)
    assert not found.filled.isna().any().any() and list(found.filled.columns) == list(frame.columns)
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(found.filled.where(frame.notna(), frame), frame, check_dtype=False, check_categorical=False)
    assert found.filled.index.tolist() == [5, 7, 9] and found.filled["age"].dtype == np.float64
    assert found.filled["colour"].dtype.name == "category" and len(found.draws) == 4
    assert found.cells is not None and found.cells[["row", "column"]].values.tolist() == [
        [1, "age"],
        [2, "colour"],
        [2, "height"],
        [3, "smokes"],
    ]
    assert sum(found.cells["shares"][1].values()) == pytest.approx(1.0)
    height = [each["height"].iloc[1] for each in found.draws]
    assert found.cells["value"][2] == pytest.approx(np.mean(height), rel=1e-5)
    assert found.cells["low"][2] <= found.cells["value"][2] <= found.cells["high"][2]
    table = model.impute(pa.Table.from_pandas(frame, preserve_index=False), draws=4).filled
    assert table["height"].to_pylist() == found.filled["height"].tolist()
    again = model.impute(found.filled)
    pd.testing.assert_frame_equal(again.filled, found.filled)


@pytest.mark.parametrize("kind", ["frame", "arrow"])
def test_whole_numbers_are_rounded_and_not_wrapped_and_text_stays_text(kind: str) -> None:
    model = served("vae-mixture")

    def fill(height: str, values: list[Any]) -> list[Any]:
        age = {"age": ["40", None], "colour": ["red", "red"], "smokes": ["yes", "yes"]}
        table = pa.table({**age, "height": pa.array(values, getattr(pa, height)())})
        frame = pd.DataFrame({**age, "height": pd.array(values, height.title())})
        found = model.impute(table if kind == "arrow" else frame, draws=3).filled
        assert float(found["age"].to_pylist()[1] if kind == "arrow" else found["age"][1]) > 0
        assert all(isinstance(each, str) for each in (found["age"].to_pylist() if kind == "arrow" else found["age"]))
        return found["height"].to_pylist() if kind == "arrow" else found["height"].tolist()

    exact = fill("float64", [100, None])[1]
    assert exact > 127 and fill("int64", [100, None]) == [100, round(exact)]
    with pytest.raises(DataError, match="column 'height' has type [Ii]nt8, which cannot hold all filled values, such as 1"):
        fill("int8", [100, None])


def test_mlflow_predicts_filled_rows_and_images() -> None:
    model, frame = (
        served("vae-mixture"),
        pd.DataFrame({"age": [40.0, None], "colour": ["red", None], "height": 170.0, "smokes": "no"}),
    )
    found = Predictor(model).predict(frame, params={"method": "impute", "draws": 3, "seed": 4})
    pd.testing.assert_frame_equal(found, model.impute(frame, draws=3, seed=4).filled)
    images, x = served("vae-categorical"), examples(CASES["vae-categorical"].spec, 2).numpy().transpose(0, 2, 3, 1)
    masked = np.concatenate([x, (x[..., :1] > 3).astype(np.uint8)], axis=3)
    found = Predictor(images).predict(pd.DataFrame({"x": list(masked)}), params={"method": "impute", "draws": 3})
    assert np.array_equal(found, images.impute(masked, draws=3).filled)


LINES = (
    "\ufeffsmokes;note;height;colour;age\r\n",
    'yes;"kept; as it is";1,7125e2;red;\r\n',
    "\r\n",
    "no;;180,50;;41,0\r\n",
    '"no";  x ;0172,0;"blue";40\r\n',
)


def test_a_csv_file_keeps_every_line_without_gaps_and_every_other_cell(tmp_path: Path) -> None:
    model, source, target = served("vae-mixture"), tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes("".join(LINES).encode())
    written = impute(model, str(source), target, draws=3, cells=tmp_path / "cells.csv")
    lines = target.read_bytes().decode().splitlines(keepends=True)
    assert [lines[place] for place in (0, 2, 4)] == [LINES[place] for place in (0, 2, 4)]
    assert lines[1].startswith('yes;"kept; as it is";1,7125e2;red;') and lines[1].endswith("\r\n")
    assert lines[3].startswith("no;;180,50;") and lines[3].endswith(";41,0\r\n")
    assert "," in lines[1].split(";")[-1], "a decimal comma as in the source"
    assert (written.filled, written.count, written.ignored) == (2, 3, ("note",))
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert cells[["row", "column"]].values.tolist() == [[1, "age"], [2, "colour"]]
    assert sum(json.loads(cells["shares"][1]).values()) == pytest.approx(1.0)
    again = impute(model, str(target), tmp_path / "again.csv")
    assert again.filled == 0 and (tmp_path / "again.csv").read_bytes() == target.read_bytes()
    frame = model.impute(str(source), draws=3).filled
    assert frame["colour"].tolist() == pd.read_csv(target, sep=";")["colour"].tolist()


def test_a_parquet_file_keeps_its_types(tmp_path: Path) -> None:
    spec = WHOLE.model_copy(update={"columns": (*WHOLE.columns[:3], WHOLE.columns[3].model_copy(update={"type": "date32[day]"}))})
    model = served("vae-whole", spec)
    table = pa.table(
        {
            "children": pa.array([1, None, 3], pa.int8()),
            "colour": pa.array(["red", "blue", None]).dictionary_encode(),
            "height": pa.array([None, 170.5, 180.0], pa.float32()),
            "steps": pa.array([10_000, None, 20], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    impute(model, str(tmp_path / "in.parquet"), tmp_path / "out.parquet", draws=2)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.types == table.schema.types and not any(column.null_count for column in found.columns)
    for name in table.column_names:
        for old, new in zip(table[name].to_pylist(), found[name].to_pylist(), strict=True):
            assert old is None or old == new
    impute(model, str(tmp_path / "out.parquet"), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "out.parquet").read_bytes()


def test_a_mask_and_an_alpha_channel_say_the_same(tmp_path: Path) -> None:
    spec = SQUARE.model_copy(update={"levels": 256, "shape": (3, 4, 4)})
    case = CASES["vaegan-residual"]
    model = ServedModel(Case(case.family, case.settings, spec).build().float().requires_grad_(False), spec, ref="m/1")
    x = examples(spec, 2).numpy()
    gone = np.zeros((4, 4), bool)
    gone[1:3] = True
    by_mask = model.impute(x, missing=gone, draws=3, keep_draws=True)
    assert np.array_equal(by_mask.filled[:, :, ~gone], x[:, :, ~gone]) and by_mask.filled.dtype == np.uint8
    assert by_mask.low is not None and by_mask.high is not None and bool((by_mask.low <= by_mask.high).all())
    assert np.array_equal(by_mask.low[:, :, ~gone], x[:, :, ~gone]) and len(by_mask.draws) == 3
    rgba = np.concatenate([x.transpose(0, 2, 3, 1), np.where(gone, 0, 255).astype(np.uint8)[None, ..., None].repeat(2, 0)], 3)
    hidden = np.where(gone[None, ..., None], np.uint8(0), rgba)
    assert np.array_equal(model.impute(hidden, draws=3).filled, by_mask.filled)
    for place, one in enumerate(hidden):
        Image.fromarray(one, "RGBA").save(tmp_path / f"{place}.png")
    assert np.array_equal(model.impute(tmp_path, draws=3).filled, by_mask.filled)
    Image.fromarray(gone.astype(np.uint8) * 255).save(tmp_path / "mask.bmp")
    outputs.write_png(tmp_path / "one.png", x[0], 256)
    impute(model, str(tmp_path / "one.png"), tmp_path / "filled.png", draws=3, mask=str(tmp_path / "mask.bmp"))
    with Image.open(tmp_path / "filled.png") as image:
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), by_mask.filled[0])
    np.save(tmp_path / "nothing.npy", np.zeros((4, 4)))
    written = impute(model, str(tmp_path / "one.png"), tmp_path / "same.png", mask=str(tmp_path / "nothing.npy"))
    assert written.filled == 0 and (tmp_path / "same.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    table, images = served("vae-mixture"), served("vae")
    good = "age,colour,height,smokes\n40,red,,yes\n"
    (tmp_path / "good.csv").write_text(good)
    (tmp_path / "unseen.csv").write_text(good.replace("red", "pink"))
    (tmp_path / "columns.csv").write_text("age,colour,height\n40,red,170\n")
    (tmp_path / "rows.csv").write_text("age,colour,height,smokes\n")
    (tmp_path / "empty.csv").write_text("")
    np.save(tmp_path / "x.npy", examples(CASES["vae"].spec, 2).numpy())
    np.save(tmp_path / "mask.npy", np.ones((5, 5)))
    np.save(tmp_path / "masks.npy", np.ones((3, 3, 4)))
    np.save(tmp_path / "fit.npy", np.ones((3, 4)))
    np.save(tmp_path / "larger.npy", np.zeros((2, 2, 9, 9), np.uint8))
    before, out = sorted(tmp_path.iterdir()), tmp_path / "out.csv"

    def image(data: str, mask: str | None) -> Any:
        return impute(images, str(tmp_path / data), tmp_path / "out.npy", mask=mask and str(tmp_path / mask))

    for act in (
        lambda: impute(table, str(tmp_path / "unseen.csv"), out),
        lambda: impute(table, str(tmp_path / "columns.csv"), out),
        lambda: impute(table, str(tmp_path / "rows.csv"), out),
        lambda: impute(table, str(tmp_path / "empty.csv"), out),
        lambda: impute(table, str(tmp_path / "none.csv"), out),
        lambda: impute(table, str(tmp_path / "good.csv"), tmp_path / "out.parquet"),
        lambda: impute(table, str(tmp_path / "good.csv"), out, mask="mask.npy"),
        lambda: impute(table, str(tmp_path / "good.csv"), out, draws=0),
        lambda: impute(table, str(tmp_path / "good.csv"), out, cells=out),
        lambda: impute(table, str(tmp_path / "good.csv"), out, cells=tmp_path / "good.csv"),
        lambda: impute(table, str(tmp_path / "good.csv"), out, of_class="1"),
        lambda: image("x.npy", None),
        lambda: image("x.npy", "mask.npy"),
        lambda: image("x.npy", "masks.npy"),
        lambda: image("x.npy", "good.csv"),
        lambda: image("larger.npy", "fit.npy"),
    ):
        with pytest.raises(RemintError) as caught:
            act()
        assert caught.value.exit_status == 2 and "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "some.csv").write_text(good + "41,pink,171,no\n42,blue,,no\n")
    written = impute(table, str(tmp_path / "some.csv"), out, draws=2, skip_bad=True)
    assert list(written.set_aside) == ["row 2"] and pd.read_csv(out)["age"].tolist() == [40, 42]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ABLE])
def test_a_family_that_does_not_impute_names_those_that_do(name: str) -> None:
    case = CASES[name]
    x = examples(case.spec, 2).numpy()
    data = rows.to_table(case.spec, x) if case.spec.is_table else x
    options = {} if case.spec.is_table else {"missing": np.ones(case.spec.image[1:])}
    with pytest.raises(UserError, match="m/1: its family does not impute: use a vae, vaegan or flow"):
        served(name).impute(data, **options)


NUMBERS = 6


class Known(Model):
    """A model that draws missing numbers from N(0, 1) and missing categories from the shares .7, .2, .1."""

    impute_noise = NUMBERS + 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def impute(self, x_BX: torch.Tensor, observed_BX: torch.Tensor, noise_BN: torch.Tensor, y_B: Any = None) -> torch.Tensor:
        code_B = torch.bucketize(torch.special.ndtr(noise_BN[:, -1]), torch.tensor([0.7, 0.9], dtype=torch.float64))
        return torch.where(observed_BX, x_BX, torch.cat([noise_BN[:, :-1], code_B[:, None]], 1).float())


def test_coverage_of_a_model_that_is_right_is_its_level() -> None:
    numbers = tuple(Column(name=name) for name in "acdefg")
    spec = DataSpec(shape=(NUMBERS + 1,), columns=(*numbers, Column(name="b", categories=("x", "y", "z"))))
    model, random = ServedModel(Known(), spec), np.random.default_rng(0)
    assert isinstance(model.model, CanImpute)
    count = 2_000
    code = random.choice(3, (count, 1), p=[0.7, 0.2, 0.1])
    x = np.concatenate([random.standard_normal((count, NUMBERS)), code], 1).astype(np.float32)
    found = coverage.coverage(model.model, model.spec, x, most=count)
    assert found.cells > 3_000 and all(found.columns[name] == pytest.approx(0.9, abs=0.05) for name in "acdefg")
    assert 0.85 < found.columns["b"] <= 1.0 and found.low < found.covered < found.high
    assert found.ranked == pytest.approx(0.9, abs=0.02)
    x[:, 0] *= 3
    assert coverage.coverage(model.model, model.spec, x, most=count).columns["a"] < 0.6
    assert coverage.coverage(model.model, model.spec, x, most=7).examples == 7


@pytest.mark.parametrize("levels", [3, 1_000_000])
def test_ranks_of_the_truth_are_within_the_level_also_for_discrete_values(levels: int) -> None:
    """The truth and its draws are alike, so every rank is equally likely; the interval itself covers more often."""
    random = np.random.default_rng(1)
    drawn, x = random.integers(levels, size=(40_000, 20, 1)), random.integers(levels, size=(40_000, 1))
    assert float(coverage.within_ranks(drawn, x).mean()) == pytest.approx(0.9, abs=0.005)
    assert coverage.within_ranks(np.arange(20).reshape(1, 20, 1), np.array([[-1]])) == 0.0
    assert coverage.within_ranks(np.zeros((1, 20, 1)), np.zeros((1, 1))) == pytest.approx(0.9)
