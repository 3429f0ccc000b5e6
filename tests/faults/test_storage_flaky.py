"""A third of the S3 requests fails in different ways: our own reading, dvc's remote and MLflow's files still work."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
from mlflow.store.artifact import s3_artifact_repo

from remint.errors import RunError, StorageError
from remint.runtime.home import Home
from remint.stores import s3 as storage
from remint.stores.dvc import presence
from remint.stores.s3 import bucket as door
from tests.support import registry_cases as cases
from tests.support.ports import free_port
from tests.support.s3 import Proxy, Server
from tests.support.trials import Trials

pytestmark = pytest.mark.usefixtures("forked")

DVC = "[core]\n    no_scm = true\n    remote = far\n[cache]\n    dir = ../.remint/dvc/cache\n['remote \"far\"']\n    url = s3://{bucket}/dvc\n    verify = true\n"


def make_unreliable(proxy: Proxy, dice: random.Random) -> None:
    """Make 30% of the requests fail: refused, reset before or within the answer, or silent until a timeout."""
    proxy.failing, proxy.resetting, proxy.stalling, proxy.stall = 0.15, 0.1, 0.05, 1.3
    proxy.dice = random.Random(dice.random())


def make_reliable(proxy: Proxy) -> None:
    proxy.failing = proxy.resetting = proxy.stalling = 0.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / ".remint").ensure()


@pytest.mark.case(21)
def test_reading_a_bucket_goes_on_and_brings_no_wrong_byte(
    proxy: Proxy, s3: Server, home: Home, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "READ_TIMEOUT", 1)
    monkeypatch.setattr(door, "CONNECTIONS", 12)
    failed = 0
    for trial in trials(short=1, full=200):
        objects = {f"p/{i}": trial.random.randbytes(trial.random.randrange(1, 20_000)) for i in range(12)}
        bucket = s3.bucket(objects)
        make_unreliable(proxy, trial.random)
        before, name = proxy.refused, f"x{trial.number}"
        try:
            storage.fetch(home, name, f"s3://{bucket}/p", lambda _event: None)
            whole = 12
        except StorageError:
            failed += 1
            whole = 0
        held = {f"p/{path.name}": path.read_bytes() for path in (home.fetched / name).iterdir()}
        assert held.items() <= objects.items() and len(held) >= whole, (
            "what is there is whole, and where it ended well all is there"
        )
        shutil.rmtree(home.fetched / name)
        trial.note(reads=1, succeeded=whole == 12, corrupt=0, answers_spoilt=proxy.refused - before)
    assert failed <= 2, "1% of the full count"


@pytest.mark.soak
@pytest.mark.case(21)
def test_dvcs_remote_takes_and_gives_every_file(proxy: Proxy, s3: Server, home: Home, trials: Trials) -> None:
    configure_remote(home, s3.bucket({}))
    cache = home.dvc / "cache/files/md5"
    for trial in trials(short=1, full=10):
        contents = {f"f{i}": trial.random.randbytes(2000) for i in range(6)}
        output, files = write_dvc_folder(cache, contents)
        make_unreliable(proxy, trial.random)
        before = proxy.refused
        assert presence.complete(home, [output], home.repository, home.path / "log") == 7
        shutil.rmtree(cache)
        found = presence.mend(home, [output], home.repository, home.path / "log")
        make_reliable(proxy)
        assert not found.unavailable_reason and set(found.brought) == set(files)
        assert {md5: (cache / md5[:2] / md5[2:]).read_bytes() for md5 in files} == files
        trial.note(copies=2, succeeded=2, corrupt=0, answers_spoilt=proxy.refused - before)


def configure_remote(home: Home, bucket: str) -> None:
    """Configure a remote in this bucket for the repository's dvc."""
    (home.repository / ".dvc").mkdir()
    (home.repository / ".dvc/config").write_text(DVC.format(bucket=bucket))


def write_dvc_folder(cache: Path, contents: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """Write a folder into the cache as dvc does. Return the MD5 of its listing, and all contents by MD5."""
    files = {hashlib.md5(content).hexdigest(): content for content in contents.values()}
    listing = [{"md5": hashlib.md5(content).hexdigest(), "relpath": name} for name, content in sorted(contents.items())]
    text = json.dumps(listing, sort_keys=True).encode()
    output = hashlib.md5(text).hexdigest() + ".dir"
    for md5, content in {**files, output: text}.items():
        (cache / md5[:2]).mkdir(parents=True, exist_ok=True)
        (cache / md5[:2] / md5[2:]).write_bytes(content)
    return output, {**files, output: text}


@pytest.mark.case(21)
def test_mlflows_files_come_back_as_they_were_registered(
    proxy: Proxy, s3: Server, empty: Path, trials: Trials, tmp_path: Path
) -> None:
    shutil.copytree(empty, tmp_path / "home")
    store = cases.tracking(tmp_path / "home")
    store.artifacts = f"s3://{s3.bucket({})}/mlflow"
    s3_artifact_repo._cached_get_s3_client.cache_clear()  # a cached client can belong to another test's proxy
    for trial in trials(short=1, full=20):
        cases.make_bundle(tmp_path / f"b{trial.number}", trial.random.randrange(10**6))
        make_unreliable(proxy, trial.random)
        before = proxy.refused
        version = cases.register(store, tmp_path / f"b{trial.number}")
        store.fetch(version, tmp_path / "got" / str(trial.number))
        make_reliable(proxy)
        trial.note(copies=2, succeeded=2, corrupt=0, answers_spoilt=proxy.refused - before)
    s3_artifact_repo._cached_get_s3_client.cache_clear()


def test_unreachable_s3_is_one_clear_error_of_each_client(
    s3: Server, home: Home, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is closed. docs/reliability/faults.md has the usual number of attempts; here it is two."""
    bucket = s3.bucket({"p/a": b"a"})
    configure_remote(home, bucket)
    output, _ = write_dvc_folder(home.dvc / "cache/files/md5", {"a": b"a"})
    shutil.copytree(empty, tmp_path / "home")
    store = cases.tracking(tmp_path / "home")
    store.artifacts = f"s3://{bucket}/mlflow"
    cases.make_bundle(tmp_path / "bundle")
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(door, "REQUESTS", 2)
    for act in (
        lambda: storage.fetch(home, "x", f"s3://{bucket}/p", lambda _event: None),
        lambda: presence.complete(home, [output], home.repository, home.path / "log"),
        lambda: cases.register(store, tmp_path / "bundle"),
    ):
        with pytest.raises(RunError) as caught:
            act()
        assert len(str(caught.value).splitlines()) == 1, caught.value
    assert not (home.fetched / "x").exists() and store.names() == []
    s3_artifact_repo._cached_get_s3_client.cache_clear()
