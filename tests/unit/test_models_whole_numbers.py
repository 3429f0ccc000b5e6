"""Whole-number columns: probabilities of their values, rounding, and rows in the form of their source."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from remint.data import columns, rows, sources, tables
from remint.data.schema import SCHEMA, SNAPSHOT, Schema
from remint.errors import DataError
from remint.models.contract import HasLogProb, standard_normal
from remint.models.row_likelihoods import Gaps, RowLikelihood
from remint.models.whole_numbers import WholeNumbers, normal_log_mass
from remint.records import Column, DataSpec
from remint.settings.dataset import DatasetSettings
from remint.settings.recipe import FlowSettings
from tests.support.models_cases import GAPPED, WHOLE, Case

CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize("half", [1e-6, 0.004, 0.02, 0.5, 3.0])
@pytest.mark.parametrize("sigma", [0.0068, 1.0, 20.0])
def test_the_mass_of_an_interval_is_that_of_the_normal_distribution(half: float, sigma: float) -> None:
    centre_N = torch.tensor([0.0, 0.3, -0.3, 5.0, -12.0], dtype=torch.float64, requires_grad=True)
    log_sigma = torch.tensor(sigma, dtype=torch.float64).log().requires_grad_()
    found_N = normal_log_mass(centre_N, log_sigma, torch.tensor(half, dtype=torch.float64))
    with mpmath.workdps(60):
        for centre, found in zip(centre_N.tolist(), found_N.tolist(), strict=True):
            edges = [(mpmath.mpf(centre) + side * mpmath.mpf(half)) / mpmath.mpf(sigma) for side in (-1, 1)]
            low, high = (-max(edges), -min(edges)) if centre > 0 else edges
            exact = mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low))
            # Where the density stands for the mean over an interval of width w = 2 half / sigma, the error is w^2 (z^2 - 1) / 24.
            width, z = 2 * half / sigma, centre / sigma
            assert found == pytest.approx(float(exact), rel=1e-9, abs=1e-9 + (width**2 * (z**2 + 1) / 24 if width < 0.02 else 0))
    gradients = torch.autograd.grad(found_N.sum(), [centre_N, log_sigma])
    assert all(bool(each.isfinite().all()) for each in gradients)


@pytest.mark.parametrize("half", [1.0, 0.1, 1e-3, 1e-4])
@pytest.mark.parametrize("centre", [0.2, 20.0, 100.0, 1e4, 1e6])
def test_an_outlier_has_a_right_gradient_in_single_precision(centre: float, half: float) -> None:
    found, exact = [], []
    for into, dtype in ((found, torch.float32), (exact, torch.float64)):
        given = [torch.tensor(value, dtype=dtype, requires_grad=True) for value in (centre, -5.0)]
        into += [mass := normal_log_mass(*given, torch.tensor(half, dtype=dtype)), *torch.autograd.grad(mass, given)]
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(exact), rtol=1e-3, atol=1e-3)


def test_without_width_the_mass_is_the_density() -> None:
    found = normal_log_mass(torch.tensor([0.7]), torch.tensor(0.3), torch.tensor(0.0))
    torch.testing.assert_close(found, torch.distributions.Normal(0.0, float(np.exp(0.3))).log_prob(torch.tensor([0.7])))


@pytest.mark.parametrize("law", ["sigma_gaussian", "gaussian_mixture"])
def test_probabilities_of_all_whole_numbers_sum_to_one(law: Any) -> None:
    column = Column(name="children", mean=1.3, scale=1.7, least=0, most=6)
    likelihood = RowLikelihood(law, DataSpec(shape=(1,), columns=(column,)), mixtures=2).double()
    theta_P = torch.randn(likelihood.outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_ND = ((torch.arange(-60, 60, dtype=torch.float64) - column.mean) / column.scale).unsqueeze(1)
    with torch.no_grad():
        log_p_N = likelihood.log_prob(x_ND, theta_P.expand(len(x_ND), -1))
    assert float(log_p_N.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_a_flow_gives_whole_numbers_probabilities_that_sum_to_one() -> None:
    spec = DataSpec(shape=(1,), columns=(Column(name="children", mean=1.3, scale=1.7, least=0, most=6),))
    model = Case("flow", FlowSettings(couplings=2, hidden=8, bins=4, dropout=0.0), spec).build()
    assert isinstance(model, HasLogProb) and model.density_noise == 1
    share_U = (torch.arange(400, dtype=torch.float64) + 0.5) / 400  # midpoints of the dequantisation
    x_K1 = ((torch.arange(-40, 40, dtype=torch.float64) - 1.3) / 1.7).unsqueeze(1)
    noise_U1 = torch.special.ndtri(share_U).unsqueeze(1)
    with torch.no_grad():
        probability = sum(float(model.log_prob(x_1.expand(400, 1), noise_U1).exp().mean()) for x_1 in x_K1)
    assert probability == pytest.approx(1.0, abs=1e-3)


def test_whole_numbers_are_rounded_within_their_range_and_in_double_precision() -> None:
    seconds = Column(name="at", mean=1.7e9 + 0.25, scale=1e5, least=1_699_000_000, most=1_700_500_000)
    whole = WholeNumbers([seconds, Column(name="height")]).float()  # a cast alters nothing
    x_BD = torch.tensor([[-1e3, 0.123], [0.0, 0.123], [1e3, 0.123]])
    rounded_BD = whole.round(x_BD)
    assert torch.equal(rounded_BD[:, 1], x_BD[:, 1])
    original_B = rounded_BD[:, 0].double() * seconds.scale + seconds.mean
    expected_B = torch.tensor([1_699_000_000.0, 1.7e9, 1_700_500_000.0], dtype=torch.float64)
    torch.testing.assert_close(original_B, expected_B, atol=0.1, rtol=0)  # of x, in single precision
    assert float(whole.half_widths(torch.float64)[0]) == 0.5e-5


def test_drawn_rows_lack_values_as_often_as_the_training_split() -> None:
    gaps = Gaps(GAPPED.columns)
    x_ND = torch.zeros(1000, 4)
    x_ND[:100, 0], x_ND[:400, 3] = torch.nan, torch.nan
    gaps.fit(x_ND)
    drawn_ND = gaps.add(torch.zeros(20_000, 4), standard_normal((20_000, gaps.noise_size), 1))
    torch.testing.assert_close(drawn_ND.isnan().double().mean(0), torch.tensor([0.1, 0, 0, 0.4]).double(), atol=0.012, rtol=0)
    assert Gaps(WHOLE.columns).noise_size == 0


def imported(source: Path, folder: Path, **settings: Any) -> tuple[DataSpec, Tensor, Any]:
    """Import a table and return its spec, its standardised rows and its labels."""
    given = DatasetSettings(source=str(source), kind="table", **settings)
    sources.snapshot("case", given, folder, folder / "raw", schemas=folder / "schemas")
    with np.load(folder / "raw" / SNAPSHOT) as archive:
        spec = Schema.read(folder / "raw" / SCHEMA).spec
        return spec, columns.standardise(archive["x"], spec.columns), archive["y"] if "y" in archive.files else None


@pytest.mark.parametrize("name", ["whole_numbers.csv", "whole_numbers_missing.parquet"])
def test_rows_of_a_source_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    spec, x_ND, y_N = imported(CASES / name, tmp_path, label="member")
    children = spec.columns[0]
    assert (children.least, spec.suffix, spec.label_at) == (0, Path(name).suffix, 2)
    assert spec.columns[2].least is None, "weights are no whole numbers"
    again = tmp_path / f"again{Path(name).suffix}"
    rows.write(again, rows.to_table(spec, x_ND, y_N), spec)
    if name.endswith(".parquet"):
        before, after = pq.read_table(CASES / name), pq.read_table(again)
        assert after.schema.remove_metadata() == before.schema.remove_metadata()
        assert after.drop_columns("weight").equals(before.drop_columns("weight").replace_schema_metadata())
        np.testing.assert_allclose(after["weight"].to_numpy(), before["weight"].to_numpy(), atol=1e-6)
        return
    before, after = ((line.rpartition(",") for line in path.read_text().splitlines()) for path in (CASES / name, again))
    for (left, _, weight), (right, _, again_weight) in zip(before, after, strict=True):
        assert left == right
        assert weight == again_weight or float(weight) == pytest.approx(float(again_weight), rel=1e-5, abs=1e-6)


def test_dates_and_times_come_back_in_their_type(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 31, 12, 30, tzinfo=datetime.UTC)
    moments = [day + datetime.timedelta(hours=5 * index) for index in range(40)]
    table = pa.table(
        {
            "day": pa.array([moment.date() for moment in moments], pa.date32()),
            "at": pa.array(moments, pa.timestamp("us", tz="UTC")),
            "clock": pa.array([moment.time() for moment in moments], pa.time64("us")),
            "small": pa.array([index % 7 for index in range(40)], pa.int8()),
            "grade": pa.array([index % 3 for index in range(40)], pa.int64()),
            "rate": pa.array([None if index == 3 else float(index % 3) for index in range(40)], pa.float64()),
            "flag": pa.array([index % 4 == 0 if index else None for index in range(40)], pa.bool_()),
            "single": pa.array(np.linspace(0, 1, 40), pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    given: dict[str, Any] = {"numeric": ["day", "at", "clock"], "categorical": ["grade", "rate"]}
    spec, x_ND, _ = imported(tmp_path / "in.parquet", tmp_path, **given)
    found = rows.to_table(spec, x_ND)
    assert found.schema == table.schema
    for name in ("day", "clock", "small", "grade", "rate", "flag"):
        assert found[name].equals(table[name]), name
    late = found["at"].cast(pa.int64()).to_numpy() - table["at"].cast(pa.int64()).to_numpy()
    assert abs(late).max() <= 1_000_000, "single precision of a standardised time"
    with pytest.raises(DataError, match=r"column 'day' contains dates or times .*add it to numeric"):
        imported(tmp_path / "in.parquet", tmp_path / "other", numeric=["at", "clock"])


def test_values_are_shown_as_a_person_reads_them() -> None:
    day = Column(name="day", mean=20_000.0, scale=100.0, least=20_000, most=20_100, type="date32[day]")
    small = Column(name="small", mean=50.0, scale=10.0, least=0, most=100, type="int8")
    shown = [
        rows.text(Column(name="x", mean=1.0, scale=2.0), 1 / 3, 4),
        rows.text(Column(name="n", mean=1e6, scale=10.0, least=0, most=9), 1.0, 4),
        rows.text(Column(name="c", categories=("a", "b")), 1.0, 4),
        rows.text(day, 2.0, 4),
        rows.text(day, float("nan"), 4),
        rows.text(small, 10.0, 4),
        rows.text(day, 1e9, 4),
    ]
    assert shown == ["1.667", "1000010", "b", "2025-04-22", "", "150", "1e+11"], (
        "a real value may lie beyond the range of the first import"
    )


def test_later_fractions_do_not_fit_a_column_of_whole_numbers() -> None:
    known = Column(name="children", mean=1.0, scale=1.0, least=0, most=4)
    table = tables.Table("f.csv", {"children": pa.chunked_array([[1.0, 1.5]])}, None, "", ())
    assert tables.conform(table, DataSpec(shape=(1,), columns=(known,))) == (
        {},
        ["column 'children' held whole numbers, now contains 1.5"],
    )
