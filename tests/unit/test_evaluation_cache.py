"""Cache of the features of real examples below REMINT_HOME: complete, verified, and used only for the same inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from remint.data.arrays import Dataset
from remint.errors import StorageError
from remint.evaluation.context import EvaluationContext
from remint.records import DatasetVersion
from tests.support.evaluation_cases import IdentityExtractor, context_of, make_table, normal_rows
from tests.support.full_disk import full_disk


@pytest.fixture
def dataset() -> Dataset:
    return make_table(normal_rows(30, 2, 0), normal_rows(20, 2, 1))


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REMINT_HOME", str(tmp_path))
    return tmp_path / "features"


def fresh_context(dataset: Dataset, **extractor: str) -> tuple[EvaluationContext, list[int]]:
    """Return a context as in another process, and the list of sizes that its extractor will record."""
    itself = IdentityExtractor(**extractor)
    return context_of(dataset, itself), itself.seen


def test_features_are_computed_once(dataset: Dataset, cache_folder: Path) -> None:
    context, seen = fresh_context(dataset)
    real_ND, train_ND = context.real("domain"), context.training("domain", 0)
    assert seen == [20, 20] and len(list(cache_folder.iterdir())) == 2
    again, unseen = fresh_context(dataset)
    np.testing.assert_array_equal(again.real("domain"), real_ND)
    np.testing.assert_array_equal(again.training("domain", 0), train_ND)
    assert unseen == [] and real_ND.dtype == np.float64


def test_without_a_home_nothing_is_cached(dataset: Dataset, tmp_path: Path) -> None:
    for _ in range(2):
        context, seen = fresh_context(dataset)
        context.real("domain")
        assert seen == [20]
    assert not list(tmp_path.iterdir())


def test_a_change_of_data_or_extractor_computes_features_again(dataset: Dataset, cache_folder: Path) -> None:
    fresh_context(dataset)[0].real("domain")
    other_data = replace(dataset, version=DatasetVersion.model_validate({**dataset.version.to_json(), "raw_sha256": "other"}))
    for context, seen in (
        fresh_context(dataset, sha256="1" * 64),
        fresh_context(dataset, resize="bilinear 299"),
        fresh_context(other_data),
    ):
        context.real("domain")
        assert seen == [20]
    context, seen = fresh_context(dataset)
    replace(context, settings=context.settings.model_copy(update={"samples": 19})).real("domain")
    context.training("domain", 0)
    context.training("domain", 1)
    assert seen == [19, 20, 20] and len(list(cache_folder.iterdir())) == 7


@pytest.mark.parametrize("place", [0, 90, -1])
def test_a_damaged_file_is_computed_again(dataset: Dataset, cache_folder: Path, place: int) -> None:
    real_ND = fresh_context(dataset)[0].real("domain")
    (path,) = cache_folder.iterdir()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    context, seen = fresh_context(dataset)
    np.testing.assert_array_equal(context.real("domain"), real_ND)
    assert seen == [20] and list(cache_folder.iterdir()) == [path]
    context, seen = fresh_context(dataset)
    context.real("domain")
    assert seen == []


def test_a_truncated_file_is_computed_again_and_an_unfinished_file_is_not_read(dataset: Dataset, cache_folder: Path) -> None:
    fresh_context(dataset)[0].real("domain")
    (path,) = cache_folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert len(fresh_context(dataset)[0].real("domain")) == 20 and path.read_bytes() == whole
    path.rename(cache_folder / f".{path.stem.partition('-')[0]}.1.tmp")
    context, seen = fresh_context(dataset)
    context.real("domain")
    assert seen == [20]


def test_a_full_disk_is_one_line_and_leaves_no_file(dataset: Dataset, cache_folder: Path) -> None:
    context, _ = fresh_context(dataset)
    with full_disk(100), pytest.raises(StorageError, match=r"^no room to write .*features \(File too large\): all of it can be"):
        context.real("domain")
    assert list(cache_folder.iterdir()) == []
