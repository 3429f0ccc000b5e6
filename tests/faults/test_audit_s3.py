"""remint audit with MLflow's files and DVC's remote on a real S3 server: objects lost there are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow.store.artifact import s3_artifact_repo

from tests.support import audit_cases
from tests.support.audit_cases import MODEL
from tests.support.ports import free_port
from tests.support.s3 import Server

pytestmark = pytest.mark.usefixtures("forked")


@pytest.mark.soak
def test_lost_objects_of_a_bucket_are_found_and_restored(
    s3: Server, tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket({})
    monkeypatch.setenv("REMINT_ARTIFACTS", f"s3://{bucket}/mlflow")
    monkeypatch.setenv("REMINT_DVC_REMOTE", f"s3://{bucket}/dvc")
    world = audit_cases.make_world(tmp_path / "team", empty, audit_cases.make_bundles(tmp_path / "bundles"))
    remote = world.home.dvc / "remote"
    for path in remote.rglob("*"):
        if path.is_file():
            s3.put(bucket, f"dvc/{path.relative_to(remote)}", path.read_bytes())
    shutil.rmtree(remote)
    assert world.audit() == []

    champion = world.version(3)
    world.store.fetch(champion, world.home.path / "models" / champion.key)
    lost = [f"dvc/files/md5/{world.raw[:2]}/{world.raw[2:]}"]
    runs = [world.version(number).run_id for number in (2, 3)]
    lost += [f"mlflow/{MODEL}/{run}/artifacts/model/data/bundle/weights.safetensors" for run in runs]
    for key in lost:
        s3.delete(bucket, key)
    found = {(each.kind, each.thing.split()[0]): each for each in world.audit()}
    assert found.keys() == {("bytes", "digits-flow/2"), ("bytes", "digits-flow/3"), ("remote", "raw")}
    assert {each.thing.split()[0] for each in world.repair() if each.repaired} == {"digits-flow/3", "raw"}
    assert [each.thing for each in world.audit()] == ["digits-flow/2"]

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3_artifact_repo._cached_get_s3_client.cache_clear()  # a command is a new process, without a cached client
    kinds = {(each.kind, each.thing) for each in world.audit()}
    assert {kind for kind, _ in kinds} == {"unreachable"} and len(kinds) >= 1, (
        "nothing is said to be lost that could not be asked"
    )
