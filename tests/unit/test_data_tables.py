"""Tables: CSV and Parquet give the same data, column types follow from values, and unusable columns are named."""

from __future__ import annotations

import datetime
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from remint.data import columns, parquet_tables, rows, sources, splits
from remint.data.arrays import load
from remint.data.schema import Schema
from remint.errors import DataError, SettingsError
from remint.records import Column, DataSpec
from remint.settings.dataset import DatasetSettings

ROWS = 60
GENERATOR = np.random.default_rng(0)
PEOPLE: dict[str, Any] = {
    "height": GENERATOR.normal(170.0, 10.0, ROWS),
    "children": GENERATOR.integers(0, 5, ROWS),
    "city": [("Bonn", "Ulm", "Köln, am Rhein")[i % 3] for i in range(ROWS)],
    "member": [i % 2 == 0 for i in range(ROWS)],
    "income": [None if i % 7 == 0 else (i % 11) / 2 for i in range(ROWS)],
    "pet": [None if i % 5 == 0 else ("cat", 'the "dog"')[i % 2] for i in range(ROWS)],
    "group": [("b", "a", "c")[i % 3] for i in range(ROWS)],
}


def write(path: Path, content: dict[str, Any]) -> None:
    table = pa.table(content)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)


def snapshot(folder: Path, source: str = "a.parquet", **settings: Any) -> tuple[dict[str, np.ndarray], DataSpec]:
    sources.snapshot("people", DatasetSettings(source=source, kind="table", **settings), folder, folder / "out")
    with np.load(folder / "out/data.npz", allow_pickle=False) as archive:
        return dict(archive), Schema.read(folder / "out/schema.json").spec


def refusal(folder: Path, source: str = "a.parquet", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        snapshot(folder, source, **settings)
    assert "datasets.people" in str(caught.value) and not (folder / "out").exists()
    return str(caught.value)


def column(values: Any, name: str = "x", **settings: Any) -> Column:
    return columns.learn_column(name, pa.chunked_array([pa.array(values)]), categorical=settings.get("categorical", False))


def refusal_of_column(values: Any, name: str = "x", **settings: Any) -> str:
    array = pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])
    with pytest.raises(columns.UnusableColumn) as caught:
        columns.check_type(array)
        columns.learn_column(name, array, categorical=settings.get("categorical", False))
    return str(caught.value)


