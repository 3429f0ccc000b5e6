"""Files whose name says one format and whose content is another: each is named as what it is, with the remedy."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from remint.cli import new
from remint.data import formats, sources
from remint.errors import DataError
from remint.settings.dataset import DatasetSettings
from tests.unit.test_data_idx import write as write_idx
from tests.unit.test_data_pictures import encode, picture, tree

Image = pytest.importorskip("PIL.Image")
ROWS = "x,y\n" + "".join(f"{x:.4f},{x * x:.4f}\n" for x in np.random.default_rng(0).normal(size=40))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return valid content of each kind."""
    folder = tmp_path_factory.mktemp("files")
    tree(folder / "pets")
    pyarrow.parquet.write_table(pa.table({"x": [1.5, 2.5]}), folder / "a.parquet")
    np.save(folder / "a.npy", np.zeros((3, 4, 4), np.uint8))
    np.savez(folder / "a.npz", x=np.zeros((3, 4, 4), np.uint8))
    for name, member in (("a.zip", "pets/cat/0.png"), ("a.xlsx", "[Content_Types].xml")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.write(folder / "pets/cat/0.png", member)
    for name in ("a.tar", "a.tar.gz"):
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as out:
            out.add(folder / "pets", "PAR1")  # a tar begins with a name
    return {
        **{kind: (folder / f"a.{kind}").read_bytes() for kind in ("parquet", "npy", "npz", "zip", "xlsx", "tar", "tar.gz")},
        "csv": ROWS.encode(),
        "html": b"\n<!doctype HTML><html><body>404 Not Found</body></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
        "dvc": b"outs:\n- md5: 0123\n  path: a.csv\n",
        "png": encode(Image.fromarray(picture(0))),
        "pickle": b"\x80\x04\x95\x10\0\0\0",
        "json": b'[{"x": 1, "y": 2}]',
        "pt": b"PK\x03\x04" + bytes(26) + b"model/data.pkl",
        "hdf5": b"\x89HDF\r\n\x1a\n",
        "gz": gzip.compress(ROWS.encode()),
    }


EXPECTED = {  # by the end of the name and by the content
    ("csv", "parquet"): "is not a CSV table, but a Parquet table: rename it to a.parquet",
    ("csv", "zip"): "is not a CSV table, but a zip archive: rename it to a.zip",
    ("csv", "xlsx"): "is not a CSV table, but an Excel workbook: save it as CSV or Parquet",
    ("csv", "html"): "is not a CSV table, but an HTML page: it may be an error page that was saved in place of the data: fetch",
    ("csv", "lfs"): "is not a CSV table, but a pointer of Git LFS: fetch the content (git lfs pull)",
    ("csv", "dvc"): "is not a CSV table, but a pointer of DVC: fetch the content (dvc pull a.csv)",
    ("csv", "gz"): "is not a CSV table, but a gzipped file: unpack it (gunzip)",
    ("csv", "png"): "is not a CSV table, but a PNG image: put the images into a folder",
    ("csv", "json"): "is not a CSV table, but JSON: save it as CSV or Parquet",
    ("npz", "pt"): "is not a NumPy .npz file, but a PyTorch file: save its arrays with np.savez",
    ("parquet", "csv"): "is not a Parquet table, but text: if it is a table, rename it to a.csv",
    ("parquet", "hdf5"): "is not a Parquet table, but an HDF5 file: save its arrays as .npz, or its table as Parquet",
    ("npy", "npz"): "is not a NumPy .npy file, but a NumPy .npz file: rename it to a.npz",
    ("npz", "npy"): "is not a NumPy .npz file, but a NumPy .npy file: rename it to a.npy",
    ("npy", "pickle"): "is not a NumPy .npy file, but a pickle: save it again with np.save",
    (
        "zip",
        "tar.gz",
    ): "is not a zip archive, but a gzipped file: unpack it (gunzip), or if it is an archive, rename it to a.tar.gz",
    ("tar", "tar.gz"): "rename it to a.tar.gz",
    ("tar.gz", "tar"): "is not a gzipped file, but a tar archive: rename it to a.tar",
    ("tar", "zip"): "is not a tar archive, but a zip archive: rename it to a.zip",
    ("xlsx", "xlsx"): "is an Excel workbook: save it as CSV or Parquet",
    ("tsv", "csv"): "is text: if it is a table, rename it to a.csv",
    ("png", "png"): "is a PNG image: put the images into a folder, and name the folder",
}


@pytest.mark.parametrize(("suffix", "kind"), EXPECTED)
def test_content_of_another_format_is_named_with_the_remedy(
    tmp_path: Path, files: dict[str, bytes], suffix: str, kind: str
) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(files[kind])
    settings = DatasetSettings(source=f"a.{suffix}", kind="table" if suffix in ("csv", "parquet", "xlsx", "tsv") else "image")
    with pytest.raises(DataError) as caught:
        sources.snapshot("mine", settings, tmp_path, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("params.yaml: datasets.mine.source: ") and EXPECTED[suffix, kind] in message and "\n" not in message


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npy", "npz", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("upper", [False, True])
def test_content_of_the_format_that_the_name_says_is_read(
    tmp_path: Path, files: dict[str, bytes], suffix: str, upper: bool
) -> None:
    name = f"A.{suffix}".upper() if upper else f"a.{suffix}"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(files[suffix])
    kind = "table" if suffix in ("csv", "parquet") else "image"
    for source in (f"data/{name}", "data"):  # the file, and the folder that holds nothing else
        sources.snapshot("mine", DatasetSettings(source=source, kind=kind), tmp_path, tmp_path / "out")
    assert new._dataset(tmp_path, "mine", f"data/{name}", None)["kind"] == kind


@pytest.mark.parametrize("header", ["PAR1,x", "ARROW1,x", "BMI,weight", "id;outs", "html,<html", "MM,II*"])
def test_a_csv_whose_header_resembles_a_signature_is_read(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.csv").write_text(header + "\n" + ROWS.partition("\n")[2])
    formats.check_name(tmp_path / "a.csv")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_by_their_content(tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    name = "train-images-idx3-ubyte" + ("" if packed else ".gz")
    x_NHW = np.random.default_rng(0).integers(256, size=(4, 6, 5), dtype=np.uint8)
    write_idx(tmp_path / "mnist/TRAIN-images-IDX3-ubyte.gz", x_NHW)
    packed_bytes = (tmp_path / "mnist/TRAIN-images-IDX3-ubyte.gz").read_bytes()
    (tmp_path / "mnist/TRAIN-images-IDX3-ubyte.gz").unlink()
    (tmp_path / "mnist" / name).write_bytes(packed_bytes if packed else gzip.decompress(packed_bytes))
    sources.snapshot("mine", DatasetSettings(source="mnist"), tmp_path, tmp_path / "out")
    with np.load(tmp_path / "out/data.npz") as archive:
        np.testing.assert_array_equal(archive["x"][:, 0], x_NHW)
    assert f"misnamed files=1 first={name}" in capsys.readouterr().err
