"""A person's examples in the model's form: the same from every kind of input, and one line for those that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from remint.data import rows
from remint.data.decoding import decode_image
from remint.errors import DataError, UserError
from remint.records import Column, DataSpec
from remint.serving import inputs, outputs
from remint.settings.dataset import DatasetSettings
from tests.support.models_cases import MIXED, WHOLE, examples, labels

IMAGE = DataSpec(shape=(1, 4, 6), levels=17, classes=3)
COLOUR = DataSpec(shape=(3, 4, 6), levels=256)
LABELLED = WHOLE.model_copy(
    update={"classes": 3, "class_names": ("a", "b", "c"), "label": Column(name="kind", categories=("a", "b", "c")), "label_at": 2}
)


def read(spec: DataSpec, data: Any, **options: Any) -> tuple[np.ndarray, inputs.Examples]:
    with inputs.read(spec, data, **options) as found:
        return np.concatenate([*found.x_NX]), found


def drawn(spec: DataSpec, count: int = 7) -> np.ndarray:
    return examples(spec, count).numpy()


@pytest.mark.parametrize("spec", [IMAGE, COLOUR, IMAGE.model_copy(update={"levels": 2})], ids=["grey", "colour", "binary"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", "", "array", "last"])
def test_images_come_back_as_they_were_written(tmp_path: Path, spec: DataSpec, suffix: str) -> None:
    x = drawn(spec)
    if suffix in ("array", "last"):
        data: Any = x if suffix == "array" else x.transpose(0, 2, 3, 1)
    else:
        outputs.write_examples(data := tmp_path / f"new{suffix}", spec, [(x[:4], None), (x[4:], None)], len(x))
    again, found = read(spec, data)
    assert np.array_equal(again, x) and again.dtype == np.uint8 and found.y_N is None and not found.set_aside


def test_classes_of_folders_and_arrays_are_read_where_the_model_knows_them(tmp_path: Path) -> None:
    x, y = drawn(IMAGE), np.array([2, 0, 1, 1, 0, 2, 2])
    for name in ("new", "new.npz"):
        outputs.write_examples(tmp_path / name, IMAGE, [(x, y)], len(x))
        again, found = read(IMAGE, tmp_path / name)
        order = np.argsort(y, kind="stable") if name == "new" else np.arange(len(y))  # files are in the order of their names
        assert np.array_equal(again, x[order]) and np.array_equal(found.y_N, y[order])
        assert read(IMAGE, tmp_path / name, labels=False)[1].y_N is None


@pytest.mark.parametrize("names", [("a", "b", "c"), ("1", "3", "7")])
def test_classes_with_names_come_back_from_an_array(tmp_path: Path, names: tuple[str, ...]) -> None:
    spec, x, y = IMAGE.model_copy(update={"class_names": names}), drawn(IMAGE), np.array([2, 0, 1, 1, 0, 2, 2])
    outputs.write_examples(tmp_path / "new.npz", spec, [(x, y)], len(x))
    assert np.array_equal(read(spec, tmp_path / "new.npz")[1].y_N, y)
    np.savez(tmp_path / "wrong.npz", x=x, y=y + 5)
    with pytest.raises(DataError, match="labels: .* new|none of the 3 classes of the model"):
        read(spec, tmp_path / "wrong.npz")


def test_one_image_file_is_an_input(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.uint8).reshape(1, 1, 4, 6) % 17
    outputs.write_png(tmp_path / "a.png", x[0], IMAGE.levels)
    assert np.array_equal(read(IMAGE, tmp_path / "a.png")[0], x)


@pytest.mark.parametrize("levels", [2, 17, 64, 200, 256])
def test_a_dark_picture_comes_back_to_the_bit(tmp_path: Path, levels: int) -> None:
    """Its values over 0 .. 255 could be levels too: the file says what they are, to us and to a dataset."""
    spec = DataSpec(shape=(3, 2, 2), levels=levels)
    x = np.array([0, 1, 0, min(2, levels - 1)] * 3, dtype=np.uint8).reshape(1, 3, 2, 2)
    outputs.write_png(tmp_path / "a.png", x[0], levels)
    assert np.array_equal(read(spec, tmp_path / "a.png")[0], x)
    content, settings = (tmp_path / "a.png").read_bytes(), DatasetSettings.model_construct(source="", levels=levels)
    assert np.array_equal(decode_image(content, settings), x[0])
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).max() == round(int(x.max()) * 255 / (levels - 1)), "a person sees it as it is"


def test_other_sizes_are_resized_where_the_training_images_were(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(tmp_path / "a.png")
    spec = DataSpec(shape=(1, 4, 6), levels=256, filter="box", converted=True)
    assert np.array_equal(read(spec, tmp_path / "a.png")[0], np.full((1, 1, 4, 6), 90))
    with pytest.raises(
        DataError, match=r"no images of this model: channels: the model has 1, these have 3; size: .* 4x6, .* 8x12"
    ):
        read(spec.model_copy(update={"filter": "", "converted": False}), tmp_path / "a.png")


def test_bad_images_are_set_aside_only_where_asked(tmp_path: Path) -> None:
    x = drawn(COLOUR, 3)
    outputs.write_examples(tmp_path / "new", COLOUR, [(x, None)], 3)
    (tmp_path / "new" / "cut.png").write_bytes((tmp_path / "new" / "000000.png").read_bytes()[:40])
    Image.new("RGB", (9, 9)).save(tmp_path / "new" / "large.png")
    Image.new("L", (6, 4)).save(tmp_path / "new" / "grey.png")
    with pytest.raises(DataError, match="1 of 6 images cannot be used"):
        read(COLOUR, tmp_path / "new")
    again, found = read(COLOUR, tmp_path / "new", skip_bad=True)
    assert np.array_equal(again, x) and set(found.set_aside) == {"cut.png", "large.png", "grey.png"}
    assert found.set_aside["large.png"] == "has the shape (3, 9, 9), not (3, 4, 6)"


def form(kind: str, table: pa.Table, spec: DataSpec, folder: Path) -> Any:
    """Return a table as one kind of input."""
    if kind == "frame":
        return table.to_pandas()
    if kind == "arrow":
        return table
    rows.write(path := folder / f"new{kind}", table, spec)
    return path


@pytest.mark.parametrize("kind", [".csv", ".parquet", "frame", "arrow"])
@pytest.mark.parametrize("spec", [MIXED, WHOLE, LABELLED], ids=["mixed", "whole", "labelled"])
def test_rows_come_back_as_they_were_written(tmp_path: Path, spec: DataSpec, kind: str) -> None:
    x, y = drawn(spec, 9), labels(spec, 9)
    table = rows.to_table(spec, x, None if spec.label is None or y is None else y.numpy())
    shuffled = table.select(table.column_names[::-1]).append_column("note", pa.array([f"n{i}" for i in range(9)]))
    again, found = read(spec, form(kind, shuffled, spec, tmp_path))
    np.testing.assert_allclose(again, x, rtol=1e-5, atol=1e-5)
    assert again.dtype == np.float32 and found.ignored == ("note",)
    assert (found.y_N is None) if spec.label is None else np.array_equal(found.y_N, y)


def test_an_array_of_numeric_columns_is_a_table() -> None:
    spec = DataSpec(shape=(2,), columns=(Column(name="a", mean=1.0, scale=2.0), Column(name="b")))
    assert np.array_equal(read(spec, [[3.0, 5.0], [1.0, -1.0]])[0], [[1.0, 5.0], [0.0, -1.0]])
    with pytest.raises(DataError, match=r"shape \(2, 3\) has no rows of this model: give a DataFrame with the columns 'a', 'b'"):
        read(spec, np.zeros((2, 3)))


def test_bad_rows_are_set_aside_only_where_asked(tmp_path: Path) -> None:
    lines = [
        "age,colour,height,smokes",
        "40,red,170,yes",
        "x,red,170,no",
        "41,pink,160,no",
        ",blue,150,no",
        "42,green,,",
        "inf,red,1,yes",
    ]
    (tmp_path / "new.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"new\.csv"):
        read(MIXED, tmp_path / "new.csv")
    again, found = read(MIXED, tmp_path / "new.csv", skip_bad=True)
    assert found.row_N is not None and found.row_N.tolist() == [0, 4] and len(again) == 2
    assert set(found.set_aside) == {"row 2", "row 3", "row 4", "row 6"}
    assert "pink" in found.set_aside["row 3"] and "missing" in found.set_aside["row 4"]
    assert np.isnan(again[1, 2:]).all()


def test_a_row_of_an_unknown_class_is_set_aside_where_asked() -> None:
    frame = rows.to_table(LABELLED, drawn(LABELLED, 3), np.array([0, 1, 2])).to_pandas().assign(kind=["z", "b", None])
    with pytest.raises(DataError, match="label 'kind' has 1 new value: 'z'"):
        read(LABELLED, frame.head(2))
    found = read(LABELLED, frame, skip_bad=True)[1]
    assert list(found.set_aside) == ["row 1", "row 3"] and found.y_N is not None and found.y_N.tolist() == [1]


def test_a_batch_of_records_is_a_table() -> None:
    table = rows.to_table(MIXED, drawn(MIXED))
    assert np.array_equal(read(MIXED, table.to_batches()[0])[0], read(MIXED, table)[0], equal_nan=True)


def test_gaps_may_be_anywhere_where_asked(tmp_path: Path) -> None:
    frame = pd.DataFrame({"children": [1, None], "colour": [None, "red"], "height": [170.0, None], "steps": [100, 200]})
    with pytest.raises(DataError, match="missing values"):
        read(WHOLE, frame)
    assert np.isnan(read(WHOLE, frame, gaps=True)[0]).tolist() == [[False, True, False, False], [True, False, True, False]]


def without(name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        return rows.to_table(MIXED, drawn(MIXED)).drop_columns([name])

    return make


def csv_of(*lines: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / "new.csv").write_text("\n".join(lines) + "\n")
        return folder / "new.csv"

    return make


HEAD = "age,colour,height,smokes"
BAD: dict[str, tuple[DataSpec, Callable[[Path], Any], str]] = {
    "a column is missing": (MIXED, without("colour"), "the Table lacks column 'colour' of the model: add it"),
    "an unseen category": (MIXED, csv_of(HEAD, "1,pink,1,yes"), "column 'colour' has 1 new value: 'pink'"),
    "text in place of numbers": (MIXED, csv_of(HEAD, "old,red,1,yes"), "column 'age' holds 'old', which is not a number"),
    "a number too many": (WHOLE, csv_of("children,colour,height,steps", "1.5,red,1,1"), "held whole numbers, now contains 1.5"),
    "infinite": (MIXED, lambda _: pd.DataFrame({"age": [np.inf], "colour": ["red"], "height": [1.0], "smokes": ["no"]}), "infinite"),
    "no rows": (MIXED, csv_of(HEAD), "has no rows"),
    "no file": (MIXED, lambda folder: folder / "none.csv", "there is no file"),
    "images for a table": (MIXED, lambda _: np.zeros((2, 1, 4, 4)), "has no rows of this model"),
    "a table for images": (IMAGE, lambda folder: csv_of("a", "1")(folder), "is a table"),
    "a frame for images": (IMAGE, lambda _: pd.DataFrame({"a": [1.5]}), "expected"),
    "no images": (IMAGE, lambda _: np.zeros((0, 1, 4, 6), np.uint8), "is empty"),
    "another shape": (IMAGE, lambda _: np.zeros((2, 1, 5, 6), np.uint8), "size: the model has 4x6, these have 5x6"),
    "levels too high": (IMAGE, lambda _: np.full((2, 1, 4, 6), 300), "is not in 0 .. 16"),
    "not finite": (IMAGE, lambda _: np.full((2, 1, 4, 6), np.nan), "not a finite number"),
    "an empty folder": (IMAGE, lambda folder: folder, "contains no"),
    "a bucket": (MIXED, lambda _: "s3://bucket/rows.csv", "copy it to this machine first"),
    "a folder for a table": (MIXED, lambda folder: folder, "is not a table"),
    "no such folder": (IMAGE, lambda folder: folder / "none", "^unknown source"),
    "rows of several lengths": (IMAGE, lambda _: [[1], [1, 2]], "the list is no array of images"),
    "numbers beyond any type": (WHOLE, lambda _: pd.DataFrame({"steps": [10**30]}), "the DataFrame is not a table"),
    "a type of no file": (WHOLE, lambda _: pa.table({"a": pa.nulls(1, pa.month_day_nano_interval())}), "the Table cannot be read"),
    "no table at all": (MIXED, lambda _: type("Odd", (), {"columns": ["a"]})(), "the Odd is not a table"),
    "a pickle": (IMAGE, lambda folder: pickled(folder), "refused"),
}  # fmt: skip


def pickled(folder: Path) -> Path:
    np.save(folder / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    spec, make, message = BAD[name]
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        read(spec, make(tmp_path))
    assert "\n" not in str(caught.value) and "params.yaml" not in str(caught.value) and "remint-held" not in str(caught.value)


def test_reading_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    read(WHOLE, rows.to_table(WHOLE, drawn(WHOLE)))
    assert [*tmp_path.iterdir()] == []