def test_column_types_follow_from_the_values(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", PEOPLE)
    arrays, spec = snapshot(tmp_path, label="group", categorical=["children"])
    height, children, city, member, income, pet = spec.columns
    assert spec.shape == (6,) and spec.classes == 3 and spec.class_names == ("a", "b", "c") and spec.unit == "nats"
    assert height == Column(name="height", mean=PEOPLE["height"].mean(), scale=PEOPLE["height"].std())
    assert children.categories == ("0", "1", "2", "3", "4") and city.categories == ("Bonn", "Köln, am Rhein", "Ulm")
    assert member.categories == ("false", "true") and not member.missing
    known = np.array([value for value in PEOPLE["income"] if value is not None])
    assert income.numeric and income.missing and (income.mean, income.scale) == (known.mean(), known.std())
    assert pet.categories == ("cat", 'the "dog"') and pet.missing
    x_ND = arrays["x"]
    assert x_ND.dtype == np.float64 and arrays["y"].tolist() == [(1, 0, 2)[i % 3] for i in range(ROWS)]
    np.testing.assert_array_equal(x_ND[:, 0], PEOPLE["height"])  # unchanged: values are standardised later
    np.testing.assert_array_equal(x_ND[:, 1], PEOPLE["children"])
    np.testing.assert_array_equal(x_ND[:, 2], [(0, 2, 1)[i % 3] for i in range(ROWS)])
    np.testing.assert_array_equal(x_ND[:, 4], [np.nan if value is None else value for value in PEOPLE["income"]])
    np.testing.assert_array_equal(np.isnan(x_ND[:, 5]), [value is None for value in PEOPLE["pet"]])


@pytest.mark.parametrize(
    "settings", [{}, {"label": "group", "categorical": ["children"]}, {"missing": "drop_rows"}, {"drop": ["pet"]}]
)
def test_csv_and_parquet_give_the_same_bytes(tmp_path: Path, settings: dict[str, Any]) -> None:
    write(tmp_path / "a.parquet", PEOPLE)
    write(tmp_path / "a.csv", PEOPLE)
    snapshot(tmp_path, "a.parquet", **settings)
    parquet = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for typed in (b',\n  "suffix": ".parquet"', b',\n    "type": "int64"'):  # of the rows that a model draws
        parquet["schema.json"] = parquet["schema.json"].replace(typed, b"")
    snapshot(tmp_path, "a.csv", **settings)
    csv = {path.name: path.read_bytes().replace(b"a.csv", b"a.parquet") for path in (tmp_path / "out").iterdir()}
    assert csv == parquet


def test_parquet_types_are_mapped_to_column_types(tmp_path: Path) -> None:
    values = [1, 2, 5, 3] * 5
    text = ["b", "a", "c", None] * 5
    content = {
        "half": pa.array(np.array(values, np.float16)),
        "single": pa.array(values, pa.float32()),
        "byte": pa.array(values, pa.uint8()),
        "decimal": pa.array([Decimal(value) for value in values], pa.decimal128(10, 2)),
        "dictionary": pa.array(text).dictionary_encode(),
        "large": pa.array(text, pa.large_string()),
        "view": pa.array(text, pa.string_view()),
        "numbers": pa.array(values, pa.int64()).dictionary_encode(),
    }
    pyarrow.parquet.write_table(pa.table(content), tmp_path / "a.parquet")
    arrays, spec = snapshot(tmp_path)
    coded = [1.0, 0.0, 2.0, np.nan] * 5
    for d, name in enumerate(content):
        expected = coded if name in ("dictionary", "large", "view") else values
        np.testing.assert_array_equal(arrays["x"][:, d], expected, err_msg=name)
        assert spec.columns[d].numeric == (expected is values)


def test_empty_cells_nulls_and_nan_are_missing_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1.5,x\n,y\nNaN,\n2.5,x\n")
    arrays, spec = snapshot(tmp_path, "a.csv")
    np.testing.assert_array_equal(arrays["x"], [[1.5, 0], [np.nan, 1], [np.nan, np.nan], [2.5, 0]])
    assert all(column.missing for column in spec.columns) and spec.columns[0].mean == 2.0
    write(tmp_path / "a.parquet", {"a": [1.5, None, float("nan"), 2.5], "b": ["x", "y", "", "x"]})
    np.testing.assert_array_equal(snapshot(tmp_path)[0]["x"], arrays["x"])


def test_rows_with_missing_values_are_dropped_if_the_settings_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path / "a.parquet",
        {"a": [1.0, None, 3.0, 4.0], "b": ["x", "y", "", "z"], "l": ["p", "q", "p", None], "c": [1, 2, 3, 5]},
    )
    arrays, spec = snapshot(tmp_path, missing="drop_rows", drop=["l", "b"])
    np.testing.assert_array_equal(arrays["x"], [[1, 1], [3, 3], [4, 5]])
    assert [column.least for column in spec.columns] == [1, 1], "pandas makes whole numbers floats where one is missing"
    assert not any(column.missing for column in spec.columns) and "dropped_rows rows=1 of=4" in capsys.readouterr().err
    write(tmp_path / "b.parquet", {"a": [1.0, None], "c": [None, 2.0]})
    with pytest.raises(DataError, match="every row has a missing value"):
        snapshot(tmp_path, "b.parquet", missing="drop_rows")


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris"])
def test_the_tables_of_scikit_learn_are_read(tmp_path: Path, name: str) -> None:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    arrays, spec = snapshot(tmp_path, f"sklearn:{name}")
    np.testing.assert_array_equal(arrays["x"], bunch.data)
    np.testing.assert_array_equal(arrays["y"], bunch.target)
    assert spec.class_names == tuple(bunch.target_names)
    plain = [str(n).removesuffix(" (cm)").replace(" ", "_") for n in bunch.feature_names]
    if name == "breast_cancer":  # remint writes "error_radius" for "radius error", like "mean_radius" and "worst_radius"
        plain = [f"error_{n.removesuffix('_error')}" if n.endswith("_error") else n for n in plain]
    assert [column.name for column in spec.columns] == plain


