"""Schemas: inferred once, copied into every snapshot; data that drifted are refused with a line for each column."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from remint.data import schema, sources, splits
from remint.data.schema import Schema
from remint.errors import DataError
from remint.records import DataSpec
from remint.settings.dataset import DatasetSettings
from remint.settings.params import write_params
from tests.unit.test_data_pictures import picture, save, tree

ROWS = 40
GENERATOR = np.random.default_rng(0)
CONTENT: dict[str, Any] = {
    "age": GENERATOR.normal(40.0, 10.0, ROWS),
    "city": [("Bonn", "Ulm")[i % 2] for i in range(ROWS)],
    "gaps": [None if i % 4 == 0 else float(i % 9) for i in range(ROWS)],
    "kind": [("a", "b")[i % 2] for i in range(ROWS)],
}
TABLE = {"source": "a.parquet", "kind": "table", "label": "kind"}


def import_dataset(
    folder: Path, content: dict[str, Any] | None = None, *, out: str = "out", **settings: Any
) -> dict[str, np.ndarray]:
    """Import once, with the schemas in ``folder``."""
    if content is not None:
        pyarrow.parquet.write_table(pa.table(content), folder / "a.parquet")
    sources.snapshot("people", DatasetSettings(**(settings or TABLE)), folder, folder / out, schemas=folder / "schemas")
    with np.load(folder / out / "data.npz", allow_pickle=False) as archive:
        return dict(archive)


def refusal(folder: Path, content: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    """Return the lines of the refusal. Files that were written before must not change."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "a.parquet"}
    with pytest.raises(DataError) as caught:
        import_dataset(folder, content, **settings)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "a.parquet"}
    assert before == after
    return str(caught.value).splitlines()


def first_line(source: str = "a.parquet") -> str:
    return f"params.yaml: datasets.people: the data do not fit schema 1, learnt from {source}:"


LAST = "repair the data; if they are correct, set datasets.people.schema_version: 2 to learn a new schema"


def test_a_schema_is_inferred_once_and_copied_into_every_snapshot(tmp_path: Path) -> None:
    import_dataset(tmp_path, CONTENT)
    kept = (tmp_path / "schemas/people-1.json").read_bytes()
    assert kept == (tmp_path / "out/schema.json").read_bytes()
    more = {name: [*values, *values[:9]] for name, values in CONTENT.items()} | {"age": GENERATOR.normal(45.0, 10.0, ROWS + 9)}
    import_dataset(tmp_path, more)
    assert kept == (tmp_path / "out/schema.json").read_bytes() == (tmp_path / "schemas/people-1.json").read_bytes()
    version = splits.prepare("people", DatasetSettings(**TABLE), tmp_path / "out", tmp_path / "prepared")
    assert version.spec.columns[0].mean == CONTENT["age"].mean()  # the standardisation of the first import is kept
    assert list((tmp_path / "schemas").iterdir()) == [tmp_path / "schemas/people-1.json"]


def changed_content(**columns: Any) -> dict[str, Any]:
    return {name: values for name, values in {**CONTENT, **columns}.items() if values is not None}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (changed_content(city=None), "column 'city' is missing"),
        (changed_content(size=[1.0, 2.0] * 20), "column 'size' is new"),
        (
            changed_content(city=["Bonn", "Köln", "Trier", "Ulm"] * 10),
            "column 'city' has 2 new values: 'Köln', 'Trier'",
        ),
        (
            changed_content(city=[0.5, 1.5] * 20),
            "column 'city' must contain categories, but contains 0.5: use whole numbers or text",
        ),
        (changed_content(age=[None, 30.0] * 20), "column 'age' has 20 missing values of 40; at the first import it had none"),
        (changed_content(city=[None, "Ulm"] * 20), "column 'city' has 20 missing values of 40; at the first import it had none"),
        (changed_content(age=["30", "unknown"] * 20), "column 'age' was numeric, now contains text such as 'unknown'"),
        (changed_content(age=[30.0, float("inf")] * 20), "column 'age' has 20 infinite values"),
        (
            changed_content(age=[30.0, 1e300] * 20),
            f"column 'age' has values up to 1e+300, too far from its mean in the schema ({CONTENT['age'].mean():.3g})",
        ),
        (
            changed_content(age=[[30.0]] * 40),
            "column 'age' has type list<element: double>, neither number nor text: flatten it into columns, or drop it",
        ),
        (changed_content(kind=["a", "c"] * 20), "label 'kind' has 1 new value: 'c'"),
        (changed_content(kind=["a", None] * 20), "label 'kind' has 20 missing values of 40; at the first import it had none"),
    ],
)
def test_each_kind_of_drift_is_named(tmp_path: Path, content: dict[str, Any], expected: str) -> None:
    import_dataset(tmp_path, CONTENT)
    assert refusal(tmp_path, content) == [first_line(), f"  {expected}", LAST]


