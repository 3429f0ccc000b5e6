"""Audit of real damage: each damage is found, damaged versions are not promoted, and an undamaged home has no findings."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.exceptions import DvcException

from remint.errors import IntegrityError, VersioningError
from remint.maintenance import audit, doctor
from remint.maintenance.audit import registry
from remint.maintenance.audit.fault import Finding
from remint.promotion import decide
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from remint.stores import git, uncommitted
from remint.stores.dvc import presence
from remint.stores.dvc.ask import folder as dvc_folder
from remint.stores.mlflow import VersionTags
from remint.stores.mlflow.inventory import StoredVersion
from remint.stores.open import open_ledger
from tests.support import audit_cases
from tests.support.audit_cases import MODEL, World, dvc_file
from tests.support.promotion_cases import mlflow_gc

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audit_cases.make_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def template_world(tmp_path_factory: pytest.TempPathFactory, empty: Path, bundles: Path) -> World:
    return audit_cases.make_world(tmp_path_factory.mktemp("made") / "team", empty, bundles)


@pytest.fixture
def world(tmp_path: Path, template_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """World that asks dvc in this process: an import for each audit would take most of its time (tests/unit/test_presence.py)."""

    def answer_in_process(_module: str, home: Home, question: dict[str, Any]) -> Any:
        try:
            with dvc_folder(home) as folder:
                return presence._answer(folder, question)
        except DvcException as error:
            raise VersioningError(str(error)) from error

    monkeypatch.setattr(presence, "ask", answer_in_process)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return template_world.copy(tmp_path / "team")


def kinds_and_things(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.kind, finding.thing) for finding in found}


def only_finding(found: list[Finding]) -> Finding:
    assert len(found) == 1, [finding.to_json() for finding in found]
    return found[0]


def test_an_undamaged_home_has_no_findings_even_while_a_job_runs(world: World) -> None:
    result = audit.run_audit(world.home)
    assert result.findings == [] and (result.models, result.versions, result.roots) == (1, 4, 3)
    sha = world.git("commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "uncommitted")
    world.git("update-ref", f"refs/remint/{sha}", sha)
    with jobs.live(world.home, pipeline=MODEL, commit=sha, flow_run="") as job:
        (world.home.workspaces / job.id).mkdir(parents=True)
        run_id = world.store.start_run(MODEL, {}, {})
        assert world.audit() == []
    world.store.end_run(run_id, "FINISHED")
    assert kinds_and_things(world.audit()) == {
        ("workspace", str(world.home.workspaces / job.id)),
        ("orphan", f"refs/remint/{sha}"),
    }, "its job has ended, and has taken neither away"


def test_audit_warns_before_and_after_mlflow_gc_removes_the_deleted_run_of_a_champion(world: World) -> None:
    champion = world.version(3)
    world.mlflow.delete_run(champion.run_id)
    found = only_finding(world.audit())
    assert (found.kind, found.thing, found.damages, found.safe) == ("run", "digits-flow/3", "digits-flow/3", True)
    assert "next mlflow gc removes" in found.risk and f"mlflow runs restore --run-id {champion.run_id}" in found.repair
    assert [each.repaired for each in world.repair()] == [True] and world.audit() == []
    world.mlflow.delete_run(champion.run_id)
    mlflow_gc(world.home)
    found = world.audit()
    assert kinds_and_things(found) == {("run", "digits-flow/3"), ("bytes", "digits-flow/3"), ("lineage", "digits-flow/3")}
    assert all(each.damages == "digits-flow/3" and not each.safe for each in found)
    lost = next(each for each in found if each.kind == "bytes")
    assert "champion" in lost.risk and "remint rollback digits-flow" in lost.repair


def test_a_deleted_run_of_an_unserved_version_is_left_to_a_person(world: World) -> None:
    world.mlflow.delete_run(world.version(2).run_id)
    found = only_finding(world.audit())
    assert (found.kind, found.thing, found.damages, found.safe) == ("run", "digits-flow/2", None, False)
    mlflow_gc(world.home)
    assert kinds_and_things(world.audit()) == {("run", "digits-flow/2"), ("bytes", "digits-flow/2")}
    with pytest.raises(IntegrityError):
        decide.promote(world.home, "digits-flow/2", "I want it", against=3)
    assert open_ledger(world.home).champion(MODEL) == 3


def test_versions_of_two_pipelines_with_equal_settings_are_no_twins(world: World) -> None:
    """A copied pipeline trains the same weights, so the same key: to delete one of the two would take its champion."""
    first = world.version(3)
    copied = first.model_copy(update={"name": "digits-copy", "version": 1})
    assert not [*registry.keys([StoredVersion(first, ""), StoredVersion(copied, "")], {})]
    (twin,) = registry.keys([StoredVersion(first, ""), StoredVersion(first.model_copy(update={"version": 9}), "")], {})
    assert "digits-flow/3 and digits-flow/9 are the same model" in twin.finding.what


def flip(world: World, number: int) -> None:
    (weights,) = world.artifact_folder(number).rglob("weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def remove(world: World, number: int) -> None:
    shutil.rmtree(world.artifact_folder(number) / "model")


@pytest.mark.parametrize("damage", [flip, remove])
def test_lost_or_edited_weights_are_found_and_not_promoted(world: World, damage: Callable[[World, int], None]) -> None:
    damage(world, 4)  # the challenger
    found = only_finding(world.audit())
    assert (found.kind, found.thing, found.damages, found.safe) == ("bytes", "digits-flow/4", "digits-flow/4", False)
    expected = "weights.safetensors is damaged: its SHA-256" if damage is flip else "lacks manifest.json and weights.safetensors"
    assert expected in found.what and "@challenger" in found.risk and "remint rebuild digits-flow/4" in found.repair
    with pytest.raises(IntegrityError):
        decide.promote(world.home, "digits-flow/4", "I want it", against=3)
    assert open_ledger(world.home).champion(MODEL) == 3 and only_finding(world.repair()) == found
    damage(world, 3)
    world.store.fetch(world.version(1), world.home.path / "models" / world.version(1).key)
    damage(world, 1)
    found_by = {each.thing: each for each in world.audit()}
    assert found_by.keys() == {"digits-flow/1", "digits-flow/3", "digits-flow/4"}
    assert "remint rollback digits-flow" in found_by["digits-flow/3"].repair
    assert found_by["digits-flow/1"].safe, "this machine has a copy whose digests match the registered ones"
    left = world.repair()
    assert [(each.thing, each.repaired) for each in left if each.repaired] == [("digits-flow/1", True)]
    assert {each.thing for each in left if not each.repaired} == {"digits-flow/3", "digits-flow/4"}


def test_a_deep_audit_finds_an_edited_file_of_an_unserved_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "remint.serving.fresh.check", lambda bundle, log: "not looked at"
    )  # takes seconds each, and has its own tests
    flip(world, 2)
    dvc_file("remote", world.home, world.raw).write_bytes(b"[]")
    assert world.audit() == []
    assert {(each.kind, each.thing.split()[0], each.safe) for each in world.audit(deep=True)} == {
        ("bytes", "digits-flow/2", False),
        ("remote", "raw", True),
    }


def test_a_deleted_artifact_folder_is_found_as_lost_bytes_and_lineage(world: World) -> None:
    shutil.rmtree(world.artifact_folder(3))
    assert kinds_and_things(world.audit()) == {("bytes", "digits-flow/3"), ("lineage", "digits-flow/3")}


def test_an_edited_alias_is_found_and_restored_from_the_ledger(world: World) -> None:
    world.store.set_alias(MODEL, "champion", 2)
    found = next(each for each in world.audit() if each.kind == "alias")
    assert (found.thing, found.damages, found.safe) == ("digits-flow@champion", "digits-flow/3", True)
    assert found.what == "It points to digits-flow/2; the ledger records digits-flow/3." and "was not promoted" in found.risk
    assert [(each.thing, each.repaired) for each in world.repair()] == [("digits-flow@champion", True)]
    assert world.store.aliases(MODEL) == {"champion": 3, "challenger": 4}
    world.store.set_alias(MODEL, "champion", None)
    assert only_finding(world.audit()).what == "It points to nothing; the ledger records digits-flow/3."


def test_edited_tags_are_found(world: World) -> None:
    world.store.set_tags(world.version(2), VersionTags(verdict="promoted"))
    world.store.set_tags(world.version(4), VersionTags(dataset="f" * 64))
    found = {each.thing: each for each in world.audit()}
    assert found.keys() == {"digits-flow/2 verdict", "digits-flow/4"}
    assert found["digits-flow/2 verdict"].safe and not found["digits-flow/4"].safe and found["digits-flow/4"].damages
    assert {each.thing: each.repaired for each in world.repair()} == {"digits-flow/2 verdict": True, "digits-flow/4": False}


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE ledger SET champion_after = 2 WHERE sequence = 4", "row 4 was changed"),
        ("DELETE FROM ledger WHERE sequence = 4", "row 4, which digits-flow/4 names"),
    ],
)
def test_an_edited_ledger_is_found_and_nothing_is_repaired_from_it(world: World, statement: str, message: str) -> None:
    with sqlite3.connect(world.home.path / "ledger.db") as database:
        database.execute(statement)
    before = world.store.aliases(MODEL)
    found = world.audit()
    assert any(each.kind == "ledger" and message in each.what and each.damages and not each.safe for each in found)
    assert not any(each.safe for each in found)
    assert [each.repaired for each in world.repair()] == [False] * len(found)
    assert world.store.aliases(MODEL) == before


def test_a_deleted_champion_version_is_found(world: World) -> None:
    world.mlflow.delete_model_version(MODEL, "3")
    found = world.audit()
    gone = next(each for each in found if each.kind == "version")
    assert (gone.thing, gone.damages) == ("digits-flow/3", "digits-flow/3") and "remint rollback digits-flow" in gone.repair
    assert ("orphan", f"run {orphan_run(world)}") in kinds_and_things(found)


def orphan_run(world: World) -> str:
    """Return the run that has a model and no version."""
    (experiment,) = [each for each in world.mlflow.search_experiments() if each.name == MODEL]
    versions = {each.run_id for each in world.mlflow.search_model_versions(f"name = '{MODEL}'")}
    (left,) = {run.info.run_id for run in world.mlflow.search_runs([experiment.experiment_id])} - versions
    return left


def test_a_second_version_with_the_same_key_is_found(world: World) -> None:
    source, tags = world.mlflow.get_model_version(MODEL, "2").source, world.mlflow.get_model_version(MODEL, "2").tags
    tags = {key: value for key, value in tags.items() if "ledger" not in key and "verdict" not in key}
    world.mlflow.create_model_version(MODEL, source, world.version(2).run_id, tags=tags)  # without remint's lock
    found = only_finding(world.audit())
    assert (found.kind, found.thing, found.safe) == ("version", "digits-flow/5", False) and "digits-flow/2" in found.what


def test_files_without_a_run_are_found(world: World) -> None:
    folder = world.artifact_folder(2).parent.with_name("0" * 32)
    (folder / "artifacts/model").mkdir(parents=True)
    assert world.audit() == [], "an empty folder takes no room: mlflow gc leaves one of each run"
    (folder / "artifacts/model/weights.safetensors").write_bytes(b"x")
    assert kinds_and_things(world.audit()) == {("orphan", str(folder))}


def test_the_open_run_and_the_workspace_of_a_killed_job_are_found_and_repaired(world: World) -> None:
    run_id = world.store.start_run(MODEL, {}, {})
    gone = 2**22 + 1  # the kernel gives no such process id
    world.mlflow.set_tag(run_id, "remint.process", f"{socket.gethostname()}/{gone}/1.00")
    folder = world.home.jobs / "20260101T000000-dead00"
    folder.mkdir(parents=True)
    jobs.Job(folder).note(pid=1, pipeline=MODEL, flow_run="")
    (world.home.workspaces / folder.name).mkdir(parents=True)
    (world.home.path / "checkpoints/abc").mkdir(parents=True)
    half = world.home.path / f"checkpoints/abc/.10.{gone}.tmp"
    half.mkdir()
    copy = world.home.path / ".promote-killed"
    copy.mkdir()
    os.utime(copy, (0, 0))
    expected = {("run", f"run {run_id}"), ("workspace", str(world.home.workspaces / folder.name))}
    expected |= {("temporary", str(half)), ("temporary", str(copy))}
    assert kinds_and_things(world.audit()) == expected
    assert {each.repaired for each in world.repair()} == {True} and world.audit() == []
    assert world.mlflow.get_run(run_id).info.status == "KILLED" and not half.exists() and not copy.exists()


def test_data_lost_on_the_remote_are_found_and_sent_again_from_the_cache(world: World) -> None:
    shutil.rmtree(world.home.dvc / "cache/files")
    assert world.audit() == [], "the remote has them: dvc gc on this machine harms nothing"
    shutil.copytree(world.home.dvc / "remote/files", world.home.dvc / "cache/files")
    shutil.rmtree(world.home.dvc / "remote/files")
    found = world.audit()
    refs = "digits-flow/1, digits-flow/3, digits-flow/4"
    assert {each.thing.split(" of ")[1] for each in found} == {refs} and all(each.safe and each.damages for each in found)
    assert {each.thing.split()[0] for each in found} == {"raw", "prepared"}
    assert {each.repaired for each in world.repair()} == {True} and world.audit() == []
    for store in ("cache", "remote"):
        dvc_file(store, world.home, world.raw).unlink()
    found_one = only_finding(world.audit())
    assert (
        not found_one.safe and "can be built again" in found_one.risk and "cache of this machine lacks them too" in found_one.what
    )


def test_data_removed_by_dvc_gc_on_the_remote_are_found(world: World) -> None:
    """This repository's HEAD does not name the data, so dvc removes all of them."""
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(world.home.path / "site")}
    command = [sys.executable, "-m", "dvc", "gc", "--workspace", "--cloud", "--force"]
    subprocess.run(command, cwd=world.home.repository, env=environment, check=True, capture_output=True)
    found = world.audit()
    assert (
        {each.kind for each in found} == {"remote"} and len(found) == 2 and all(each.damages and not each.safe for each in found)
    )


