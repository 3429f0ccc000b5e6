"""Fixtures shared by several test folders: homes, repositories, datasets, trials."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import preloaded
from tests.support.postgres import postgres  # noqa: F401 (a fixture)
from tests.support.s3 import proxy, s3, s3_server  # noqa: F401 (fixtures)
from tests.support.trials import Trials

if TYPE_CHECKING:
    from remint.data.arrays import Dataset
    from remint.runtime.home import Home

os.environ.update(
    {
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "OMP_NUM_THREADS": "1",  # tests run in parallel: more threads than cores slow them down
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the counted cases in full, and the long tests")
    parser.addoption("--case", type=int, help="run only the counted case of this number")
    parser.addoption("--seed", type=int, default=0, help="seed of the counted cases")
    parser.addoption("--part", default="0/1", help="I/N: run only the trials I, I + N, I + 2N .. of each counted case")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select tests: `make test` omits the long ones; `make soak` runs them and the counted cases, or one case."""
    soak, case = config.getoption("--soak"), config.getoption("--case")

    def chosen(item: pytest.Item) -> bool:
        mark = item.get_closest_marker("case")
        if case is not None:
            return mark is not None and mark.args[0] == case
        return (item.get_closest_marker("soak") is None) if not soak else bool(mark or item.get_closest_marker("soak"))

    folders = ("e2e", "faults", "property", "flows")  # the longest files first, so that all processes end at the same time
    items.sort(key=lambda item: next((i for i, name in enumerate(folders) if f"/tests/{name}/" in str(item.path)), len(folders)))
    left_out = [item for item in items if not chosen(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if chosen(item)]
    if soak:
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Trials:
    """Trials of a counted case: a few, or all of them in a soak."""
    (case,) = request.node.get_closest_marker("case").args
    options = request.config.option
    first, step = map(int, options.part.split("/"))
    return Trials(case, request.node.nodeid, options.seed, soak=options.soak, part=(first, step))


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Function that makes a named folder once per run for all processes: the first caller makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, whole = root / name, root / f"{name}-is-whole"
        with (root / f"{name}-lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest, once: Once) -> Path | None:
    """Folder of preloaded programs for all processes of a run, forked from one server; None in a soak."""
    if request.config.getoption("--soak"):
        return None
    whole_run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    return once("programs", lambda folder: preloaded.programs(folder, whole_run))


@pytest.fixture(scope="module")
def forked(programs: Path | None) -> Iterator[None]:
    """Fork the dvc, step and model-loading processes of a module's tests from a preloaded server, except in a soak."""
    before = sys.executable
    if programs is not None:
        sys.executable = str(programs / "python")
    yield
    sys.executable = before


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate every test from the stores of the user who runs it."""
    for name in (
        "REMINT_HOME",
        "REMINT_SOURCES",
        "REMINT_LEDGER",
        "REMINT_ARTIFACTS",
        "REMINT_DVC_REMOTE",
        "REMINT_PACKAGE",
        "MLFLOW_TRACKING_URI",
        "PREFECT_API_URL",
        "REMINT_EVENTS",
        "REMINT_RESTORE_ONLY",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Digits dataset, prepared as the pipeline steps do it."""
    from remint.data import arrays, sources, splits
    from remint.settings.dataset import DatasetSettings

    folder, settings = tmp_path_factory.mktemp("digits"), DatasetSettings(source="sklearn:digits")
    sources.snapshot("digits", settings, folder, folder / "raw")
    splits.prepare("digits", settings, folder / "raw", folder / "prepared")
    return arrays.load(folder / "prepared")


@pytest.fixture(scope="session")
def empty(once: Once) -> Path:
    """Home with an empty MLflow database, which takes seconds to create. Tests copy it."""
    from tests.support import registry_cases

    return once("empty", lambda home: registry_cases.tracking(home).initialise())


@pytest.fixture(scope="session")
def registered(empty: Path, once: Once) -> Home:
    """Home with four small, undecided versions of one model. Tests copy it (promotion_cases.copy_home)."""
    from remint.runtime.home import Home
    from tests.support import promotion_cases

    folder = once("registered", lambda home: promotion_cases.make_home(empty, home, versions=4))
    return Home(folder, folder)


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Function that makes a git repository with one commit of the given files."""

    def make(files: dict[str, str], name: str = "team") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        commit = "git init -q -b main && git config user.email a@example.org && git config user.name A && git add -A && git commit -qm first"
        subprocess.run(["sh", "-c", commit], cwd=folder, check=True)
        return folder

    return make
