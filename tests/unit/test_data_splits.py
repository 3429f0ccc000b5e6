"""Splits by a setting, from the source to the arrays: trained examples never judge, and each mistake is one line."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from remint.data import arrays, sources, splits
from remint.data.arrays import Dataset, Split
from remint.data.schema import SCHEMA, Schema
from remint.errors import DataError, SettingsError
from remint.evaluation import leakage
from remint.settings.dataset import DatasetSettings
from remint.settings.params import validate_params
from remint.settings.split import SplitSettings
from tests.unit.test_data_idx import write as write_idx
from tests.unit.test_data_pictures import picture, save

Rows = list[dict[str, Any]]


def prepared(folder: Path, source: str, **settings: Any) -> Dataset:
    """Import and divide data as the first two steps do it."""
    given = DatasetSettings(source=source, **settings)
    sources.snapshot("mine", given, folder, folder / "raw", schemas=folder / "schemas")
    splits.prepare("mine", given, folder / "raw", folder / "prepared")
    return arrays.load(folder / "prepared")


def write_csv(file: Path, rows: Rows) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")


def table(folder: Path, rows: Rows, **settings: Any) -> Dataset:
    """Write the rows to a CSV file, and import and divide it."""
    write_csv(folder / "t.csv", rows)
    return prepared(folder, "t.csv", kind="table", **settings)


def refusal(folder: Path, rows: Rows, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        table(folder, rows, **settings)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def mistake(**dataset: Any) -> str:
    """Return the one line that refuses these settings."""
    with pytest.raises(SettingsError) as caught:
        validate_params({"datasets": {"mine": {"source": "t.csv", **dataset}}, "pipelines": {}})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first_values(split: Split, dataset: Dataset) -> set[float]:
    """Return the values of the first column in its own units."""
    column = dataset.spec.columns[0]
    return {round(float(x) * column.scale + column.mean, 2) for x in np.asarray(split.x_NX)[:, 0]}


def visits(count: int, seed: int = 0) -> Rows:
    """Make visits of some 60 patients, each with a weight of its own."""
    rng = np.random.default_rng(seed)
    weights = rng.permutation(5000)[:count] + 0.25 * (1 + seed)  # all different
    return [{"weight": float(w), "patient": f"{p:03}"} for w, p in zip(weights, rng.integers(60, size=count), strict=True)]


def test_no_patient_is_in_two_splits_and_the_column_is_no_feature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = visits(600)
    patient = {row["weight"]: row["patient"] for row in rows}
    dataset = table(tmp_path, rows, split={"group": "patient"})
    assert [column.name for column in dataset.spec.columns] == ["weight"] and dataset.version.split["group"] == "patient"
    assert Schema.read(tmp_path / "raw" / SCHEMA).decisions == {
        "patient": "left out: it divides the splits, and is no measurement"
    }
    assert "split_by_group groups=60" in capsys.readouterr().err

    def patients(dataset: Dataset) -> list[set[str]]:
        parts = (dataset.train, dataset.validation, dataset.held_out)
        return [{patient[weight] for weight in first_values(part, dataset)} for part in parts]

    train, validation, held_out = patients(dataset)
    assert (
        len(train) + len(validation) + len(held_out) == 60 and not train & validation | train & held_out | validation & held_out
    )
    more = visits(200, seed=1)
    patient |= {row["weight"]: row["patient"] for row in more}
    later = table(tmp_path, [*more, *reversed(rows[::2])], split={"group": "patient"})  # appended, deleted and reordered
    assert all(now <= before for now, before in zip(patients(later), (train, validation, held_out), strict=True))
    assert len(later.train) + len(later.validation) + len(later.held_out) == 500


def test_a_group_column_that_a_setting_calls_a_feature_stays_one(tmp_path: Path) -> None:
    dataset = table(tmp_path, visits(600), categorical=["patient"], split={"group": "patient"})
    assert [column.name for column in dataset.spec.columns] == ["weight", "patient"]
    number = table(tmp_path / "number", visits(600), numeric=["patient"], split={"group": "patient"})
    later = table(tmp_path / "number", visits(600), numeric=["patient"], split={"group": "patient"})
    assert later.version.digest == number.version.digest, "patient 007 stays in its split once the schema knows a number 7"
    dropped = table(tmp_path / "dropped", visits(600), drop=["patient"], split={"group": "patient"})
    assert [column.name for column in dropped.spec.columns] == ["weight"]


def test_equal_rows_of_two_groups_are_two_rows(tmp_path: Path) -> None:
    """Of a survey with few answers: a row that comes before its equals in the file takes no other row's identity."""
    rows = [{"x": n % 2, "y": n // 2 % 2, "person": f"p{n % 50}"} for n in range(1000)]
    first = table(tmp_path / "a", rows, categorical=["x", "y"], split={"group": "person"})
    again = table(tmp_path / "b", rows[::-1], categorical=["x", "y"], split={"group": "person"})
    assert first.held_out.id_N is not None and leakage.find(again.held_out, first.train, first.spec).leakage.exact == 0
    assert set(np.asarray(again.held_out.id_N).tolist()) == set(np.asarray(first.held_out.id_N).tolist())


def test_files_of_one_group_are_in_one_split(tmp_path: Path) -> None:
    for n in range(120):
        save(tmp_path / "pets" / ("cat", "dog")[n % 2] / f"owner{n % 40}_{n}.png", picture(n))
    owner = {picture(n).transpose(2, 0, 1).tobytes(): n % 40 for n in range(120)}
    dataset = prepared(tmp_path, "pets", split={"group": r"owner(\d+)_"})
    train, validation, held_out = (
        {owner[bytes(x)] for x in np.asarray(part.x_NX)} for part in (dataset.train, dataset.validation, dataset.held_out)
    )
    assert len(train) + len(validation) + len(held_out) == 40 and len(train | validation | held_out) == 40
    with pytest.raises(
        DataError, match=r"split\.group: .*pets: '\(\\d\)x' finds no group in 120 of 120 paths, such as cat/owner0_0"
    ):
        prepared(tmp_path, "pets", split={"group": r"(\d)x"})
    with pytest.raises(DataError, match=r"split\.group: sklearn:digits has no paths of images"):
        prepared(tmp_path, "sklearn:digits", split={"group": "(.*)/"})


def test_a_bad_group_is_refused_in_one_line(tmp_path: Path) -> None:
    rows = visits(600)
    key = "params.yaml: datasets.mine.split.group: "
    said = refusal(tmp_path, rows, split={"group": "patiant"})
    assert said == f"{key}{tmp_path}/t.csv: unknown column 'patiant': did you mean 'patient'?"
    one = [row | {"patient": "000"} if n % 10 else row for n, row in enumerate(rows)]
    said = refusal(tmp_path, one, split={"group": "patient"})
    assert said.startswith(f"{key}group '000' holds 90% of the 600 examples, more than the training split's share of 70%: ")
    two = [row | {"patient": n % 2} for n, row in enumerate(rows)]
    assert "they form 2 groups: use more groups" in refusal(tmp_path, two, split={"group": "patient"})
    unknown = [row | {"patient": ""} if n < 3 else row for n, row in enumerate(rows)]
    said = refusal(tmp_path, unknown, split={"group": "patient"})
    assert said.endswith("column 'patient' is missing in 3 of 600 rows: fill it, or set missing: drop_rows")
    known = table(tmp_path / "dropped", unknown, split={"group": "patient"}, missing="drop_rows")
    assert sum(known.version.counts.values()) == 597


def test_settings_of_a_group_that_cannot_be_right_are_refused() -> None:
    assert mistake(split={"group": "(a"}).startswith("params.yaml: datasets.mine: split.group: '(a' is not a regular expression")
    assert "has 2 groups: put one part of the path into parentheses" in mistake(split={"group": "(a)(b)"})
    assert "group and by cannot both divide the examples" in mistake(kind="table", split={"group": "a", "by": "content"})
    assert "'a' is the label, and some classes would be in one split only" in mistake(
        kind="table", label="a", split={"group": "a"}
    )


def dated(count: int, days: int = 100) -> Rows:
    """Make rows of one value and one date each, in another order than that of the dates."""
    first = datetime.date(2024, 1, 1)
    rows = [{"x": n + 0.5, "visited": first + datetime.timedelta(days=n * days // count)} for n in range(count)]
    return [rows[place] for place in np.random.default_rng(0).permutation(count)]


def test_the_newest_rows_are_held_out_and_never_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, split = dated(500), {"time": "visited", "held_out": "30d"}
    dataset = table(tmp_path, rows, split=split)
    newest = {row["x"] for row in rows if row["visited"] >= datetime.date(2024, 3, 10)}  # 30 days before 9 April
    assert first_values(dataset.held_out, dataset) == newest and len(newest) == 155
    assert [column.name for column in dataset.spec.columns] == ["x"] and dataset.version.split["held_out"] == "30d"
    assert "split_by_time start=2024-03-10 rows=155" in capsys.readouterr().err
    assert abs(dataset.version.counts["validation"] - 34.5) < 3 * (345 * 0.1 * 0.9) ** 0.5  # of the older rows
    trained = first_values(dataset.train, dataset)

    older = [row for row in rows if row["visited"] < datetime.date(2024, 3, 20)]  # the newest rows are deleted
    again = table(tmp_path, older, split=split)
    assert first_values(again.held_out, again) == newest & {row["x"] for row in older}
    assert "start_kept start=2024-03-10 asked=2024-02-18" in capsys.readouterr().err
    assert first_values(again.train, again) == trained
    said = refusal(tmp_path, [row for row in rows if row["visited"] < datetime.date(2024, 3, 1)], split=split)
    assert "none of the 300 examples falls into held_out: an earlier import held out those from 2024-03-10 on" in said
    assert said.endswith("add newer rows, or raise schema_version to begin anew")
    anew = table(tmp_path, older, split=split, schema_version=2)
    assert len(first_values(anew.held_out, anew)) == 155

    later = [*rows, *({"x": n + 0.25, "visited": datetime.date(2024, 4, 20)} for n in range(20))]
    moved = table(tmp_path, later, split=split)
    assert first_values(moved.held_out, moved) > {n + 0.25 for n in range(20)} and trained <= first_values(moved.train, moved)


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (lambda date: f"{date}T12:00:00", {}),
        (lambda date: f"{date} 12:00:00Z", {}),
        (lambda date: date.toordinal(), {}),
        (lambda date: date.toordinal(), {"numeric": ["visited"]}),
    ],
)
def test_dates_and_numbers_are_times(tmp_path: Path, write: Callable[[datetime.date], Any], settings: dict[str, Any]) -> None:
    rows = dated(500)
    dataset = table(tmp_path, [row | {"visited": write(row["visited"])} for row in rows], split={"time": "visited"}, **settings)
    assert first_values(dataset.held_out, dataset) == {n + 0.5 for n in range(400, 500)}
    assert len(dataset.spec.columns) == 1 + len(settings), "a column that numeric names is a feature, too"


def test_numbers_are_compared_as_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"x": n + 0.5, "week": n // 10} for n in range(130)]
    first = table(tmp_path, rows, split={"time": "week"})
    assert first_values(first.held_out, first) == {n + 0.5 for n in range(100, 130)}
    again = table(tmp_path, rows[:110], split={"time": "week"})
    assert first_values(again.held_out, again) == {n + 0.5 for n in range(100, 110)}
    assert "start_kept start=10 asked=8" in capsys.readouterr().err


def test_text_of_a_parquet_file_may_be_a_time(tmp_path: Path) -> None:
    rows = dated(500)
    columns = {"x": [row["x"] for row in rows], "visited": [f"{row['visited']}T12:00:00Z" for row in rows]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    dataset = prepared(tmp_path, "t.parquet", kind="table", split={"time": "visited", "held_out": "4w"})
    assert len(dataset.held_out) == 145


def test_rows_that_repeat_are_known_by_their_time(tmp_path: Path) -> None:
    rows = [{"x": n % 2, "y": n // 2 % 2, "day": datetime.date(2024, 1, 1 + n % 20)} for n in range(400)]
    settings = {"categorical": ["x", "y"], "split": {"time": "day", "held_out": "5d"}}
    first, later = table(tmp_path / "a", rows, **settings), table(tmp_path / "b", rows[::-1], **settings)
    assert first.train.id_N is not None and len(first.held_out) == 120, "six days"
    for before, now in ((first.train, later.train), (first.held_out, later.held_out)):
        assert set(np.asarray(before.id_N).tolist()) == set(np.asarray(now.id_N).tolist())
    assert leakage.find(later.held_out, first.train, first.spec).leakage.exact == 0


def test_a_bad_time_is_refused_in_one_line(tmp_path: Path) -> None:
    rows, split = dated(200), {"time": "visited", "held_out": "30d"}
    key = f"params.yaml: datasets.mine.split.time: {tmp_path}/t.csv: "
    assert refusal(tmp_path, rows, split=split | {"time": "visits"}) == f"{key}unknown column 'visits': did you mean 'visited'?"
    cities = [row | {"visited": "Trier"} for row in rows]
    assert refusal(tmp_path, cities, split=split).startswith(
        f"{key}column 'visited' contains 'Trier', which is no time: write dates"
    )
    one = [row | {"visited": "soon"} if n == 99 else row for n, row in enumerate(rows)]
    assert "column 'visited' contains 'soon', which is no time" in refusal(tmp_path, one, split=split)
    zones = [row | {"visited": f"{row['visited']}T12:00:00{'Z' * (n % 2)}"} for n, row in enumerate(rows)]
    assert "column 'visited' has times with and without a zone" in refusal(tmp_path, zones, split=split)
    never = [row | {"visited": "inf" if n == 7 else n + 0.5} for n, row in enumerate(rows)]
    assert refusal(tmp_path, never, split={"time": "visited"}).endswith("column 'visited' has 1 infinite values: correct them")
    flags = [row | {"visited": "true"} for row in rows]
    assert "contains 'True', which is no time" in refusal(tmp_path, flags, split=split)
    years = [row | {"visited": row["visited"].year} for row in rows]
    assert "column 'visited' holds numbers, and held_out: 30d is a duration" in refusal(tmp_path, years, split=split)
    gaps = [row | {"visited": ""} if n < 2 else row for n, row in enumerate(rows)]
    assert refusal(tmp_path, gaps, split=split).endswith("is missing in 2 of 200 rows: fill it, or set missing: drop_rows")
    assert sum(table(tmp_path / "dropped", gaps, split=split, missing="drop_rows").version.counts.values()) == 198
    said = refusal(tmp_path, rows, split=split | {"held_out": "52w"})
    assert "falls into train: those from 2023-04-" in said and said.endswith("are held out: hold out a shorter time")


def test_settings_of_a_split_that_cannot_go_together_are_refused() -> None:
    assert "time and stratify cannot both divide the examples" in mistake(
        kind="table", label="y", split={"time": "a", "stratify": True}
    )
    assert "group and time cannot both" in mistake(kind="table", split={"time": "a", "group": "b"})
    assert "held_out: 30d is a duration: name the column of dates in time" in mistake(split={"held_out": "30d"})
    for held_out in ("a month", "0d"):
        assert f"held_out: with time, give a share or a duration (12h, 30d, 8w), not '{held_out}'" in mistake(
            kind="table", split={"time": "a", "held_out": held_out}
        )
    assert "split.time does not apply to kind: image" in mistake(split={"time": "a"})
    assert "split.stratify needs classes: name their column in label" in mistake(kind="table", split={"stratify": True})
    assert "held_out: stratify divides by shares: remove it" in mistake(split={"held_out": "test", "stratify": True})
    assert "a table has no part 'test': name a file, such as data/test.csv" in mistake(kind="table", split={"held_out": "test"})
    assert "split.held_out: expected a path or an address, not 'a/\\n'" in mistake(split={"held_out": "a/\n"})
    for held_out in (True, 0, 0.5, [1], None):
        assert "split.held_out: expected a share above 0 and below 0.5" in mistake(split={"held_out": held_out})


def test_a_rare_class_has_its_share_in_each_split(tmp_path: Path) -> None:
    rows = [{"x": n + 0.5, "y": "rare" if n % 20 == 0 else "usual"} for n in range(1000)]
    settings = {"label": "y", "split": {"stratify": True}}
    first = table(tmp_path, rows, **settings)
    for part, rare, usual in ((first.train, 35, 665), (first.validation, 5, 95), (first.held_out, 10, 190)):
        assert np.bincount(np.asarray(part.y_N)).tolist() == [rare, usual]
    more = [{"x": n + 0.25, "y": "rare"} for n in range(50)]
    later = table(tmp_path, [*more, *rows[::-2]], **settings)
    for now, before in zip(
        (later.train, later.validation, later.held_out), (first.train, first.validation, first.held_out), strict=True
    ):
        assert {x for x in first_values(now, later) if x % 1 == 0.5} <= first_values(before, first)
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4, 4)))
    with pytest.raises(DataError, match=r"^params.yaml: datasets.mine.split.stratify: the examples have no classes: remove it$"):
        prepared(tmp_path / "images", str(tmp_path / "a.npz"), split={"stratify": True})


def test_a_group_is_the_text_of_its_cell_whatever_other_cells_hold(tmp_path: Path) -> None:
    rows = [{"x": n + 0.5, "sensor": f"{n % 40}e3"} for n in range(400)]  # which read as numbers are 0, 1000, 2000, ..
    first = table(tmp_path, rows, split={"group": "sensor"})
    later = table(tmp_path, [*rows, {"x": 0.25, "sensor": "new"}], split={"group": "sensor"})
    assert first_values(first.train, first) <= first_values(later.train, later)
    assert first_values(first.held_out, first) <= first_values(later.held_out, later)


def pair(folder: Path, layout: str, count: int = 60) -> tuple[set[bytes], set[bytes]]:
    """Save pictures of cats and dogs at train/ and test/ as the layout says. Return the pixels of both parts."""
    content: tuple[set[bytes], set[bytes]] = set(), set()
    for n in range(count):
        part = "test" if n % 4 == 0 else "train"
        save(folder / layout.format(part=part, label=("cat", "dog")[n // 4 % 2], n=n), picture(n))
        content[part == "test"].add(picture(n).transpose(2, 0, 1).tobytes())
    return content


def pixels(*parts: Split) -> set[bytes]:
    return {bytes(x) for part in parts for x in np.asarray(part.x_NX)}


@pytest.mark.parametrize("layout", ["{part}/{label}/{n}.png", "{part}/{n}.png", "pets/{part}/{label}/{n}.png"])
def test_a_test_folder_is_held_out_and_is_no_label(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = pair(tmp_path / "pets", layout)
    dataset = prepared(tmp_path, "pets", split={"held_out": "test"})
    assert pixels(dataset.held_out) == test and pixels(dataset.train, dataset.validation) == train
    assert dataset.spec.class_names == (("cat", "dog") if "label" in layout else ())
    assert "split_by_source rows=15 held_out=test left_out=0" in capsys.readouterr().err
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "pets")
    packed = prepared(tmp_path, "packed.zip", split={"held_out": "test"})
    assert packed.version.files == dataset.version.files


def test_labels_beside_a_test_folder_stay(tmp_path: Path) -> None:
    for n in range(60):
        save(tmp_path / "pets" / ("test" if n % 4 == 0 else "") / ("cat", "dog")[n // 4 % 2] / f"{n}.png", picture(n))
    dataset = prepared(tmp_path, "pets", split={"held_out": "test"})
    assert dataset.spec.class_names == ("cat", "dog") and len(dataset.held_out) == 15


def test_a_pair_of_folders_without_the_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(tmp_path / "pets", "{part}/{label}/{n}.png")
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, "pets")
    assert str(caught.value) == (
        f"params.yaml: datasets.mine.source: {tmp_path}/pets has the folders test, train, each with the labels: "
        "set split: {held_out: test}"
    )
    (tmp_path / "pets/test").rename(tmp_path / "pets/Val")
    with pytest.raises(DataError, match=r"has the folders Val, train, each with the labels: set split: {held_out: Val}"):
        prepared(tmp_path, "pets")
    pair(tmp_path / "flat", "{part}/{n}.png")
    assert prepared(tmp_path, "flat").spec.class_names == ("test", "train")
    assert "test_folder folders=test, train part=test" in capsys.readouterr().err
    with pytest.raises(
        DataError, match=r"split\.held_out: .*flat has no part 'tset' \(its parts: test, train\): correct it; a source"
    ):
        prepared(tmp_path, "flat", split={"held_out": "tset"}, schema_version=2)
    with pytest.raises(DataError, match=r"split\.held_out: sklearn:digits has no part 'test' \(its parts: none\)"):
        prepared(tmp_path, "sklearn:digits", split={"held_out": "test"})


def test_the_test_part_of_idx_files_is_held_out_and_its_copies_are_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x_NHW = np.random.default_rng(0).integers(256, size=(80, 6, 5)).astype(np.uint8)

    def write(train_NHW: np.ndarray, test_NHW: np.ndarray) -> Dataset:
        write_idx(tmp_path / "mnist/train-images-idx3-ubyte", train_NHW)
        write_idx(tmp_path / "mnist/t10k-images-idx3-ubyte", test_NHW)
        return prepared(tmp_path, "idx:mnist", split={"held_out": "t10k"})

    first = write(x_NHW[:60], x_NHW[55:])  # five are in both
    assert pixels(first.held_out) == set(map(bytes, x_NHW[55:])) and pixels(first.train, first.validation) == set(
        map(bytes, x_NHW[:55])
    )
    assert (
        first.version.split["held_out"] == "t10k"
        and "split_by_source rows=25 held_out=t10k left_out=5" in capsys.readouterr().err
    )
    later = write(x_NHW[50:5:-1], x_NHW[60:])  # deleted and reordered in both
    assert pixels(later.train) <= pixels(first.train) and pixels(later.validation) <= pixels(first.validation)
    moved = write(x_NHW[20:60], x_NHW[[*range(20), *range(60, 80)]])  # trained on before, now in the test part
    found = leakage.find(moved.held_out, first.train, first.spec).leakage
    assert found.exact == len(pixels(first.train) & set(map(bytes, x_NHW[:20]))) > 0, "the champion's evaluation counts them"


def test_a_held_out_source_judges_and_what_it_shares_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"x": n + 0.5, "colour": ("red", "blue")[n % 2], "y": ("a", "b", "c")[n % 3]} for n in range(300)]
    split = {"held_out": "data/judge.csv"}
    write_csv(tmp_path / "data/judge.csv", rows[200:])
    first = table(tmp_path, rows[:210], label="y", split=split)
    assert first_values(first.held_out, first) == {n + 0.5 for n in range(200, 300)}
    assert first_values(first.train, first) | first_values(first.validation, first) == {n + 0.5 for n in range(200)}
    assert first.spec.columns[0].mean == 105.0, "the schema is that of the training data"
    assert "split_by_source rows=100 held_out=data/judge.csv left_out=10" in capsys.readouterr().err
    write_csv(tmp_path / "data/judge.csv", rows[:150:-1])  # more, and in another order
    later = table(tmp_path, rows[100::-1], label="y", split=split)
    assert first_values(later.train, later) <= first_values(first.train, first)
    assert not first_values(later.train, later) & first_values(later.held_out, later)

    write_csv(tmp_path / "data/judge.csv", [row | {"colour": "green"} for row in rows[200:]])
    assert refusal(tmp_path, rows[:210], label="y", split=split) == (
        "params.yaml: datasets.mine.split.held_out: data/judge.csv does not fit schema 1, as t.csv does: column 'colour' has 1 new "
        "value: 'green': repair it"
    )
    (tmp_path / "data/judge.csv").write_bytes(b"x,\xff\n1,2\n")
    said = refusal(tmp_path, rows, label="y", split=split)
    assert said.startswith(
        f"params.yaml: datasets.mine.split.held_out: {tmp_path}/data/judge.csv: the column names are not UTF-8"
    )
    (tmp_path / "data/judge.csv").unlink()
    said = refusal(tmp_path, rows, label="y", split=split)
    assert (
        said
        == f"params.yaml: datasets.mine.split.held_out: there is no file {tmp_path}/data/judge.csv: put it there or correct the path"
    )
    with pytest.raises(SettingsError, match=r"^params.yaml: datasets.mine.split.held_out: unknown source './judge'"):
        table(tmp_path, rows, label="y", split={"held_out": "./judge"})


def test_no_group_of_a_held_out_source_is_trained_on(tmp_path: Path) -> None:
    rows = visits(600)
    write_csv(tmp_path / "judge/t.csv", [row for row in rows[:300] if row["patient"] < "010"])  # of ten patients
    dataset = table(tmp_path, rows[300:], split={"group": "patient", "held_out": "judge/t.csv"})
    others = {row["weight"] for row in rows[300:] if row["patient"] >= "010"}
    assert first_values(dataset.train, dataset) | first_values(dataset.validation, dataset) == others
    assert first_values(dataset.held_out, dataset) == {row["weight"] for row in rows[:300] if row["patient"] < "010"}
    write_csv(tmp_path / "judge/t.csv", rows[:300])
    said = refusal(tmp_path, rows[300:], split={"group": "patient", "held_out": "judge/t.csv"})
    assert said.endswith(
        "falls into train: 300 that are not held out equal one that is, or are of its group: use others to train on"
    )


def test_rows_that_repeat_are_known_by_their_source(tmp_path: Path) -> None:
    """A row of the held-out source stays the same row, however often it occurs in the other source."""
    rows = [{"x": n % 2, "y": n // 2 % 2} for n in range(400)]
    settings = {"categorical": ["x", "y"], "split": {"held_out": "judge/t.csv"}}
    write_csv(tmp_path / "judge/t.csv", rows[:100])
    first = table(tmp_path, rows, **settings)
    later = table(tmp_path, rows[::4] * 2, **settings)
    assert len(first.held_out) == 100 and len(first.train) + len(first.validation) == 400
    assert np.asarray(first.held_out.id_N).tolist() == np.asarray(later.held_out.id_N).tolist()
    assert leakage.find(later.held_out, first.train, first.spec).leakage.exact == 0


def test_a_held_out_source_is_found_as_the_other_is(tmp_path: Path) -> None:
    """In the working tree, if a job's checkout lacks it; for an s3:// source, beside the other's objects."""
    for n in range(60):
        save(tmp_path / "tree/pets" / f"{n}.png", picture(n))
        save(tmp_path / "fetched/mine+held_out" / f"{n}.png", picture(100 + n))
    (tmp_path / "checkout").mkdir()
    given = DatasetSettings(source="pets", split=SplitSettings(held_out="s3://bucket/test"))
    assert given.sources == {"source": "pets", "split.held_out": "s3://bucket/test"}
    places = {"fallback": tmp_path / "tree", "fetched": tmp_path / "fetched/mine"}
    sources.snapshot("mine", given, tmp_path / "checkout", tmp_path / "raw", **places)
    assert splits.prepare("mine", given, tmp_path / "raw", tmp_path / "prepared").counts["held_out"] == 60
    shutil.rmtree(tmp_path / "fetched")
    with pytest.raises(DataError, match=r"datasets.mine.split.held_out: s3://bucket/test was not fetched: use `remint run`"):
        sources.snapshot("mine", given, tmp_path / "checkout", tmp_path / "raw", **places)