def test_the_refusal_names_every_column(tmp_path: Path) -> None:
    import_dataset(tmp_path, CONTENT)
    content = changed_content(age=["x"] * ROWS, city=["Rom"] * ROWS, gaps=None, new=[1, 2] * 20)
    lines = refusal(tmp_path, content)
    assert [line.split("'")[1] for line in lines[1:-1]] == ["age", "city", "gaps", "new"] and lines[-1] == LAST


def test_differences_within_the_schema_are_not_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = import_dataset(tmp_path, CONTENT)
    fewer = {name: values[:8] for name, values in CONTENT.items()}
    np.testing.assert_array_equal(import_dataset(tmp_path, fewer)["x"], first["x"][:8])
    import_dataset(tmp_path, changed_content(city=["Ulm"] * ROWS, kind=["b"] * ROWS))  # some categories do not occur
    import_dataset(tmp_path, changed_content(gaps=[1.0] * ROWS))  # no missing values, and a constant column
    import_dataset(tmp_path, dict(reversed(CONTENT.items())))  # the order of the columns
    np.testing.assert_array_equal(import_dataset(tmp_path, dict(reversed(CONTENT.items())))["x"], first["x"])
    import_dataset(tmp_path, changed_content(age=(CONTENT["age"]).astype(np.float32), gaps=[3, 4] * 20))  # another type of number
    capsys.readouterr()
    import_dataset(tmp_path, changed_content(age=CONTENT["age"] * 10))  # a large change of the mean is only a notice
    assert "drift column=age" in capsys.readouterr().err


def test_a_later_csv_is_read_with_the_types_of_the_schema(tmp_path: Path) -> None:
    settings = {"source": "a.csv", "kind": "table", "label": "l"}
    (tmp_path / "a.csv").write_text("t,b,l,x\n1,true,1,1.5\nx,false,y,2.5\n1,true,y,0.5\n")
    import_dataset(tmp_path, **settings)
    (tmp_path / "a.csv").write_text("t,b,l,x\n1,True,1,1\n1,True,1,2\n")  # the remaining values look like numbers or booleans
    arrays = import_dataset(tmp_path, **settings)
    np.testing.assert_array_equal(arrays["x"], [[0, 1, 1], [0, 1, 2]])
    assert arrays["y"].tolist() == [0, 0]


def test_a_higher_schema_version_infers_a_new_schema_and_a_lower_one_finds_the_old(tmp_path: Path) -> None:
    import_dataset(tmp_path, CONTENT)
    content = changed_content(city=["Bonn", "Köln"] * 20)
    refusal(tmp_path, content)
    arrays = import_dataset(tmp_path, content, **TABLE, schema_version=2)
    assert Schema.read(tmp_path / "out/schema.json").spec.columns[1].categories == ("Bonn", "Köln") and arrays["x"][1, 1] == 1
    assert {path.name for path in (tmp_path / "schemas").iterdir()} == {"people-1.json", "people-2.json"}
    refusal(tmp_path, content)
    import_dataset(tmp_path, CONTENT)


def test_changed_settings_are_not_reported_as_changed_data(tmp_path: Path) -> None:
    """The refusal lists the settings that differ from those of the first import."""
    import_dataset(tmp_path, CONTENT)
    lines = refusal(tmp_path, **TABLE | {"label": "city"})
    assert "  column 'city' is missing" in lines and "  column 'kind' is new" in lines
    assert "  (setting label was kind, is city)" in lines and "  label 'city' has 2 new values: 'Bonn', 'Ulm'" in lines
    lines = refusal(tmp_path, **TABLE | {"drop": ["city"]})
    assert "  column 'city' is missing" in lines and "  (setting drop was not set, is ['city'])" in lines
    no_label = {key: value for key, value in TABLE.items() if key != "label"}
    lines = refusal(tmp_path, **no_label)
    assert "  labels: were present, are now absent" in lines and "  (setting label was kind, is not set)" in lines
    lines = refusal(tmp_path, source="sklearn:digits")
    assert lines == [
        first_line(),
        "  was a table, is now images",
        "  (setting source was a.parquet, is sklearn:digits)",
        "  (setting kind was table, is image)",
        "  (setting label was kind, is not set)",
        LAST,
    ]


def test_another_source_that_fits_is_the_same_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = import_dataset(tmp_path, CONTENT)
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    np.testing.assert_array_equal(import_dataset(tmp_path, **TABLE | {"source": "b.parquet"})["x"], first["x"])
    assert "schema learnt_from=a.parquet fits=b.parquet" in capsys.readouterr().err


# --- images


def images(folder: Path, **settings: Any) -> tuple[dict[str, np.ndarray], DataSpec]:
    return import_dataset(folder, source="pets", **settings), Schema.read(folder / "out/schema.json").spec


