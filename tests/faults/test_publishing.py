"""Publishing on a real S3 server and in folders: a reader finds a whole champion or the former one, whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remint
from remint.errors import IntegrityError, NotFoundError, RemintError, StorageError, UserError
from remint.promotion import decide, publishing
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.serving.load import load_version
from remint.settings.params import load_params
from remint.stores import published
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_tracking
from remint.stores.s3 import Objects
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.s3 import Proxy, Server

pytestmark = pytest.mark.usefixtures("forked")

PARAMS = """
datasets: {digits: {source: "sklearn:digits", kind: image}}
pipelines:
  digits-flow: {dataset: digits, family: flow, model: {}, training: {}, evaluation: {}, promotion: {}, publish: "%s"}
"""
WITHOUT_MLFLOW = """
import sys
sys.modules["mlflow"] = None
import remint
model = remint.load(sys.argv[1])
print(model.ref, model.sample(3, seed=5).sum())
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from remint.promotion import publishing
from remint.runtime.home import Home
from remint.stores.s3 import Objects
repository, home, model, place, writes = sys.argv[1:]
put, count = Objects._put, iter(range(1000))
def counted(self, name, stream):
    if next(count) == int(writes):
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, name, stream)
Objects._put = counted
publishing.publish(Home(Path(repository), Path(home)), model, place)
"""


@pytest.fixture
def home(registered: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Home with a champion, version 1, and readers with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("remint.promotion.decide.fresh.check", lambda bundle, log: "not looked at")
    home = cases.copy_home(registered, tmp_path / "home")
    cases.record_decision(home, "promoted", 1)
    return home


@pytest.fixture
def bucket(s3: Server) -> str:
    return f"s3://{s3.bucket({'keep': b'1'})}/models"


def samples(home: Home, version: int) -> np.ndarray[Any, Any]:
    return np.asarray(load_version(home, f"{MODEL}/{version}").sample(4, seed=3))


def read(place: str) -> tuple[str, np.ndarray[Any, Any]]:
    model = remint.load(f"{place}/{MODEL}")
    return model.ref, np.asarray(model.sample(4, seed=3))


def files_of(s3: Server, bucket: str) -> dict[str, str]:
    listed = s3.client.list_objects_v2(Bucket=bucket.split("/")[2], Prefix="models/")
    return {entry["Key"]: entry["ETag"] + str(entry["LastModified"]) for entry in listed.get("Contents", [])}


@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_a_service_without_mlflow_draws_the_samples_of_the_registry(
    kind: str, home: Home, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("bucket") if kind == "bucket" else str(tmp_path / "shelf")
    with pytest.raises((NotFoundError, UserError)):
        read(place)
    assert publishing.publish(home, MODEL, place) == publishing.PublishedChampion(
        model=f"{MODEL}/1", address=f"{place}/{MODEL}", written=True
    )
    ref, drawn = read(place)
    assert ref == f"{MODEL}/1" and (drawn == samples(home, 1)).all()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLFLOW, f"{place}/{MODEL}"], cwd=elsewhere, text=True, capture_output=True, check=True
    )
    assert done.stdout.split() == [f"{MODEL}/1", str(load_version(home, f"{MODEL}/1").sample(3, seed=5).sum())]
    with pytest.raises(UserError, match="published without a calibration"):
        remint.load(f"{place}/{MODEL}").score(drawn)


def test_the_pointer_names_version_digest_manifest_and_decision(home: Home, tmp_path: Path) -> None:
    publishing.publish(home, MODEL, str(tmp_path / "shelf"))
    pointer = json.loads((tmp_path / "shelf" / MODEL / "champion.json").read_bytes())
    version, row = open_tracking(home).version(f"{MODEL}/1"), open_ledger(home).last(MODEL)
    assert row is not None
    wanted = {"model": MODEL, "version": 1, "digest": version.key, "manifest": version.tags.manifest_sha256}
    assert pointer == {**wanted, "calibration": None, "metrics": {}, "decision": row.hash}
    manifest.verify(tmp_path / "shelf" / MODEL / pointer["manifest"])


def test_publishing_again_writes_nothing_and_a_check_reads_the_bytes(home: Home, s3: Server, bucket: str) -> None:
    publishing.publish(home, MODEL, bucket)
    before = files_of(s3, bucket)
    again = publishing.publish(home, MODEL, bucket)
    assert again is not None and not again.written and files_of(s3, bucket) == before

    weights = next(key for key in before if key.endswith("weights.safetensors"))
    s3.put(bucket.split("/")[2], weights, b"damaged")
    publishing.publish(home, MODEL, bucket)  # looks at the pointer only
    with pytest.raises(IntegrityError, match="damaged"):
        read(bucket)
    publishing.publish(home, MODEL, bucket, check=True)
    assert (read(bucket)[1] == samples(home, 1)).all()


def test_a_person_promotes_and_rolls_back_and_readers_follow(home: Home, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.path / "params.yaml").write_text(PARAMS % f"{bucket}/")
    monkeypatch.chdir(home.path)
    commit = "git init -q . && git add params.yaml && git -c user.name=A -c user.email=a@example.org commit -qm first"
    subprocess.run(commit, shell=True, check=True)
    from typer.testing import CliRunner

    from remint.cli import app

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    monkeypatch.setenv("REMINT_HOME", str(home.path))
    run("promote", f"{MODEL}/2", "--reason", "better", "--against", "1")
    assert read(bucket)[0] == f"{MODEL}/2"
    run("rollback", MODEL, "--reason", "worse")
    assert read(bucket)[0] == f"{MODEL}/1"
    assert "was published already, and its files verify" in run("publish")
    run("sample", f"{bucket}/{MODEL}", "-n", "4", "--seed", "3", "-o", "x.npy")
    assert (np.load("x.npy") == samples(home, 1)).all()


def test_a_publishing_that_fails_leaves_the_decision_and_is_made_good(
    home: Home, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.path / "params.yaml").write_text(PARAMS % bucket)
    publishing.publish(home, MODEL, bucket)
    decide.promote(home, f"{MODEL}/2", "better", 1)
    monkeypatch.setattr("remint.stores.s3.bucket.REQUESTS", 1)
    proxy.failing = 1.0
    said: list[str] = []
    publishing.publish_decided(home, MODEL, said.append)
    assert len(said) == 1 and "\n" not in said[0], said
    assert said[0].startswith(f"the champion of {MODEL} was not published: ") and "The decision stands" in said[0]
    assert open_ledger(home).champion(MODEL) == 2

    proxy.failing = 0.0
    assert read(bucket)[0] == f"{MODEL}/1"
    publishing.publish_decided(home, MODEL, said.append)
    publishing.publish_decided(home, MODEL, said.append)
    assert said[1:] == [f"{MODEL}/2 is published at {bucket}/{MODEL}"]
    assert read(bucket)[0] == f"{MODEL}/2"


def test_a_publisher_that_is_killed_leaves_no_half_champion(home: Home, bucket: str, s3: Server) -> None:
    """The process is killed before each of its writes in turn: until the last one readers have version 1."""
    publishing.publish(home, MODEL, bucket)
    cases.record_decision(home, "promoted", 2)
    kills = 0
    while _published_in_a_child(home, bucket, writes=kills) == -signal.SIGKILL:
        ref, drawn = read(bucket)
        assert ref == f"{MODEL}/1" and (drawn == samples(home, 1)).all(), kills
        kills += 1
    bundle = load_version(home, f"{MODEL}/2").folder
    assert bundle is not None
    assert kills == 1 + sum(path.is_file() for path in bundle.rglob("*")), "each file, then the pointer"
    ref, drawn = read(bucket)
    assert ref == f"{MODEL}/2" and (drawn == samples(home, 2)).all()


def _published_in_a_child(home: Home, place: str, writes: int) -> int:
    """Publish in a process that is killed before its write number ``writes``. Return its exit status. Begin from nothing."""
    for key in list(_objects(place)):
        if f"/{open_tracking(home).version(f'{MODEL}/2').tags.manifest_sha256}/" in key:
            _client(place).delete_object(Bucket=place.split("/")[2], Key=key)
    arguments = [str(home.repository), str(home.path), MODEL, place, str(writes)]
    return subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=120).returncode


def _client(place: str) -> Any:
    return Objects("a test", place)._bucket.s3


def _objects(place: str) -> list[str]:
    return [entry["Key"] for entry in _client(place).list_objects_v2(Bucket=place.split("/")[2]).get("Contents", [])]


@pytest.mark.parametrize("name", ["../../escaped.json", "/etc/x.json", "a/../b.json", "code.py", "x.pkl", "manifest.json"])
def test_a_published_manifest_names_files_of_a_model_only(home: Home, tmp_path: Path, name: str) -> None:
    shelf = tmp_path / "shelf" / MODEL
    publishing.publish(home, MODEL, str(shelf.parent))
    pointer = json.loads((shelf / "champion.json").read_bytes())
    hostile = json.dumps({"files": {name: "0" * 64}}).encode() + b"\n"
    (tmp_path / "hostile").write_bytes(hostile)
    sha256 = manifest.sha256_file(tmp_path / "hostile")
    (shelf / sha256).mkdir()
    (shelf / sha256 / "manifest.json").write_bytes(hostile)
    (shelf / "champion.json").write_text(json.dumps({**pointer, "manifest": sha256}))
    with pytest.raises(IntegrityError, match="is not a file of a model"):
        read(str(shelf.parent))


def test_damaged_and_endless_files_are_refused(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf" / MODEL
    publishing.publish(home, MODEL, str(shelf.parent))
    pointer = (shelf / "champion.json").read_bytes()
    bundle = shelf / json.loads(pointer)["manifest"]

    def refusal() -> str:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        with pytest.raises(RemintError) as refused:
            read(str(shelf.parent))
        assert not list((tmp_path / "cache").rglob("weights.safetensors")), "nothing of it is kept"
        return str(refused.value)

    with monkeypatch.context() as limited:
        limited.setattr(published, "MOST", 1000)
        assert "of at most" in refusal()
    (shelf / "champion.json").write_bytes(b"{}")
    assert "is not a pointer to a model" in refusal()
    (shelf / "champion.json").write_bytes(b" " * (manifest.LARGEST + 1))
    assert "of at most" in refusal()
    (shelf / "champion.json").write_bytes(pointer)
    (bundle / "model.json").rename(bundle / "elsewhere")
    (bundle / "model.json").symlink_to("/dev/zero")
    assert "is not a file of at most" in refusal()
    (bundle / "model.json").unlink()
    assert "is missing: run remint publish" in refusal()


def test_a_cached_model_is_verified_and_old_ones_are_removed(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "KEPT", 2)
    shelf = str(tmp_path / "shelf")
    for version in (1, 2, 3):
        if version > 1:
            cases.record_decision(home, "promoted", version)
        publishing.publish(home, MODEL, shelf)
        assert read(shelf)[0] == f"{MODEL}/{version}"
    kept = sorted((tmp_path / "cache/remint/published").glob("*/*/weights.safetensors"))
    assert len(kept) == 2
    assert (tmp_path / "cache/remint/published").stat().st_mode & 0o777 == 0o700
    for path in kept:
        path.write_bytes(b"flipped")
    assert (read(shelf)[1] == samples(home, 3)).all()
    (tmp_path / "cache/remint/published").chmod(0o777)
    with pytest.raises(UserError, match="of this account only"):
        read(shelf)


def test_a_new_calibration_is_published(home: Home, tmp_path: Path) -> None:
    shelf, version = str(tmp_path / "shelf"), open_tracking(home).version(f"{MODEL}/1")
    publishing.publish(home, MODEL, shelf)
    made = tmp_path / "calibration"
    made.mkdir()
    (made / "calibration.json").write_text("{}")
    manifest.seal(made)
    open_tracking(home).attach(version, {"calibration": made})
    open_tracking(home).set_tags(version, VersionTags(calibration=manifest.sha256_file(made / manifest.NAME)))
    publishing.publish(home, MODEL, shelf)
    there = published.Published("a test", f"{shelf}/{MODEL}")
    folder = there.cached(str(there.champion().calibration))
    assert (folder / "calibration.json").read_text() == "{}"


@pytest.mark.parametrize("place", ["ftp://x/y", "s3://user:secret-1@bucket/x", "s3://key@bucket", "", "/"])
def test_a_place_is_a_bucket_or_a_folder_without_credentials(tmp_path: Path, place: str) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS % place)
    with pytest.raises(RemintError, match=r"pipelines.digits-flow.publish: expected") as refused:
        load_params(tmp_path)
    assert "secret-1" not in str(refused.value)


def test_a_folder_that_cannot_be_written_is_one_error(home: Home, tmp_path: Path) -> None:
    (tmp_path / "shelf").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        publishing.publish(home, MODEL, str(tmp_path / "shelf"))
