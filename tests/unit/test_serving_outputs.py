"""Names that no result can be written to, and a full disk: one line of each command, and nothing is left behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest

from remint.data import rows
from remint.errors import RemintError, SettingsError, StorageError
from remint.serving import files
from remint.serving.anomalies import scoring
from remint.serving.exporting.export import export
from remint.serving.imputation import files as impute_files
from remint.serving.model import ServedModel
from tests.support.calibrated_cases import calibrated_model
from tests.support.full_disk import full_disk
from tests.support.models_cases import CASES, examples

PICTURES, TABLE = CASES["flow-affine"], CASES["vae-mixture"]


def served(name: str) -> ServedModel:
    return ServedModel(CASES[name].build().float().requires_grad_(False), CASES[name].spec, ref="m/1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    np.save(folder / "five.npy", examples(PICTURES.spec, 5).numpy())
    np.save(folder / "one.npy", examples(PICTURES.spec, 1).numpy())
    pyarrow.csv.write_csv(rows.to_table(TABLE.spec, examples(TABLE.spec, 5).numpy()), folder / "rows.csv")
    return {path.name: str(path) for path in folder.iterdir()}


Act = Callable[[dict[str, str], Path], Any]
ACTS: dict[str, tuple[str, Act]] = {  # and the ending of the name
    "sample": (".npz", lambda data, path: files.sample(served("flow-affine"), 40, path)),
    "sample to a folder": ("", lambda data, path: files.sample(served("flow-affine"), 40, path)),
    "encode": (".csv", lambda data, path: files.encode(served("flow-affine"), data["five.npy"], path)),
    "reconstruct": (".npy", lambda data, path: files.reconstruct(served("flow-affine"), data["five.npy"], path)),
    "interpolate": (".png", lambda data, path: files.interpolate(served("flow-affine"), data["one.npy"], data["one.npy"], path)),
    "score": (".parquet", lambda data, path: scoring.write(calibrated_model(PICTURES), data["five.npy"], path, 0.05, None)),
    "impute": (".csv", lambda data, path: impute_files.impute(served("vae-mixture"), data["rows.csv"], path, draws=1)),
    "export": (".onnx", lambda data, path: export(served("flow-affine"), path)),
}


def nothing(folder: Path, suffix: str) -> Path:
    return Path()


def device(folder: Path, suffix: str) -> Path:
    return Path("/dev/full")


def link_to_a_device(folder: Path, suffix: str) -> Path:
    (folder / f"x{suffix}").symlink_to("/dev/full")
    return folder / f"x{suffix}"


def pipe(folder: Path, suffix: str) -> Path:
    os.mkfifo(folder / f"x{suffix}")
    return folder / f"x{suffix}"


def the_other_kind(folder: Path, suffix: str) -> Path:
    path = folder / f"x{suffix}"
    path.mkdir() if suffix else path.write_text("theirs")
    return path


@pytest.mark.parametrize("odd", [nothing, device, link_to_a_device, pipe, the_other_kind])
@pytest.mark.parametrize("name", ACTS)
def test_a_name_that_no_result_can_have_is_refused_in_one_line(
    name: str, odd: Callable[[Path, str], Path], data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suffix, act = ACTS[name]
    path = odd(tmp_path, suffix)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match="^-o ") as caught:
        act(data, path)
    assert caught.value.exit_status == 2 and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before and stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("name", sorted({*ACTS} - {"export"}))  # test_export.py has it: an exporter takes seconds
def test_a_full_disk_is_one_line_and_leaves_nothing(name: str, data: dict[str, str], tmp_path: Path) -> None:
    suffix, act = ACTS[name]
    with full_disk(60), pytest.raises(StorageError, match=r"^no room to write .*: nothing was written") as caught:
        act(data, tmp_path / f"x{suffix}")
    assert caught.value.exit_status == 1 and "\n" not in str(caught.value) and not [*tmp_path.iterdir()]


CLASSES: dict[str, tuple[str, str]] = {  # model, and what is said
    "conditional": ("vae-residual", "unknown class 'cat': m/1 knows 0, 1, 2"),
    "unconditional": ("vae", "this model was not trained with model.conditional: true: remove the class"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_that_the_model_does_not_know_is_one_line_with_those_that_it_knows(name: str, tmp_path: Path) -> None:
    case, said = CLASSES[name]
    one, model = tmp_path / "one.npy", served(case)
    np.save(one, examples(model.spec, 1).numpy())
    acts: dict[str, Callable[[Path], Any]] = {
        "sample": lambda path: files.sample(model, 4, path, of_class="cat"),
        "encode": lambda path: files.encode(model, str(one), path, "cat"),
        "interpolate": lambda path: files.interpolate(model, str(one), str(one), path, of_class="cat"),
        "impute": lambda path: impute_files.impute(model, str(one), path, of_class="cat", mask=str(one)),
    }
    for act, run in acts.items():
        with pytest.raises(RemintError) as caught:
            run(tmp_path / "x.npy")
        assert str(caught.value) == said and caught.value.exit_status == 2, act
    assert [*tmp_path.iterdir()] == [one]