def test_drift_of_images_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "pets")
    images(tmp_path)
    resize = {"size": [8, 8]}
    lines = refusal(tmp_path, source="pets", resize=resize, channels=1)
    assert lines[1:3] == ["  channels: was 3, is now 1", "  size: was 6x5, is now 8x8"]
    assert "  (setting channels was not set, is 1)" in lines
    lines = refusal(tmp_path, source="sklearn:digits")
    assert lines[1:5] == [
        "  channels: was 3, is now 1",
        "  size: was 6x5, is now 8x8",
        "  levels: was 256, is now 17",
        "  labels: were names, are now numbers",
    ]
    pyarrow.parquet.write_table(pa.table(CONTENT), tmp_path / "a.parquet")
    assert "  was images, is now a table" in refusal(tmp_path, **TABLE)
    for index, name in enumerate(("ape", "bee", "elk", "fox")):
        save(tmp_path / f"pets/{name}/1.png", picture(index))
    assert refusal(tmp_path, source="pets") == [first_line("pets"), "  labels: 4 new: 'ape', 'bee', 'elk', ..", LAST]
    assert images(tmp_path, schema_version=2)[1].classes == 6


def test_classes_keep_their_numbers_if_one_is_absent(tmp_path: Path) -> None:
    for index, name in enumerate(("ape", "bee", "cat")):
        save(tmp_path / f"pets/{name}/{name}.png", picture(index))
    images(tmp_path)
    (tmp_path / "pets/ape/ape.png").unlink()
    arrays, spec = images(tmp_path)
    assert arrays["y"].tolist() == [1, 2] and spec.class_names == ("ape", "bee", "cat") and spec.classes == 3


def test_drift_of_numbered_labels_is_refused(tmp_path: Path) -> None:
    x_NHW = np.zeros((4, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x=x_NHW, y=np.array([0, 1, 2, 2]))
    import_dataset(tmp_path, source="a.npz")
    np.savez(tmp_path / "a.npz", x=x_NHW, y=np.array([0, 1, 1, 0]))
    assert import_dataset(tmp_path, source="a.npz")["y"].tolist() == [0, 1, 1, 0]
    np.savez(tmp_path / "a.npz", x=x_NHW, y=np.array([0, 1, 3, 0]))
    assert refusal(tmp_path, source="a.npz")[1] == "  labels: were 0 .. 2, are now up to 3"
    np.savez(tmp_path / "a.npz", x=x_NHW)
    assert refusal(tmp_path, source="a.npz")[1] == "  labels: were present, are now absent"


# --- storage of schemas


def test_a_refused_first_import_writes_no_schema(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the same value in every row"):
        import_dataset(tmp_path, changed_content(age=[1.0] * ROWS))
    assert not (tmp_path / "schemas").exists() and not (tmp_path / "out").exists()


def test_a_schema_is_never_overwritten(tmp_path: Path) -> None:
    """Many simultaneous first imports: one schema is kept, and every import gets it."""
    learnt = [
        schema.make_schema("people", DatasetSettings(source="a.npy"), DataSpec(shape=(1, 4, 4), levels=n)) for n in range(2, 18)
    ]
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda one: schema.save_schema(one, tmp_path), learnt))
    assert (
        len({one.digest for one in kept}) == 1
        and kept[0] in learnt
        and [path.name for path in tmp_path.iterdir()] == ["people-1.json"]
    )


def test_the_slower_of_two_first_imports_is_checked_against_the_schema_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_dataset(tmp_path, CONTENT)
    monkeypatch.setattr(schema, "read_schema", lambda *_: None)  # the state in which the slower one began
    np.testing.assert_array_equal(
        import_dataset(tmp_path, changed_content(city=["Ulm", "Ulm", "Bonn", "Bonn"] * 10))["x"][:, 1], [1, 1, 0, 0] * 10
    )
    assert "  column 'city' has 1 new value: 'Köln'" in refusal(tmp_path, changed_content(city=["Bonn", "Köln"] * 20))


def test_a_damaged_schema_is_named(tmp_path: Path) -> None:
    import_dataset(tmp_path, CONTENT)
    (tmp_path / "schemas/people-1.json").write_text("{")
    (line,) = refusal(tmp_path)
    assert "people-1.json is not a schema: restore it, or remove it" in line


def test_the_step_keeps_schemas_in_the_home_and_copies_them_into_its_output(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table(CONTENT), tmp_path / "a.parquet")
    write_params({"datasets": {"people": TABLE}, "pipelines": {}}, tmp_path)
    root = Path(__file__).parents[2]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{root / 'src'}:{root}", "REMINT_HOME": str(tmp_path / "home")}

    def step(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"pipelines.{name}", "people"]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    assert step("snapshot").returncode == 0 and step("prepare").returncode == 0
    kept = (tmp_path / "home/schemas/people-1.json").read_bytes()
    assert kept == (tmp_path / "outs/raw/people/schema.json").read_bytes()
    pyarrow.parquet.write_table(pa.table(changed_content(city=None)), tmp_path / "a.parquet")
    done = step("snapshot")
    assert done.returncode == 2 and done.stderr.endswith(f"error: {first_line()}\n  column 'city' is missing\n{LAST}\n")
