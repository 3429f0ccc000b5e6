"""Small inputs that people brought (tests/cases): what each becomes, from the file to the splits and their leakage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from remint.data import arrays, csv_tables, parquet_tables, placeholders, sources, splits
from remint.data.arrays import Dataset
from remint.data.schema import SCHEMA, Schema
from remint.errors import DataError
from remint.evaluation import leakage
from remint.settings.dataset import DatasetSettings

CASES = Path(__file__).parents[1] / "cases"


def prepared(file: Path, folder: Path, **settings: Any) -> Dataset:
    """Import and divide a table as the first two steps do it."""
    given = DatasetSettings(source=str(file), kind="table", **settings)
    sources.snapshot("case", given, folder, folder / "raw", schemas=folder / "schemas")
    splits.prepare("case", given, folder / "raw", folder / "prepared")
    return arrays.load(folder / "prepared")


@pytest.mark.parametrize("name", ["one_column", "sales", "few_distinct_rows", "two_answers"])
def test_honest_rows_are_no_leakage_and_shares_are_those_that_were_asked(name: str, tmp_path: Path) -> None:
    dataset = prepared(CASES / f"{name}.csv", tmp_path)
    total = sum(dataset.version.counts.values())
    for share, split in ((0.7, "train"), (0.1, "validation"), (0.2, "held_out")):
        assert abs(dataset.version.counts[split] / total - share) < 3.5 * (share * (1 - share) / total) ** 0.5, split
    found = leakage.find(dataset.held_out, dataset.train, dataset.spec).leakage
    assert found.share <= 0.01, found


@pytest.mark.parametrize(("name", "rule"), [("one_column", "content"), ("sales", "content"), ("two_answers", "occurrence")])
def test_the_rule_of_the_split_is_chosen_once_and_changed_by_a_setting_only(name: str, rule: str, tmp_path: Path) -> None:
    first = prepared(CASES / f"{name}.csv", tmp_path)
    assert Schema.read(tmp_path / "raw" / SCHEMA).split_by == rule
    assert (first.train.id_N is not None) == (rule == "occurrence")
    lines = (CASES / f"{name}.csv").read_text().splitlines()
    for count in (len(lines) // 2, len(lines)):  # the latter rows of the file, then all of them, in another order
        file = tmp_path / "other.csv"
        file.write_text("\n".join([lines[0], *reversed(lines[-count + 1 :])]) + "\n")
        again = prepared(file, tmp_path)
        assert Schema.read(tmp_path / "raw" / SCHEMA).split_by == rule
    assert sorted(map(bytes, np.asarray(again.held_out.x_NX))) == sorted(map(bytes, np.asarray(first.held_out.x_NX)))
    if rule == "content":
        other = prepared(CASES / f"{name}.csv", tmp_path, split={"by": "occurrence"})
        assert other.version.split["by"] == "occurrence" and other.held_out.id_N is not None
    else:  # of four different rows
        with pytest.raises(DataError, match=r"none of the 5000 examples falls into .*: set split\.by: occurrence"):
            prepared(CASES / f"{name}.csv", tmp_path, split={"by": "content"})


def test_a_model_that_was_trained_on_held_out_occurrences_is_found(tmp_path: Path) -> None:
    here = prepared(CASES / "two_answers.csv", tmp_path / "a")
    smaller = prepared(CASES / "two_answers.csv", tmp_path / "b", split={"held_out": 0.1})
    assert leakage.find(smaller.held_out, here.train, here.spec).leakage.exact == 0, "a part of the same held-out rows"
    reseeded = prepared(CASES / "two_answers.csv", tmp_path / "c", split={"seed": 1})
    found = leakage.find(here.held_out, reseeded.train, here.spec).leakage
    assert found.share == found.exact / found.checked and abs(found.share - 0.7) < 0.06, "held out here, trained on there"


def test_a_class_with_few_held_out_examples_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(splits, "emit", lambda event, **fields: events.append({"event": event, **fields}))
    rows = [f"{x:.6f},{'rare' if n % 100 == 0 else 'usual'}" for n, x in enumerate(np.random.default_rng(0).normal(size=400))]
    (tmp_path / "t.csv").write_text("\n".join(["x,label", *rows]) + "\n")
    dataset = prepared(tmp_path / "t.csv", tmp_path, label="label")
    count = int((np.asarray(dataset.held_out.y_N) == dataset.spec.class_names.index("rare")).sum())
    assert count < 5 and events == [{"event": "few_held_out", "label": "rare", "count": count}]


DECISIONS: dict[str, tuple[dict[str, Any], list[str], dict[str, str]]] = {  # settings, columns (c: with categories), decisions
    "sampled_frame.parquet": ({}, ["height", "weight", "colour c"], {"__index_level_0__": "left out: the index of the saved frame, and no measurement"}),
    "resaved_frame.csv": ({}, ["height", "weight", "colour c"], {"Unnamed: 0": "left out: the index of the saved frame, and no measurement"}),
    "category_of_numbers.parquet": ({"label": "flag"}, ["store c", "weight", "grade c"], {"store": "a category, as the file says", "grade": "a category, as the file says"}),
    "version_numbers.csv": ({"categorical": ["firmware"]}, ["firmware c", "weight"], {}),
    "semicolons.csv": ({}, ["height", "weight", "colour c"], {}),
    "tabs.csv": ({}, ["height", "weight", "colour c"], {}),
    "placeholders.csv": ({}, ["charge", "weight", "colour c"], {"charge": "missing where a cell holds - (setting placeholders)"}),
}  # fmt: skip


@pytest.mark.parametrize("name", DECISIONS)
def test_columns_are_learnt_as_what_they_are(name: str, tmp_path: Path) -> None:
    settings, expected, decided = DECISIONS[name]
    dataset = prepared(CASES / name, tmp_path, **settings)
    assert [column.name + " c" * bool(column.categories) for column in dataset.spec.columns] == expected
    assert Schema.read(tmp_path / "raw" / SCHEMA).decisions == decided
    again = prepared(CASES / name, tmp_path, **settings)  # by the schema
    assert again.version.digest == dataset.version.digest


def table(folder: Path, suffix: str, **columns: Any) -> Path:
    """Write columns as a CSV file, or as Parquet with the types that they have."""
    content = pa.table(columns)
    if suffix == ".parquet":
        pq.write_table(content, folder / "t.parquet")
    else:
        pa.csv.write_csv(
            pa.table({key: column.cast(pa.string()) for key, column in zip(columns, content.columns, strict=True)}),
            folder / "t.csv",
        )
    return folder / f"t{suffix}"


X_N = np.random.default_rng(0).normal(size=210)
OVERRIDES: dict[str, tuple[str, list[Any], str, dict[str, Any]]] = {  # file, values, the decision or refusal, the setting
    "index": (".csv", list(range(210)), "left out: the index", {"numeric": ["c"]}),
    "index of Parquet": (".parquet", list(range(210)), "left out: the index", {"numeric": ["c"]}),
    "category of Parquet": (".parquet", pa.array(["a", "b", "c"] * 70).dictionary_encode(), "a category, as the file says", {"drop": ["c"]}),
    "codes": (".csv", ["007", "012", "100"] * 70, "codes with leading zeros", {"numeric": ["c"]}),
    "codes of Parquet": (".parquet", pa.array(["007", "012", "100"] * 70, pa.large_string()), "codes with leading zeros", {"numeric": ["c"]}),
    "hexadecimal codes": (".csv", ["0x1F", "0x2A", "0x3B"] * 70, "codes with leading zeros", {"drop": ["c"]}),
    "numbers as text": (".parquet", ["7", "12", "100"] * 70, "the file holds its numbers as text", {"numeric": ["c"]}),
    "row numbers in any order": (".csv", np.random.default_rng(0).permutation(210), "occurs once: drop it if it numbers", {"drop": ["c"]}),
    "prices": (".csv", ["$5", "$7", "$1,000"] * 70, "numbers written as", {"numeric": ["c"]}),
    "versions": (".csv", ["1.2.3", "1.3.1", "2.0.0"] * 70, "dates such as", {"categorical": ["c"]}),
    "dates": (".csv", ["2024-01-31", "2024-02-29", "2024-03-31"] * 70, "dates or times", {"numeric": ["c"]}),
    "dates as categories": (".csv", ["2024-01-31", "2024-02-29", "2024-03-31"] * 70, "dates or times", {"categorical": ["c"]}),
    "placeholders": (".csv", ["a", "b", "None", "-", "b", "a"] * 35, "missing where a cell holds None, -", {"placeholders": []}),
    "placeholders of Parquet": (".parquet", ["a", "b", "-"] * 70, "missing where a cell holds -", {"placeholders": ["b"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
def test_each_decision_has_its_reason_and_a_setting_overrides_it(name: str, tmp_path: Path) -> None:
    suffix, values, expected, settings = OVERRIDES[name]
    key = ("__index_level_0__" if suffix == ".parquet" else "Unnamed: 0.1") if "index" in name else "c"
    file = table(tmp_path, suffix, **{"x": X_N, key: values})
    try:
        prepared(file, tmp_path / "first")
        said = Schema.read(tmp_path / "first/raw" / SCHEMA).decisions[key]
    except DataError as error:
        said = str(error)
    assert expected in said
    settings = {each: [key if word == "c" else word for word in words] for each, words in settings.items()}
    spec = prepared(file, tmp_path / "second", **settings).spec
    assert expected not in str(Schema.read(tmp_path / "second/raw" / SCHEMA).decisions)
    found = {column.name: column for column in spec.columns}.get(key)
    if "placeholders" in settings:
        kept = {word for word in values if word not in settings["placeholders"]}
        assert found is not None and set(found.categories) == kept and found.missing == bool(settings["placeholders"])
    else:
        assert (found is None) == ("drop" in settings) and (found is None or found.numeric == ("numeric" in settings))


def test_a_category_of_whole_numbers_is_read_as_numbers_if_a_setting_says_so(tmp_path: Path) -> None:
    spec = prepared(CASES / "category_of_numbers.parquet", tmp_path, label="flag", numeric=["grade"]).spec
    assert [column.numeric for column in spec.columns] == [False, True, True]


def test_whole_numbers_stay_whole_where_a_setting_reads_them_from_text(tmp_path: Path) -> None:
    for values, whole in ((["$1,234", "7", "$9"], True), (["$1,234.50", "7", "$9"], False), (["007", "08", "9"], True)):
        file = table(tmp_path, ".csv", c=values * 70, x=X_N)
        column = prepared(file, tmp_path / values[0], numeric=["c"]).spec.columns[0]
        assert column.numeric and column.whole == whole


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_missing_value_is_one_by_the_same_rule_in_text_and_in_numbers(suffix: str, tmp_path: Path) -> None:
    cells = [*placeholders.PLACEHOLDERS, ""]
    colours = [*(["red", "blue"] * 105), *cells]
    if suffix == ".csv":
        file = table(tmp_path, suffix, x=[*(f"{x:.4f}" for x in X_N), *cells[::-1]], colour=colours)
    else:  # whose numbers are no text
        file = table(tmp_path, suffix, x=[*X_N, *(None for _ in cells)], colour=colours)
    dataset = prepared(file, tmp_path)
    assert all(column.missing for column in dataset.spec.columns) and dataset.spec.columns[1].categories == ("blue", "red")
    assert dataset.spec.columns[1].absent == dataset.spec.columns[0].absent == len(cells) / len(colours)
    decisions = Schema.read(tmp_path / "raw" / SCHEMA).decisions
    said = f"missing where a cell holds {', '.join(placeholders.PLACEHOLDERS)} (setting placeholders)"
    assert decisions == ({"colour": said} if suffix == ".parquet" else {"x": said, "colour": said})
    assert prepared(file, tmp_path).version.digest == dataset.version.digest, "by the schema"


def test_placeholders_are_looked_for_without_repeating_long_texts(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2] * 10_000), pa.array(["x" * 300_000, "y", "-"]))
    pq.write_table(pa.table({"x": texts}), tmp_path / "t.parquet")
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DataError, match=r"t\.parquet holds more than 2,048 MiB of text"):
        prepared(tmp_path / "t.parquet", tmp_path)
    assert pa.default_memory_pool().max_memory() < max(before, 1 << 28) + 1


def test_bytes_are_no_text_and_have_no_placeholders(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": X_N, "y": pa.array([b"\xff", b"-"] * 105)}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'y' has type binary, neither number nor text"):
        prepared(tmp_path / "t.parquet", tmp_path)
    broken = pa.StringArray.from_buffers(210, pa.py_buffer(np.arange(211, dtype=np.int32)), pa.py_buffer(b"\xff-" * 105))
    pq.write_table(pa.table({"x": X_N, "y": broken}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'y' contains text that is not UTF-8"):
        prepared(tmp_path / "t.parquet", tmp_path)


def test_numbers_in_string_views_are_text_too(tmp_path: Path) -> None:
    file = table(tmp_path, ".parquet", x=X_N, y=pa.array(["07", "12", "-"] * 70, pa.string_view()))
    column = prepared(file, tmp_path).spec.columns[1]
    assert column.categories == ("07", "12") and column.missing
    assert "codes with leading zeros" in Schema.read(tmp_path / "raw" / SCHEMA).decisions["y"]


def test_placeholders_of_a_large_table_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".csv", ".parquet"):
        file = table(tmp_path, suffix, x=X_N, colour=["red", "-", "blue"] * 70)
        small = prepared(file, tmp_path / "small")
        monkeypatch.setattr(csv_tables, "WIDENS", 1 << 30)
        monkeypatch.setattr(parquet_tables, "SHARE", 1 << 30)
        assert prepared(file, tmp_path / "large").version == small.version
        first, second = (Schema.read(tmp_path / name / "raw" / SCHEMA) for name in ("small", "large"))
        assert first == second and first.decisions


@pytest.mark.parametrize(
    ("cells", "settings", "expected"),
    [
        (["02139", "00501", "10001"], {}, "a category: codes with leading zeros, not numbers"),
        (["$1,234.50", "$99.00", "$5.25"], {}, r"numbers written as '\$1,234.50', .*: add it to numeric, or to categorical"),
        (["12.5%", "7%", "99%"], {}, "numbers written as .*: add it to numeric"),
        (["1,234", "12", "5,678,901"], {"numeric": ["x"]}, ""),
        (["$1,234.50", "$99.00", "$5.25"], {"numeric": ["x"]}, ""),
        (
            ["$1,234.50", "cheap", "$5.25"],
            {"numeric": ["x"]},
            "datasets.case.numeric: .* column 'x' holds .*, which is not a number",
        ),
    ],
)
def test_numbers_with_marks_and_codes_are_said(cells: list[str], settings: dict[str, Any], expected: str, tmp_path: Path) -> None:
    rows = [f'"{cells[n % 3]}",{x:.4f}' for n, x in enumerate(np.random.default_rng(0).normal(size=300))]
    (tmp_path / "t.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    if "categor" in expected and "leading" in expected:
        dataset = prepared(tmp_path / "t.csv", tmp_path)
        assert dataset.spec.columns[0].categories == ("00501", "02139", "10001")
        assert Schema.read(tmp_path / "raw" / SCHEMA).decisions == {"x": expected}
    elif expected:
        with pytest.raises(DataError, match=expected):
            prepared(tmp_path / "t.csv", tmp_path, **settings)
    else:
        column = prepared(tmp_path / "t.csv", tmp_path, **settings).spec.columns[0]
        values = [float(cell.strip("$").replace(",", "")) for cell in cells]
        assert column.numeric and column.mean == pytest.approx(np.mean(values))


def test_other_encodings_are_read_or_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"latin1\.csv is not UTF-8: save it as UTF-8 \(iconv -f latin1 -t utf-8 latin1\.csv > new\.csv\)"
    ):
        prepared(CASES / "latin1.csv", tmp_path)
    text = (CASES / "tabs.csv").read_text()
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        assert [column.name for column in prepared(tmp_path / "t.csv", tmp_path / encoding).spec.columns] == [
            "height",
            "weight",
            "colour",
        ]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_an_encoding_with_zero_bytes_is_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes((CASES / "tabs.csv").read_text().encode(encoding))
    with pytest.raises(DataError, match=r"t\.csv holds zero bytes, as UTF-16 and UTF-32 do: save it as UTF-8"):
        prepared(tmp_path / "t.csv", tmp_path)


def test_the_separator_is_the_one_that_all_lines_have(tmp_path: Path) -> None:
    rows = (CASES / "semicolons.csv").read_text().splitlines()
    for header in ("height, in m;weight;colour", '"a, b | c";weight;colour', "height|m;weight|kg;colour"):
        (tmp_path / "t.csv").write_text("\n".join([header, *rows[1:]]) + "\n")
        names = [column.name for column in prepared(tmp_path / "t.csv", tmp_path / header[:8]).spec.columns]
        assert names == header.replace('"', "").split(";")


def test_spaces_between_columns_are_named(tmp_path: Path) -> None:
    rows = [f"{x:.4f} {'red' if n % 2 else 'blue'}" for n, x in enumerate(X_N)]
    (tmp_path / "t.csv").write_text("\n".join(["height colour", *rows]) + "\n")
    with pytest.raises(DataError, match=r"t\.csv seems to have spaces between its columns: save it with commas"):
        prepared(tmp_path / "t.csv", tmp_path)
    (tmp_path / "t.csv").write_text("\n".join(["a height", *(f"{x:.4f}" for x in X_N)]) + "\n")
    assert prepared(tmp_path / "t.csv", tmp_path).spec.columns[0].name == "a height"


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"index_columns": 3}', b'{"columns": [7]}', b'{"columns": {"name": "x"}}', b"\xff"]
)
def test_invalid_metadata_of_pandas_decides_nothing(metadata: bytes, tmp_path: Path) -> None:
    x_N = np.random.default_rng(0).normal(size=200)
    table = pa.table({"x": x_N, "y": x_N[::-1]}).replace_schema_metadata({b"pandas": metadata})
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = prepared(tmp_path / "t.parquet", tmp_path)
    assert [column.name for column in dataset.spec.columns] == ["x", "y"] and all(
        column.numeric for column in dataset.spec.columns
    )


def test_a_column_of_the_schema_stays_what_it_was_learnt_as(tmp_path: Path) -> None:
    """Also if later data, or a later remint, would decide otherwise about it."""
    y_N = np.random.default_rng(0).normal(size=200)

    def write(codes: list[str], index: list[int], answers: list[str]) -> Dataset:
        rows = [f"{code},{place},{y:.4f},{answer}" for code, place, y, answer in zip(codes, index, y_N, answers, strict=True)]
        (tmp_path / "t.csv").write_text("\n".join(["code,index,y,answer", *rows]) + "\n")
        return prepared(tmp_path / "t.csv", tmp_path, label="answer")

    first = write([str(100 + n % 7) for n in range(200)], [n // 2 for n in range(200)], ["yes", "no"] * 100)
    second = write([f"{100 + n % 7:05}" for n in range(200)], list(range(200)), ["yes", "no"] * 100)
    assert second.spec == first.spec and [column.name for column in first.spec.columns] == ["code", "index", "y"]


def test_a_class_of_the_schema_is_not_a_missing_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{y:.4f},{'-' if n % 2 else 'good'}" for n, y in enumerate(np.random.default_rng(0).normal(size=200))]
    (tmp_path / "t.csv").write_text("\n".join(["y,label", *rows]) + "\n")
    with monkeypatch.context() as before:  # of a remint that had no such rule
        before.setattr(placeholders, "PLACEHOLDERS", ())
        first = prepared(tmp_path / "t.csv", tmp_path, label="label")
    assert first.spec.class_names == ("-", "good") and prepared(tmp_path / "t.csv", tmp_path, label="label").spec == first.spec


def test_pictures_of_12_bits_keep_their_levels(tmp_path: Path) -> None:
    sources.snapshot("case", DatasetSettings(source=str(CASES / "twelve_bit")), tmp_path, tmp_path / "raw")
    schema = Schema.read(tmp_path / "raw" / SCHEMA)
    with np.load(tmp_path / "raw/data.npz") as archive:
        assert len(np.unique(archive["x"])) > 200
    assert schema.spec.bits == 12 and "read as 12 bits, divided by 16" in schema.decisions["values"]


def test_every_picture_of_a_folder_is_read(tmp_path: Path) -> None:
    sources.snapshot("case", DatasetSettings(source=str(CASES / "some_jfif")), tmp_path, tmp_path / "raw")
    with np.load(tmp_path / "raw/data.npz") as archive:
        assert len(archive["x"]) == len(list((CASES / "some_jfif").iterdir()))
