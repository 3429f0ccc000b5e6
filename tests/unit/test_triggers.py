"""Triggers: their settings, and the fingerprint by which a look knows that there is new data."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from remint.errors import DataError, SettingsError
from remint.promotion import new_data
from remint.promotion.new_data import Started
from remint.runtime.home import Home
from remint.settings.dataset import DatasetSettings
from remint.settings.params import read_params, validate_params, write_params
from remint.settings.triggers import TriggerSettings
from remint.stores.git import Commit
from remint.stores.s3 import bucket
from tests.support.retraining_cases import params_of, retraining
from tests.support.s3 import Proxy, Server

REPOSITORY = Path(__file__).parents[2]
NAME = "digits-flow"


def test_triggers_have_defaults_and_are_no_part_of_the_recipe() -> None:
    plain, triggered = params_of(NAME), params_of(NAME, triggers={"data_changed": {}, "drift": {}})
    found = triggered.pipelines[NAME].triggers
    assert found.data_changed is not None and found.data_changed.seconds == 900
    assert found.drift is not None and (found.drift.seconds, found.drift.rest) == (86_400, 3 * 86_400)
    assert plain.pipelines[NAME].triggers == TriggerSettings()
    assert plain.pipelines[NAME].recipe.resolved() == triggered.pipelines[NAME].recipe.resolved()


@pytest.mark.parametrize(
    ("triggers", "words"),
    [
        ({"data_change": {}}, "unknown key 'data_change': did you mean 'data_changed'?"),
        ({"drift": {"ever": "1d"}}, "triggers.drift: unknown key 'ever': did you mean 'every'?"),
        ({"data_changed": {"every": "59s"}}, "triggers.data_changed.every: expected at least 1m, not 59s"),
        ({"data_changed": {"every": "366d"}}, "triggers.data_changed.every: expected at most 365d, not 366d: new data would"),
        ({"data_changed": {"every": "often"}}, "expected a duration, such as 15m, 12h or 3d, not 'often'"),
        ({"drift": {"every": "59m"}}, "triggers.drift.every: expected at least 1h, not 59m: a check prepares the data"),
        ({"drift": {"cooldown": "366d"}}, "triggers.drift.cooldown: expected at most 365d, not 366d"),
        ({"drift": {"every": "2d", "cooldown": "1d"}}, "triggers.drift: cooldown: 1d is shorter than every, 2d: raise it"),
        ({"drift": {"every": "4d"}}, "triggers.drift: cooldown: 3d, the default, is shorter than every, 4d: raise it"),
    ],
)
def test_each_mistake_is_one_line(triggers: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        params_of(NAME, triggers=triggers)
    assert words in str(error.value) and f"pipelines.{NAME}.triggers" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "home").ensure()


def look(home: Home, source: str, **split: Any) -> str:
    params = params_of(NAME)
    settings = DatasetSettings.model_validate({"source": source, "kind": "image", "split": split})
    return new_data.fingerprint(home, params.model_copy(update={"datasets": {"digits": settings}}), NAME)


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: (data / "deep/new").write_bytes(b"n"),
        lambda data: (data / "deep/a").unlink(),
        lambda data: (data / "deep/a").rename(data / "deep/c"),
        lambda data: (data / "deep/a").write_bytes(b"longer"),
        lambda data: os.utime(data / "b", ns=(1, 1)),
    ],
)
def test_a_folder_changes_with_its_names_sizes_and_times(home: Home, change: Change) -> None:
    data = home.repository / "data"
    (data / "deep").mkdir(parents=True)
    for name in ("deep/a", "b"):
        (data / name).write_bytes(b"x")
    first = look(home, "data")
    (data / ".hidden").write_bytes(b"x")
    assert look(home, "data") == first
    change(data)
    assert look(home, "data") != first


def test_a_file_a_shipped_source_and_a_missing_one(home: Home) -> None:
    table = home.repository / "rows.npy"
    table.write_bytes(b"1")
    first = look(home, "rows.npy")
    table.write_bytes(b"12")
    assert look(home, "rows.npy") != first
    assert look(home, "sklearn:digits") == look(home, "sklearn:digits")
    with pytest.raises(DataError, match=r"^params.yaml: datasets.digits.source: there is no file or folder .*/gone: put it"):
        look(home, "gone")


def test_a_second_source_counts_too(home: Home) -> None:
    for name in ("data", "test"):
        (home.repository / name).mkdir()
        (home.repository / name / "a").write_bytes(b"x")
    first = look(home, "data", held_out="./test")
    (home.repository / "test/b").write_bytes(b"x")
    assert look(home, "data", held_out="./test") != first


def test_a_prefix_changes_with_its_listing_and_no_object_is_read(
    proxy: Proxy, s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PAGE", 4)
    name = s3.bucket({f"p/{i}": b"x" for i in range(10)})
    first = look(home, f"s3://{name}/p")
    assert proxy.listings == 1 + 3 and proxy.object_paths == [], "whether it is one object, and three pages"
    s3.put(name, "p/1", b"x")
    assert look(home, f"s3://{name}/p") == first, "the same bytes again"
    s3.put(name, "p/1", b"y")
    assert look(home, f"s3://{name}/p") != first
    with pytest.raises(DataError, match="params.yaml: datasets.digits.source: s3://.*: there are no objects") as error:
        look(home, f"s3://{name}/empty")
    assert len(str(error.value).splitlines()) == 1


def test_what_is_kept_is_read_again_and_a_damaged_file_is_none(home: Home) -> None:
    run = Started(fingerprint="f", flow_run=UUID(int=1))
    assert new_data.started(home, NAME) is None and new_data.done(home, NAME) is None
    new_data.keep_started(home, NAME, run)
    assert new_data.started(home, NAME) == run
    for damaged in (b"{", b"", b'{"fingerprint": "f", "flow_run": "r"}', b"\xff\xfe\x00"):
        (home.path / "triggers" / NAME / "started").write_bytes(damaged)
        assert new_data.started(home, NAME) is None
    (home.path / "triggers" / NAME / "started").rename(home.path / "triggers" / NAME / "done")
    assert new_data.done(home, NAME) is None
    assert [path.name for path in (home.path / "triggers" / NAME).iterdir()] == ["done"], "no temporary file is left"


def test_a_run_with_other_settings_or_uncommitted_files_leaves_the_data_new(home: Home) -> None:
    with retraining(home, params_of(NAME, triggers={"data_changed": {}}), NAME) as job:
        assert new_data.look(job) == new_data.fingerprint(home, job.params, NAME)
        assert new_data.look(replace(job, overrides={"training.steps": "1"})) is None
        assert new_data.look(replace(job, commit=Commit("c" * 40, dirty=True))) is None
        assert new_data.look(replace(job, params=params_of(NAME))) is None, "no trigger"


def test_settings_are_those_of_the_branch(tmp_path: Path, home: Home) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    content = read_params(REPOSITORY)
    write_params(content, tmp_path)
    git("init", "-q", "-b", "main")
    git("add", "params.yaml")
    git("commit", "-qm", "first")
    content["datasets"]["digits"]["source"] = "data"
    write_params(content, tmp_path)
    assert new_data.params_of(home, "main").datasets["digits"].source == "sklearn:digits"
    assert new_data.params_of(home, None) == validate_params(content)
