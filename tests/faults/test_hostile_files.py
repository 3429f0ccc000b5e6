"""Malicious arrays and tables: pickles are refused unread, and files that are small on disk do not fill the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.measured import Reader, start_reader
from tests.support.poisons import Payload

MAX_MEMORY_GROWTH = 200 << 20  # bytes


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with start_reader() as process:
        yield process


def objects(path: Path) -> np.ndarray:
    return np.array([Payload(path.parent / "ran"), 1], dtype=object)


def one_text_for_many_rows(path: Path) -> None:
    """Write a text of 1 MiB once for a million rows: a terabyte when decoded."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), pa.array(["x" * (1 << 20)]))
    pyarrow.parquet.write_table(pa.table({"t": text, "x": np.arange(1_000_000.0)}), path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "objects.npy": (lambda path: np.save(path, objects(path), allow_pickle=True), "object arrays and pickles are refused"),
    "pickle.npy": (
        lambda path: path.write_bytes(Payload(path.parent / "ran").pickle),
        "but a pickle: save it again with np.save",
    ),
    "objects.npz": (lambda path: np.savez(path, x=objects(path), allow_pickle=True), "object arrays and pickles are refused"),
    "bomb.npz": (lambda path: np.savez_compressed(path, x=np.zeros((300, 1024, 1024), np.uint8)), "as a decompression bomb does"),
    "columns.csv": (lambda path: path.write_text(",".join(f"c{i}" for i in range(100_000)) + "\n"), "columns, more than 10,000"),
    "name.csv": (lambda path: path.write_text('"a\x1b]0;x",b\n1,2\n'), "has a name that cannot be printed"),
    "text.parquet": (one_text_for_many_rows, "MiB of text: drop its longest columns"),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_refused(reader: Reader, tmp_path: Path, name: str) -> None:
    make, says = FILES[name]
    make(tmp_path / name)
    (found,) = reader("source", tmp_path / name)
    assert found.ended == "refused" and says in found.said and len(found.said.splitlines()) == 1, found
    assert found.grown < MAX_MEMORY_GROWTH, found
    assert [path.name for path in tmp_path.iterdir()] == [name]
