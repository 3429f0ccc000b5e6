"""Tables larger than memory: columns that are read one at a time give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from remint.data import blocks, csv_tables, lazy, parquet_tables, snapshots, sources, splits
from remint.data.lazy import Columns, Matrix
from remint.errors import DataError, SettingsError, StorageError
from remint.settings.dataset import DatasetSettings
from tests.support.full_disk import full_disk

ROWS = 400
SETTINGS: dict[str, Any] = {
    "kind": "table",
    "label": "class",
    "categorical": ["store"],
    "numeric": ["price", "day"],
    "split": {"group": "patient"},
}


def table() -> pa.Table:
    """Rows with every kind of column: numbers, gaps, whole numbers, codes, truth values, text, marked numbers and dates."""
    g = np.random.default_rng(0)
    height = g.normal(170, 10, ROWS).round(2)
    return pa.table(
        {
            "height": pa.array(height, mask=g.random(ROWS) < 0.1),
            "children": g.integers(5, size=ROWS),
            "store": g.integers(7, size=ROWS),
            "code": [f"{code:05d}" for code in g.integers(90, size=ROWS)],
            "member": g.random(ROWS) < 0.3,
            "city": g.choice(["Rome", "Trier", "Ghent"], ROWS),
            "price": [f"${price:,.2f}" for price in g.lognormal(6, 1, ROWS)],
            "day": pa.array(g.integers(18_000, 19_000, ROWS).astype(np.int32)).cast(pa.date32()),
            "class": g.choice(["a", "b"], ROWS),
            "patient": g.integers(60, size=ROWS),
        }
    )


def write(folder: Path, name: str, found: pa.Table) -> None:
    if name.endswith(".parquet"):
        pa.parquet.write_table(found, folder / name, row_group_size=64)
    elif name == "semicolons.csv":
        text = [[str(value).replace(".", ",") for value in column.to_pylist()] for column in found.select(["height", "children"])]
        lines = [";".join(cells).replace("None", "") for cells in zip(*text, strict=True)]
        (folder / name).write_text("\n".join(["height;children", *lines]) + "\n")
    else:
        pa.csv.write_csv(found, folder / name)


def prepared(folder: Path, settings: DatasetSettings, out: str) -> dict[str, bytes]:
    sources.snapshot("x", settings, folder, folder / out / "raw")
    splits.prepare("x", settings, folder / out / "raw", folder / out / "prepared")
    return {str(path.relative_to(folder / out)): path.read_bytes() for path in (folder / out).rglob("*.*") if path.is_file()}


@pytest.mark.parametrize("missing", ["keep", "drop_rows"])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "semicolons.csv"])
def test_columns_that_are_read_one_at_a_time_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    write(tmp_path, name, table())
    about = {"kind": "table"} if name == "semicolons.csv" else SETTINGS
    settings = DatasetSettings.model_validate({"source": name, "missing": missing, **about})
    whole = prepared(tmp_path, settings, "whole")
    assert whole == prepared(tmp_path, settings, "again")
    monkeypatch.setattr(blocks, "memory_limit", lambda: 112 * ROWS)
    for module in (csv_tables, parquet_tables):
        monkeypatch.setattr(module, "memory_limit", lambda: 112 * ROWS)
        monkeypatch.setattr(module, "in_memory", None)  # which a table of this size must not use
    monkeypatch.setattr(csv_tables, "WIDENS", 50)  # a group for each column
    assert prepared(tmp_path, settings, "lazy") == whole


def test_a_large_csv_file_is_refused_like_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For two columns of one name, bytes that are no UTF-8, and both decimal signs in columns of two groups."""
    monkeypatch.setattr(csv_tables, "WIDENS", 1 << 30)
    for name, content, message in (
        ("twice.csv", "a,b,a\n" + "1.5,2,3\n" * 50, "two columns are named 'a'"),
        ("latin.csv", "a,b\n" + "1.5,Köln\n" * 50, r"latin\.csv is not UTF-8"),
        ("signs.csv", "a;b\n" + "1,5;2.5\n" * 50, "holds decimal commas in some columns and decimal points in others"),
    ):
        (tmp_path / name).write_bytes(content.encode("latin1"))
        with pytest.raises(DataError, match=message):
            sources.snapshot("x", DatasetSettings(source=name, kind="table"), tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_beyond_the_memory_limit_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = 40_000
    g = np.random.default_rng(0)
    write(tmp_path, name, pa.table({"a": g.normal(size=rows), "b": g.normal(size=rows), "c": g.normal(size=rows)}))
    settings = DatasetSettings(source=name, kind="table")
    monkeypatch.setenv("REMINT_MEMORY", "2M")
    with pytest.raises(SettingsError, match=r"^REMINT_MEMORY: one column of 40,000 rows needs 5 MiB at once: set it to at least"):
        prepared(tmp_path, settings, "out")
    monkeypatch.setenv("REMINT_MEMORY", "5M")
    assert len(np.concatenate(list(snapshots.read_arrays(_snapshot(tmp_path, settings))["x"]))) == rows


def _snapshot(folder: Path, settings: DatasetSettings) -> Path:
    sources.snapshot("x", settings, folder, folder / "raw")
    return folder / "raw"


def test_a_long_text_beyond_the_memory_limit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = pa.array(["a" * 3_000, "b" * 3_000] * 200).dictionary_encode()
    pa.parquet.write_table(pa.table({"note": text, "x": np.arange(400.0) ** 2}), tmp_path / "a.parquet")
    monkeypatch.setenv("REMINT_MEMORY", "3M")
    with pytest.raises(SettingsError, match=r"^REMINT_MEMORY: the text of column 'note' needs 4 MiB at once: set it to at least"):
        prepared(tmp_path, DatasetSettings(source="a.parquet", kind="table"), "out")


def test_rows_are_read_from_columns_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "memory_limit", lambda: 32 * 8 * 5 * 3)
    x_ND = np.random.default_rng(0).normal(size=(17, 5))
    with blocks.Spool() as spool:
        matrix = Matrix(spool)
        for x_N in x_ND.T:
            matrix.append(x_N)
        found = list(matrix.blocks())
    assert [len(x_BD) for x_BD in found] == [3, 3, 3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(found), x_ND, strict=True)


def test_columns_are_read_at_each_access_and_no_earlier() -> None:
    asked: list[str] = []

    def read(name: str) -> pa.ChunkedArray:
        asked.append(name)
        return pa.chunked_array([[name]])

    columns = Columns({name: lambda name=name: read(name) for name in "abc"})
    doubled = columns.map(lambda name, column: pa.chunked_array([[name + column[0].as_py()]]), ["c", "a"])
    assert list(columns) == ["a", "b", "c"] and list(doubled) == ["c", "a"] and asked == []
    assert [column.to_pylist() for column in doubled.values()] == [["cc"], ["aa"]] and asked == ["c", "a"]
    assert "b" not in doubled and lazy.Columns.of(doubled) is doubled


@pytest.mark.parametrize("room", [3_000, 60_000])
def test_a_full_disk_while_a_large_csv_file_is_divided_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """In the files of columns, and in the file of rows."""
    g = np.random.default_rng(0)
    write(tmp_path, "a.csv", pa.table({name: g.normal(size=4_000) for name in "abc"}))
    monkeypatch.setattr(csv_tables, "WIDENS", 1 << 30)
    settings = DatasetSettings(source="a.csv", kind="table")
    with full_disk(room), pytest.raises(StorageError, match=r"no room to write .*out/raw \(File too large\)"):
        prepared(tmp_path, settings, "out")
    assert not list((tmp_path / "out").iterdir())
    assert prepared(tmp_path, settings, "out")
