"""Addresses of files below any folder: each vendor reads the file that was meant, and makes none elsewhere."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from flows.server import server
from remint.data import sources
from remint.errors import SettingsError
from remint.runtime.addresses import local_path, sqlite_file
from remint.runtime.home import Home
from remint.settings.dataset import DatasetSettings
from remint.stores import git, uncommitted
from remint.stores.dvc.settings import addresses
from remint.stores.ledger import schema
from tests.support.paths import HOSTILE, SIGNS


@pytest.fixture(params=SIGNS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one sign in its name, which is the working folder too."""
    made = tmp_path / f"a{request.param}"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_ledger_and_mlflows_database_are_files_below_the_home(folder: Path, tmp_path: Path) -> None:
    from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry

    home = Home.of(folder)
    schema.open_database(home.ledger_url)
    (home.path / "mlflow").mkdir()
    with create_sqlalchemy_engine_with_retry(home.tracking_uri).begin() as connection:
        connection.execute(sa.text("CREATE TABLE made (x)"))
    schema.reach(home.ledger_url)
    places = [home.path / "ledger.db", home.path / "mlflow/mlflow.db"]
    assert [sqlite_file(address) for address in (home.ledger_url, home.tracking_uri)] == places
    assert files_below(tmp_path) == places


def test_prefects_database_is_a_file_below_the_home(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in server.DATABASES:
        monkeypatch.delenv(name, raising=False)
    environment = server.environment(Home.of(folder))
    address = environment.get(server.DATABASES[0]) or f"sqlite+aiosqlite:///{environment['PREFECT_HOME']}/prefect.db"  # Prefect's
    url = sa.make_url(address)
    arguments, options = url.get_dialect()().create_connect_args(url)
    place = folder / ".remint/prefect/prefect.db"
    place.parent.mkdir(parents=True)
    with closing(sqlite3.connect(*arguments, uri=options.get("uri", False))) as connection:
        connection.execute("CREATE TABLE made (x)")
    assert files_below(tmp_path) == [place]


def test_a_database_of_prefect_that_is_set_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server.DATABASES[1], "postgresql+asyncpg://host/prefect")
    assert server.DATABASES[0] not in server.environment(Home.of(tmp_path / "a?b"))


def test_mlflow_keeps_files_below_the_home(folder: Path) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.utils.uri import append_to_uri_path

    address = append_to_uri_path(f"{Home.of(folder).artifacts}/digits-vae", "0" * 32, "artifacts")
    place = folder / ".remint/mlflow/artifacts/digits-vae" / ("0" * 32) / "artifacts"
    assert local_path(address) == place and LocalArtifactRepository(address).artifact_dir == str(place)


def test_mlflows_own_folder_is_recorded_below_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is that of the experiment Default, which remint does not use. MLflow writes it into SQL without quoting it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from remint.stores.mlflow import door

    written: list[str] = []
    monkeypatch.setattr(SqlAlchemyStore, "__init__", lambda _store, _uri, root: written.append(root))
    monkeypatch.chdir(tmp_path)
    door._make_tables("sqlite:///x")
    assert [local_path(each) for each in written] == [tmp_path / "mlruns"]


def test_dvc_reads_cache_and_remote_below_the_home(folder: Path) -> None:
    from dvc.config import Config

    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text(
        "[core]\n    remote = local\n[cache]\n    dir = ../.remint/dvc/cache\n['remote \"local\"']\n    url = ../.remint/dvc/remote\n"
    )
    (folder / ".dvc/config.local").write_text('[\'remote "local"\']\n    url = "../other, #remote"\n    region = a, b\n')
    workspace = folder / "workspace"
    (workspace / ".dvc").mkdir(parents=True)
    (workspace / ".dvc/config").write_bytes((folder / ".dvc/config").read_bytes())
    addresses(Home.of(folder), workspace)
    read = Config.load_file(str(workspace / ".dvc/config.local"))
    assert read["cache"]["dir"] == str(folder / ".remint/dvc/cache")
    assert read["remote"]["local"] == {"url": str(folder / "other, #remote"), "region": ["a", "b"], "verify": "true"}


def test_git_finds_and_checks_out_a_clone_below_any_folder(make_repository: Callable[..., Path], tmp_path: Path) -> None:
    repository = make_repository({"a.txt": "a", "data/x#?": "x"}, HOSTILE)
    assert git.repository_of(repository / "data") == repository
    (repository / "b*[?]").write_text("b")
    (repository / "data/y").write_text("y")
    commit = uncommitted.commit_of_tree(repository, [repository / "data"])
    assert commit.changed == ("b*[?]",)
    made = git.check_out(repository, commit, repository / ".remint" / "w")
    assert sorted(str(path.relative_to(made)) for path in files_below(made) if ".git" not in path.parts) == [
        "a.txt",
        "b*[?]",
        "data/x#?",
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a:b", "a colon divides the folders of PYTHONPATH"),
        ("a\nb", "git and DVC need a path in UTF-8 on one line"),
        ("a\udcffb", "git and DVC need a path in UTF-8 on one line"),
        ("%(url)s", "DVC puts another setting in place of"),
        ("{{ x }}", "Prefect puts a value in place of"),
        ("'''\"\"\"", "one kind of triple quotes only"),
    ],
)
def test_a_path_that_a_vendor_cannot_read_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    with pytest.raises(SettingsError, match=f"{says}.*: move the clone$") as caught:
        Home.of(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable()
    monkeypatch.setenv("REMINT_HOME", str(tmp_path / name))
    with pytest.raises(SettingsError, match=f"{says}.*: set REMINT_HOME to another folder$"):
        Home.of(tmp_path)
    assert not list(tmp_path.iterdir())


def write_images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for shade in range(40):
        Image.new("L", (8, 8), shade * 6).save(folder / f"{shade}.png")


def write_source(kind: str, path: Path) -> None:
    """Write a source of one kind to ``path``."""
    import numpy as np
    import pandas as pd

    rows = pd.DataFrame({"a": np.linspace(0.0, 1.0, 50), "b": np.linspace(5.0, 2.0, 50) ** 2})
    if kind == "csv":
        rows.to_csv(path, index=False)
    elif kind == "parquet":
        rows.to_parquet(path)
    elif kind == "npz":
        np.savez(path, x=np.arange(40 * 64, dtype=np.uint8).reshape(40, 1, 8, 8))
    elif kind == "folder":
        write_images(path)
    else:
        write_images(path.parent / "images")
        made = shutil.make_archive(str(path.parent / "made"), "zip" if kind == "zip" else "gztar", path.parent / "images")
        Path(made).rename(path)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz", "folder", "zip", "tar.gz"])
def test_a_source_is_read_below_any_folder(tmp_path: Path, kind: str) -> None:
    made = []
    for folder in (tmp_path / "plain", tmp_path / HOSTILE):
        folder.mkdir()
        name = f"a{HOSTILE}{'' if kind == 'folder' else f'.{kind}'}"
        write_source(kind, folder / name)
        settings = DatasetSettings(source=f"./{folder.name}/{name}", kind="table" if kind in ("csv", "parquet") else "image")
        sources.snapshot("a", settings, tmp_path, folder / "raw")
        made.append((folder / "raw/data.npz").read_bytes())
    assert made[0] == made[1]