def test_prepared_rows_are_standardised(tmp_path: Path) -> None:
    _, spec = snapshot(tmp_path, "sklearn:wine")
    settings = DatasetSettings(source="sklearn:wine", kind="table")
    version = splits.prepare("people", settings, tmp_path / "out", tmp_path / "prepared")
    dataset = load(tmp_path / "prepared")
    assert version.spec == spec and sum(version.counts.values()) == 178
    whole_ND = np.concatenate([split.x_NX for split in (dataset.train, dataset.validation, dataset.held_out)])
    assert whole_ND.dtype == np.float32
    np.testing.assert_allclose(whole_ND.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(whole_ND.std(0), 1.0, atol=1e-6)


# --- unusable columns


def test_every_unusable_column_is_named_with_a_remedy(tmp_path: Path) -> None:
    content = {
        "customer_id": list(range(1000, 1000 + ROWS)),
        "name": [f"person {i}" for i in range(ROWS)],
        "born": [datetime.date(1990, 1, 1 + i % 28) for i in range(ROWS)],
        "country": ["DE"] * ROWS,
        "tags": [["a"]] * ROWS,
        **PEOPLE,
    }
    write(tmp_path / "a.parquet", content)
    head, *lines, last = refusal(tmp_path).splitlines()
    assert "a.parquet has columns that no model can learn from:" in head
    assert [line.split("'")[1] for line in lines] == ["customer_id", "name", "born", "country", "tags"]
    assert last == "to leave them out: datasets.people.drop: [customer_id, name, born, country, tags]"
    assert snapshot(tmp_path, drop=["customer_id", "name", "born", "country", "tags"])[1].shape == (7,)


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        (list(range(50)), "number", "looks like an identifier"),
        (list(range(50, 0, -1)), "number", "looks like an identifier"),
        ([7, 3, 9, 3] * 9, "store_id", "is named like an identifier"),
        ([7.0, None, 9.0, 3.0] * 9, "storeId", "is named like an identifier"),
        ([f"{i:x}" for i in range(50)], "hash", "looks like an identifier or free text (50 different values in 50 rows)"),
        ([f"{i // 1.5:.0f} words" for i in range(60)], "note", "looks like an identifier or free text"),
        ([f"c{i % 300}" for i in range(900)], "place", "has 300 categories, more than 256"),
        ([2**53 + 2 * i for i in (5, 1, 9, 9, 2)], "big", "integers beyond 2^53"),
        ([2**63 + i for i in (5, 1, 9, 9, 2)], "unsigned", "integers beyond 2^53"),
        ([-(2**60), 5, 9, 9, 2], "negative", "integers beyond 2^53"),
        ([3.5] * 9, "constant", "the same value in every row (3.5)"),
        ([3, None, 3], "constant", "the same value in every row (3)"),
        (["a", "a"], "constant", "the same value in every row ('a')"),
        ([True, True, None], "constant", "the same value in every row ('true')"),
        ([None, None], "nothing", "has no values"),
        ([float("nan")] * 3, "nothing", "has no values"),
        (["", ""], "nothing", "has no values"),
        ([1.0, float("inf"), 2.0], "x", "has 1 infinite values"),
        ([1e300, -1e300, 1.0], "x", "has values up to 1e+300, whose standard deviation cannot be computed"),
        ([1e-300, 2e-300, 3e-300], "x", "has values up to 3e-300, whose standard deviation cannot be computed"),
        (["1", "2.5", "?", "4"], "age", "contains numbers and text such as '?'"),
        (["01/02/2024", "03.04.2024", "x"], "when", "contains dates such as '01/02/2024'"),
        ([datetime.datetime(2024, 1, 1)] * 3, "when", "contains dates or times (timestamp"),
        ([datetime.time(1)] * 3, "when", "contains dates or times (time64"),
        ([datetime.timedelta(1)] * 3, "when", "contains durations (duration"),
        ([{"a": 1}], "nested", "neither number nor text"),
        ([b"bytes"], "raw", "neither number nor text"),
        (
            pa.Array.from_buffers(pa.string(), 1, [*pa.array(["ab"]).buffers()[:2], pa.py_buffer(b"\xff\xfe")]),
            "raw",
            "is not UTF-8",
        ),
    ],
)
def test_unusable_columns_are_refused(values: list[Any], name: str, expected: str) -> None:
    array = pa.array(values, pa.uint64()) if name == "unsigned" else values
    assert expected in refusal_of_column(array, name)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (GENERATOR.normal(size=50), "x"),
        (np.arange(50) / 7, "time"),  # distinct, sorted floats are measurements
        (np.arange(50.0), "year"),
        (np.sort(GENERATOR.normal(size=50)), "sorted"),
        (GENERATOR.permutation(50), "rank"),  # distinct integers, unordered
        (np.cumsum(GENERATOR.integers(1, 10_000, 50)), "inhabitants"),  # in order, with large steps
        (list(range(8)), "few"),
        ([0, 1] * 20, "flag"),
        ([5, 6, 6, 7, 8] * 5, "grid"),
        (["a", "b", "c", "d"], "few"),
        (["007", "008"] * 9, "code"),
        ([1e-100, 2e-100, 3e-100], "tiny"),
        ([1e9, 1e9 + 1], "shifted"),
        (GENERATOR.normal(size=9), "humid"),
        ([2**53, 0, 5], "x"),
    ],
)
def test_ordinary_columns_are_accepted(values: Any, name: str) -> None:
    found = column(values, name)
    assert not found.numeric or found.scale > 0


