"""Missing values: families that cannot take them are refused early, and rows that have them may be dropped."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from remint.data import sources
from remint.data.schema import Schema
from remint.errors import SettingsError
from remint.promotion import retraining
from remint.records import Column, DataSpec
from remint.runtime.home import Home
from remint.settings.dataset import DatasetSettings
from remint.settings.params import validate_params
from tests.unit.test_data_schema import CONTENT, ROWS, TABLE, import_dataset

GAPS = DataSpec(shape=(3,), columns=(Column(name="age", missing=True), Column(name="pet", missing=True), Column(name="size")))


@pytest.mark.parametrize(
    ("family", "drop", "expected"),
    [
        ("flow", [], "flow cannot take missing values, but columns age, pet may lack some"),
        ("gan", ["pet"], "gan cannot take missing values, but column age may lack some"),
        ("gan", ["pet", "age"], ""),
        ("vaegan", [], "vaegan cannot take missing values, but columns age, pet may lack some"),
        ("vae", [], ""),
    ],
)
def test_a_family_that_cannot_take_missing_values_is_refused(family: str, drop: list[str], expected: str) -> None:
    pipeline = {"dataset": "people", "family": family, "model": {}, "training": {}, "evaluation": {}, "promotion": {}}
    dataset = {"source": "people.csv", "kind": "table", "drop": drop}
    params = validate_params({"datasets": {"people": dataset}, "pipelines": {"p": pipeline}})
    if not expected:
        params.check_missing("p", GAPS)
        return
    with pytest.raises(SettingsError) as caught:
        params.check_missing("p", GAPS)
    remedy = "set datasets.people.missing: drop_rows, or use family: vae"
    assert str(caught.value) == f"params.yaml: pipelines.p.family: {expected}: {remedy}"


def test_a_schema_of_rows_with_gaps_has_none_where_such_rows_are_dropped(tmp_path: Path) -> None:
    import_dataset(tmp_path, CONTENT)
    learnt = (tmp_path / "schemas/people-1.json").read_bytes()
    spec = Schema.read(tmp_path / "out/schema.json").spec
    assert [(column.name, column.missing, column.absent) for column in spec.columns if column.missing] == [("gaps", True, 0.25)]
    x_ND = import_dataset(tmp_path, **TABLE, missing="drop_rows")["x"]
    without = Schema.read(tmp_path / "out/schema.json")
    assert len(x_ND) == ROWS - ROWS // 4 and not any(column.missing or column.absent for column in without.spec.columns)
    assert [column.scale for column in without.spec.columns] == [column.scale for column in spec.columns]
    assert (tmp_path / "schemas/people-1.json").read_bytes() == learnt, "the kept schema serves both settings"


@pytest.mark.parametrize(
    ("family", "missing", "refused"), [("flow", "keep", True), ("flow", "drop_rows", False), ("vae", "keep", False)]
)
def test_the_kept_schema_refuses_a_family_before_a_job_starts(tmp_path: Path, family: str, missing: str, refused: bool) -> None:
    home = Home.of(tmp_path)
    pipeline = {"dataset": "people", "family": family, "model": {}, "training": {}, "evaluation": {}, "promotion": {}}
    params = validate_params({"datasets": {"people": {**TABLE, "missing": missing}}, "pipelines": {"p": pipeline}})
    retraining.check_missing(home, params, "p")  # no schema yet
    pyarrow.parquet.write_table(pa.table(CONTENT), tmp_path / "a.parquet")
    sources.snapshot("people", DatasetSettings(**TABLE), tmp_path, tmp_path / "out", schemas=home.path / "schemas")
    with pytest.raises(SettingsError, match="column gaps may lack some") if refused else nullcontext():
        retraining.check_missing(home, params, "p")