def test_a_missing_commit_is_found(world: World) -> None:
    world.store.set_tags(world.version(3), VersionTags(commit="d" * 40))
    found = only_finding(world.audit())
    assert (found.kind, found.thing, found.safe) == ("commit", "digits-flow/3", False) and "neither in" in found.what


def test_a_lost_bundle_of_uncommitted_work_is_made_again_from_its_commit(world: World) -> None:
    sha = world.git("commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "uncommitted")
    world.git("update-ref", f"refs/remint/{sha}", sha)
    world.store.set_tags(world.version(4), VersionTags(commit=sha, dirty="true"))
    found = only_finding(world.audit())
    assert (found.kind, found.thing, found.safe) == ("commit", "digits-flow/4", True)
    assert [each.repaired for each in world.repair()] == [True]
    world.git("update-ref", "-d", f"refs/remint/{sha}")
    world.git("gc", "-q", "--prune=now")
    assert world.audit() == [], "the bundle holds it"


def test_raw_data_that_an_older_version_committed_and_bundled_are_found_with_the_way_out(world: World, tmp_path: Path) -> None:
    repository = world.home.repository
    content = read_params(repository)
    content["datasets"]["digits"]["source"] = "data/people.csv"
    write_params(content, repository)
    world.git("add", "-A")
    world.git("commit", "-qm", "a table")
    (repository / "data").mkdir(exist_ok=True)
    (repository / "data/people.csv").write_text("ann,1979-02-03\n")
    (repository / ".gitignore").write_text("")
    index = {**os.environ, "GIT_INDEX_FILE": str(tmp_path / "index")}
    script = "git read-tree HEAD && git add data && git write-tree"
    tree = subprocess.run(
        ["sh", "-c", script], cwd=repository, env=index, check=True, capture_output=True, text=True
    ).stdout.strip()
    author = ("-c", "user.name=remint", "-c", f"user.email={uncommitted.AUTHOR}")
    sha = world.git(*author, "commit-tree", tree, "-p", "HEAD", "-m", "uncommitted")
    world.git("update-ref", f"refs/remint/{sha}", sha)
    first = world.git(
        "rev-list", "--max-parents=0", "HEAD"
    )  # a job of a branch pins the user's own commit, here without a parent
    world.git("update-ref", f"refs/remint/{first}", first)
    version = world.version(4)
    world.store.set_tags(version, VersionTags(commit=sha, dirty="true"))
    commit = git.Commit(sha, dirty=True, base=world.git("rev-parse", "HEAD"))
    world.store.attach(version, {"uncommitted.bundle": uncommitted.bundle(repository, commit, tmp_path / "uncommitted.bundle")})

    found = {each.thing: each for each in world.audit() if each.kind == "raw_data"}
    assert set(found) == {f"refs/remint/{sha}", "digits-flow/4"} and not any(each.safe for each in found.values())
    assert all(each.what == "It contains raw data: data/people.csv." for each in found.values())
    (symptom,) = [each for each in doctor.examine(world.home, None) if "raw data" in each.what]
    assert sha[:10] in symptom.what and "remint audit" in symptom.do
    repairs = found[f"refs/remint/{sha}"].repair.partition(": ")[2], found["digits-flow/4"].repair.split()[1].removesuffix(".")
    subprocess.run(["sh", "-c", repairs[0]], cwd=repository, check=True)
    assert {each.thing for each in world.audit() if each.kind == "raw_data"} == {"digits-flow/4"}, "read from the bundle alone"
    Path(repairs[1].removeprefix("file://")).unlink()
    after = world.repair()
    assert [each.kind for each in after if each.thing == "digits-flow/4"] == ["commit"] and not any(
        each.repaired for each in after
    )
    assert b"ann,1979" not in b"".join(
        path.read_bytes() for path in repository.rglob("*") if path.is_file() and path.parent.name != "data"
    )


def test_an_unreachable_store_is_a_finding_and_the_rest_is_audited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.store.set_alias(MODEL, "champion", 2)
    (world.home.repository / ".dvc/config").write_text("")  # no remote
    assert {("unreachable", "DVC's remote"), ("alias", "digits-flow@champion")} <= kinds_and_things(world.audit())
    (world.home.path / "ledger.db").write_bytes(b"no database at all" * 100)
    found = world.audit()
    assert ("unreachable", "the ledger") in kinds_and_things(found) and not any(each.kind == "bytes" for each in found)
    (world.home.workspaces / "left").mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{world.home.path}/ledger.db")
    assert {("unreachable", "MLflow"), ("workspace", str(world.home.workspaces / "left"))} <= kinds_and_things(world.audit())