def test_identifiers_are_accepted_as_categories_if_the_settings_say_so() -> None:
    assert column([7, 3, 9, None] * 9, "store_id", categorical=True).categories == ("3", "7", "9")
    # Pandas stores integers with missing values as floats.
    assert column([7.0, None, 10.0], "store_id", categorical=True).categories == ("7", "10")
    assert "must contain categories, but contains 0.5: use whole numbers or text" in refusal_of_column(
        [1.0, 0.5], categorical=True
    )
    assert column([2**60 + i % 3 for i in range(9)], categorical=True).categories == tuple(str(2**60 + i) for i in range(3))


def test_large_identifiers_are_refused_and_leading_zeros_are_kept(tmp_path: Path) -> None:
    rows = "\n".join(f"{10**19 + i},{i % 3:03}" for i in (5, 1, 9, 9, 2))
    (tmp_path / "a.csv").write_text(f"id,code\n{rows}\n")
    message = refusal(tmp_path, "a.csv")
    assert "column 'id' is named like an identifier" in message
    assert snapshot(tmp_path, "a.csv", drop=["id"], categorical=["code"])[1].columns[0].categories == ("000", "001", "002")


# --- the label


def test_labels_are_the_values_of_the_label_column(tmp_path: Path) -> None:
    numbers = [10, 9, 10, 2]
    for values, names, places in (
        (numbers, ("2", "9", "10"), [2, 1, 2, 0]),
        ([float(n) for n in numbers], ("2", "9", "10"), [2, 1, 2, 0]),
        (["b", "a", "b", "c"], ("a", "b", "c"), [1, 0, 1, 2]),
        ([True, False, True, True], ("false", "true"), [1, 0, 1, 1]),
    ):
        write(tmp_path / "a.parquet", {"x": [1.0, 2.0, 3.0, 5.0], "l": values})
        arrays, spec = snapshot(tmp_path, label="l")
        assert spec.class_names == names and arrays["y"].tolist() == places


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 1.5, 1.0, 1.0], "label 'l' must contain categories, but contains 0.5: use whole numbers or text"),
        (["a", None, "b", "b"], "label 'l' is missing in 1 of 4 rows"),
        (["a"] * 4, "label 'l' has 1 classes"),
        ([datetime.date(2024, 1, 1)] * 4, "label 'l' has 1 classes"),
    ],
)
def test_unusable_labels_are_refused(tmp_path: Path, values: list[Any], expected: str) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0, 2.0, 3.0, 5.0], "l": values})
    assert expected in refusal(tmp_path, label="l")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("moments", [False, True])
def test_dates_may_be_classes_and_categories(tmp_path: Path, suffix: str, moments: bool) -> None:
    days = [datetime.date(2024, 5, 1 + n % 3) for n in range(40)]
    dates = [datetime.datetime(2024, 5, 1 + n % 3, 12, 30) for n in range(40)] if moments else days
    content: dict[str, Any] = {"x": GENERATOR.normal(size=40), "l": dates, "c": dates}
    write(tmp_path / f"a{suffix}", content)
    for _ in range(2):  # the second import knows the schema
        arrays, spec = snapshot(tmp_path, f"a{suffix}", label="l", categorical=["c"])
        assert spec.classes == 3 and len(spec.columns[1].categories) == 3
        assert arrays["y"].tolist() == [n % 3 for n in range(40)] == arrays["x"][:, 1].tolist()
    drawn = rows.to_table(spec, columns.standardise(arrays["x"], spec.columns), arrays["y"])
    rows.write(tmp_path / f"b{suffix}", drawn, spec)
    again = pyarrow.csv.read_csv(tmp_path / "b.csv") if suffix == ".csv" else drawn
    assert [str(each)[:16] for each in again["l"].to_pylist()] == [str(each)[:16] for each in dates]
    if suffix == ".parquet":
        assert drawn["c"].to_pylist() == dates and pa.types.is_temporal(drawn["l"].type)


def test_durations_are_refused_with_a_remedy_that_helps(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0, 2.0, 3.0], "d": [datetime.timedelta(seconds=n) for n in range(3)]})
    assert "column 'd' contains durations (duration[us]): convert them to numbers" in refusal(tmp_path, numeric=["d"])


# --- files and settings


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is not a CSV table: Empty CSV file"),
        ("a,b\n", "has no rows"),
        ("a,b\n1,2\n3\n", "is not a CSV table: CSV parse error: Expected 2 columns, got 1"),
        ("1.5,2\n1,2\n", "the first line holds numbers (1.5, 2, ..)"),
        ("a,a\n1,2\n", "two columns are named 'a'"),
        (",a\n0,1\n", "column 1 has no name"),
        (b"a,b\n\xff\xfe,1\n", "a.csv is not UTF-8: save it as UTF-8"),
        (b"a,\xff\n1,2\n", "the column names are not UTF-8"),
        (b"PK\x03\x04\x00", "a.csv"),
    ],
)
def test_files_that_are_not_csv_are_refused(tmp_path: Path, content: str | bytes, expected: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    assert expected in refusal(tmp_path, "a.csv")


def test_files_that_are_not_parquet_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", PEOPLE)
    good, generator = (tmp_path / "a.parquet").read_bytes(), np.random.default_rng(0)
    for bad in (b"", b"PAR1", b"nothing of the kind", good[:-1], good[: len(good) // 2]):
        (tmp_path / "a.parquet").write_bytes(bad)
        assert "a.parquet is not a Parquet table, or is damaged" in refusal(tmp_path)
    for _ in range(100):
        damaged = bytearray(good)
        for place in generator.integers(len(damaged), size=8):
            damaged[place] = generator.integers(256)
        (tmp_path / "a.parquet").write_bytes(damaged)
        with suppress(DataError):
            snapshot(tmp_path)


def test_a_parquet_file_that_claims_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", PEOPLE)
    monkeypatch.setattr(parquet_tables, "MOST_VALUES", 7 * ROWS)
    snapshot(tmp_path)
    monkeypatch.setattr(parquet_tables, "MOST_VALUES", 7 * ROWS - 1)
    with pytest.raises(DataError, match="holds 60 rows of 7 columns, more than 419 values"):
        snapshot(tmp_path)


def test_unknown_columns_in_the_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", PEOPLE)
    assert "datasets.people.label: " in (message := refusal(tmp_path, label="grup")) and "did you mean 'group'?" in message
    assert "datasets.people.drop: " in refusal(tmp_path, drop=["cities"])
    assert "datasets.people.categorical: " in refusal(tmp_path, categorical=["child"])
    assert "has no columns except the label" in refusal(
        tmp_path, label="group", drop=[name for name in PEOPLE if name != "group"]
    )


def test_sources_of_another_kind_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", PEOPLE)
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4)))
    for source, expected in (
        ("a.npy", "a.npy is not a table"),
        (".", "it holds 2 files: expected one file.csv"),
        ("sklearn:digits", "is not a table"),
    ):
        assert expected in refusal(tmp_path, source)
    for source in ("a.parquet", "sklearn:iris"):
        with pytest.raises(DataError, match="is a table: set kind: table"):
            sources.snapshot("people", DatasetSettings(source=source), tmp_path, tmp_path / "out")
    assert "there is no file" in refusal(tmp_path, "b.csv")
    with pytest.raises(SettingsError, match="did you mean 'sklearn:wine'"):
        snapshot(tmp_path, "sklearn:win")


def test_a_folder_with_one_table_is_read_as_that_table(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/a.csv", PEOPLE)
    (tmp_path / "data/.hidden").touch()
    assert snapshot(tmp_path, "data")[1].shape == (7,)
    settings = DatasetSettings(source="s3://bucket/people", kind="table")
    sources.snapshot("people", settings, tmp_path, tmp_path / "fetched", fetched=tmp_path / "data")
    assert (tmp_path / "fetched/data.npz").read_bytes() == (tmp_path / "out/data.npz").read_bytes()


def test_times_of_a_csv_label_stay_the_text_of_the_file_and_the_separator_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    classes = ("2026-01-31 06:30", "2026-01-31 12:00")
    (tmp_path / "a.csv").write_text("x;shift\n" + "".join(f"{row}.5;{classes[row % 2]}\n" for row in range(40)))
    _, spec = snapshot(tmp_path, "a.csv", label="shift")
    assert spec.class_names == classes
    assert capfd.readouterr().err.count("separator file=a.csv") == 1
