"""remint gc on real stores: it removes only things that no root needs, also if its process is killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from remint.errors import IntegrityError, NotFoundError, RunError, TrackingError
from remint.maintenance import audit
from remint.maintenance.gc import Collection, apply, plan
from remint.maintenance.gc.data import garbage
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.dvc import collect as sweep
from remint.stores.dvc import locked
from remint.stores.dvc.collect import Object
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.mlflow import Tracking, VersionTags, removal
from remint.stores.open import open_ledger, open_shadow_counts, open_tracking
from tests.support import collect_cases as cases
from tests.support import shadow_cases
from tests.support.collect_cases import World
from tests.support.promotion_cases import copy_home, mlflow_gc
from tests.support.s3 import Server

pytestmark = pytest.mark.usefixtures("forked")

Make = Callable[[int], World]


@pytest.fixture
def make(make_repository: Callable[[dict[str, str]], Path], empty: Path) -> Make:
    def make_world(count: int) -> World:
        repository = make_repository(cases.FILES)
        shutil.copytree(empty, repository / ".remint")
        return cases.make_world(repository, count)

    return make_world


def things(answer: Collection, store: str) -> set[str]:
    return {each.thing for each in answer.garbage if each.store == store}


def test_counted_answers_go_a_while_after_their_shadow_ended(make: Make) -> None:
    world = make(3)
    book, counts, now = open_ledger(world.home), open_shadow_counts(world.home), datetime.now(UTC)
    requests = {}
    waits = {"gone": (9, 90, 80), "old": (1, 60, 40), "recent": (2, 20, 10)}  # version; days ago that it began, that it ended
    for name, (version, began, ended) in {**waits, "waiting": (1, 5, None)}.items():
        for action, days in (("awaiting_shadow", began), ("refused", ended)):
            if days is not None:
                fields = {"who": "gate", "why": "", "evidence": "e", "champion_after": 3, "expected_champion": 3}
                row = book.append("m", action, version, at=now - timedelta(days=days), **fields)
                requests.setdefault(name, row.hash)
        for part in range(2):
            counts.append(requests[name], "server", part, shadow_cases.counts(5))
    assert things(world.gc(older_than=100.0), "ledger") == {requests["gone"]}, "no age helps without a version"
    listed = world.gc(older_than=30.0)
    assert things(listed, "ledger") == {requests["gone"], requests["old"]}
    assert {each.bytes for each in listed.garbage if each.store == "ledger"} == {
        2 * len(shadow_cases.counts(5).model_dump_json())
    }
    assert all(len(counts.of(request)) == 2 for request in requests.values()), "it was only listed"
    world.gc(apply=True, older_than=30.0)
    assert [len(counts.of(requests[name])) for name in ("gone", "old", "recent", "waiting")] == [0, 0, 2, 2]
    world.gc(apply=True)
    assert counts.of(requests["recent"]) == [] and len(counts.of(requests["waiting"])) == 2


def assert_roots_are_whole(world: World, *numbers: int) -> None:
    """Check that these versions load, their data are in cache or remote, and audit finds no damage."""
    store = open_tracking(world.home)
    for number in numbers:
        version = store.version(f"m/{number}")
        store.fetch(version, world.home.path / "fresh" / str(number))
        shutil.rmtree(world.home.path / "fresh")
        lock = store.attachment(version, "dvc.lock", world.home.path / "lock")
        for stage in ("snapshot@digits", "prepare@digits"):
            md5 = locked(lock, stage)["md5"]
            assert md5 in world.objects("cache") | world.objects("remote")
    assert [found for found in audit.findings(world.home) if found.damages] == []


def test_gc_removes_only_things_that_no_root_needs(make: Make) -> None:
    world = make(3)
    home, store = world.home, open_tracking(world.home)
    store.set_tags(store.version("m/1"), VersionTags(keep="a paper cites it"))
    theirs = store._client.create_run(store._client.create_experiment("theirs")).info.run_id
    store._client.set_terminated(theirs)
    failed = store.start_run("m", {}, {})
    store.end_run(failed, "FAILED", "no luck")
    git.run_git(home.repository, "update-ref", "refs/heads/theirs", world.versions[2].commit)
    (home.fetched / "kept").mkdir(parents=True)
    (home.fetched / "kept+held_out").mkdir()
    (home.fetched / "gone").mkdir()
    (home.fetched / ".gone.json").write_text("{}")
    (home.path / ".promote-killed").mkdir()
    stray = home.path / "mlflow" / "artifacts" / "m" / ("f" * 32)
    (stray / "artifacts").mkdir(parents=True)
    (stray / "artifacts" / "page").write_text("ten bytes!")
    before = {place: world.objects(place) for place in ("cache", "remote")}

    assert world.gc(older_than=1.0).garbage == (), "what is young stays, with all that it needs"
    answer = world.gc()
    gone, version = world.outputs[2], world.versions[2]
    assert {root.version.ref for root in answer.roots} == {"m/1", "m/3"}
    assert things(answer, "MLflow") == {"m/2", f"run {version.run_id}", f"run {failed}", f"files {'f' * 32}"}
    assert things(answer, "git") == {f"refs/remint/{version.commit}"}
    assert things(answer, "DVC run cache") == {f"ab/{2:064x}"}
    for place in ("cache", "remote"):
        assert {md5 for md5 in things(answer, f"DVC {place}") if md5.endswith(".dir")} == set(gone)
        assert len(things(answer, f"DVC {place}")) == 4, "two folders, and in each the one file that no other version has"
    assert things(answer, "home") == {
        f"models/{version.key}",
        "reports/m/2",
        "evaluations/of2",
        "fetched/gone",
        "fetched/.gone.json",
        ".promote-killed",
    }
    listed = answer.to_json()
    assert list(listed) == ["applied", "garbage", "bytes", "roots", "notes", "damaged"]
    assert (listed["applied"], listed["damaged"]) == (False, None) and listed["bytes"] == sum(
        each["bytes"] for each in listed["garbage"]
    )
    assert [list(each) for each in listed["roots"]] == [["version", "why"]] * 2
    assert {tuple(each) for each in listed["garbage"]} == {("store", "thing", "bytes", "why")}
    assert min(each.bytes for each in answer.garbage if each.store.startswith("DVC")) > 0
    assert next(each.bytes for each in answer.garbage if each.thing == f"run {version.run_id}") > 1000
    assert {place: world.objects(place) for place in before} == before, "a list removes nothing"

    applied = world.gc(apply=True)
    assert applied.garbage == answer.garbage and applied.damaged == ()
    assert_roots_are_whole(world, 1, 3)
    with pytest.raises(NotFoundError):
        store.version("m/2")
    assert CollectedVersions(home.ledger_url).versions("m") == {2}
    assert [row.version for row in open_ledger(home).rows("m")] == [1, 2, 3], "the ledger stays"
    assert not (home.path / "mlflow" / "artifacts" / "m" / version.run_id).exists()
    assert not stray.exists()
    assert not (home.dvc / "cache" / "runs" / "ab" / f"{2:064x}").exists(), "at a key's empty folder dvc fails"
    assert store._client.get_run(theirs).info.lifecycle_stage == "active"
    assert git.run_git(home.repository, "rev-parse", "refs/heads/theirs").strip() == version.commit
    for place, was in before.items():
        assert was - world.objects(place) == things(answer, f"DVC {place}")
    assert (home.fetched / "kept").exists() and (home.fetched / "kept+held_out").exists()
    again = world.gc()
    assert again.garbage == () and again.bytes == 0


def test_nothing_is_removed_while_a_root_is_damaged(make: Make) -> None:
    world = make(2)
    place = world.home.path / "mlflow" / "artifacts" / "m" / world.versions[2].run_id
    shutil.rmtree(world.home.path / "models" / world.versions[2].key)
    (next(place.rglob("weights.safetensors"))).write_bytes(b"other")
    before = world.objects("cache")
    with pytest.raises(IntegrityError, match=r"m/2, which must be kept, is damaged: m/2: .*Nothing was removed"):
        world.gc(apply=True)
    assert open_tracking(world.home).version("m/1").version == 1
    assert world.objects("cache") == before


def test_an_artifact_address_outside_the_run_is_not_emptied(registered: Home, tmp_path: Path) -> None:
    store = open_tracking(copy_home(registered, tmp_path / "home"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    run = next(run for run in removal.ended_runs(store) if run.version)
    for place in (str(mine), mine.as_uri(), f"s3://bucket/{run.id}.old"):
        with pytest.raises(IntegrityError, match="not a folder of this run: nothing was removed"):
            removal.remove_run(store, replace(run, place=place))
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    assert run in removal.ended_runs(store) and removal.size(store, run.place)
    assert removal.remove_run(store, run) and not removal.size(store, run.place)


def test_an_outage_of_mlflow_makes_no_data_garbage(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is no root does not keep its data if its dvc.lock is lost; it does if its dvc.lock is unreachable."""
    from mlflow import MlflowException

    world = make(2)

    def refuse_connection(**_: object) -> None:
        raise MlflowException("Connection refused")

    def find_garbage() -> tuple[list[Object], list[str]]:
        return garbage(world.home, [], world.versions.values(), time.time() + 60)

    before = find_garbage()
    with (
        monkeypatch.context() as patch,
        pytest.raises(TrackingError, match="could not fetch dvc.lock of m/1: Connection refused"),
    ):
        patch.setattr("mlflow.artifacts.download_artifacts", refuse_connection)
        find_garbage()
    assert find_garbage() == before


@pytest.mark.soak
def test_gc_keeps_things_that_a_job_may_use_and_versions_that_become_roots(make: Make) -> None:
    world = make(2)
    (world.home.workspaces / "of-a-dead-job").mkdir(parents=True)
    before = {place: world.objects(place) for place in ("cache", "remote")}
    with jobs.live(world.home, pipeline="m", flow_run="") as job:
        (world.home.workspaces / job.id).mkdir()
        answer = world.gc(apply=True)
        assert [(each.store, each.thing) for each in answer.garbage] == [("home", "workspaces/of-a-dead-job")]
        assert "jobs are running (m): DVC" in answer.notes[0]
        assert {path.name for path in world.home.workspaces.iterdir()} == {job.id}
    assert {place: world.objects(place) for place in before} == before
    with jobs.live(world.home, pipeline="other", flow_run=""):
        assert things(world.gc(), "MLflow") == {"m/1"}, "a model that no job is of; its run waits, as all runs do"

    planned = plan(world.home, 0.0, 1, lambda _text: None)
    assert "m/1" in {each.thing for each in planned.garbage}
    cases.promote(open_ledger(world.home), 1, 2)
    with pytest.raises(RunError, match="m/1 became a root during the collection: nothing was removed"):
        apply(planned, lambda _text: None)
    assert open_tracking(world.home).version("m/1").version == 1
    assert {place: world.objects(place) for place in before} == before
    assert CollectedVersions(world.home.ledger_url).versions("m") == frozenset()


def test_a_job_waits_while_gc_removes_things(make_repository: Callable[[dict[str, str]], Path]) -> None:
    home = Home.of(make_repository({"a": "b"})).ensure()
    program = "import sys; from pathlib import Path; from remint.runtime import jobs; from remint.runtime.home import Home\nwith jobs.live(Home(Path(), Path(sys.argv[1]))): print('begun')"
    with jobs.collecting(home):
        assert jobs.is_collecting(home)
        child = subprocess.Popen([sys.executable, "-c", program, str(home.path)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(2)
        assert jobs.alive(home) == [] and not list(home.jobs.glob("*"))
    assert child.communicate(timeout=20)[0] == "begun\n"
    assert not jobs.is_collecting(home)


@pytest.mark.soak
def test_gc_killed_at_any_point_leaves_the_roots_intact_and_the_next_gc_finishes(make: Make) -> None:
    world = make(3)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.collect_cases", str(world.home.repository)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{point} {-signal.SIGKILL}" for point in cases.POINTS], done.stderr
    assert {md5 for md5 in world.objects("remote") if md5.endswith(".dir")} == set(world.outputs[3]), "listings went first"
    assert len(world.objects("remote")) > len(world.outputs[3]) + 5, "and their files were left"
    world.gc(apply=True)
    assert_roots_are_whole(world, 3)
    assert world.gc().garbage == ()
    assert {version.version for version in open_tracking(world.home).versions("m")} == {3}
    assert len(world.objects("remote")) == len(world.outputs[3]) + 3 + len(cases.USER_FILES)


def test_a_version_marked_for_removal_cannot_become_champion(tmp_path: Path) -> None:
    book, gone = Ledger(f"sqlite:///{tmp_path}/ledger.db"), CollectedVersions(f"sqlite:///{tmp_path}/ledger.db")
    cases.promote(book, 1, None)
    gone.record("m", {2: "k"})
    with pytest.raises(NotFoundError, match=r"m/2 was removed by remint gc on \d{4}-\d\d-\d\d: nothing was written"):
        cases.promote(book, 2, 1)
    gone.forget("m", [2])
    cases.promote(book, 2, 1)
    gone.record("m", {1: "k"})
    with pytest.raises(NotFoundError, match="m/1 was removed by remint gc"):
        book.append("m", "rolled_back", 2, champion_after=1, who="w", why="y", evidence="", expected_champion=2)
    cases.promote(book, 1, 2, "kept")
    assert book.champion("m") == 2


def dvc_gc(world: World, *, cloud: bool) -> None:
    from dvc.repo import Repo

    with contextlib.chdir(world.home.repository):
        Repo().gc(workspace=True, cloud=cloud, force=True)


def damages(world: World) -> set[str | None]:
    return {found.damages for found in audit.findings(world.home)} - {None}


@pytest.mark.soak
def test_after_the_gc_of_mlflow_or_dvc_the_champion_is_intact_or_audit_reports_it(make: Make) -> None:
    world = make(2)
    champion = world.versions[2]
    world.gc(apply=True)
    mlflow_gc(world.home)
    dvc_gc(world, cloud=False)
    assert_roots_are_whole(world, 2)
    assert not world.objects("cache") & set(world.outputs[2]), "dvc gc knows of no version; the remote has its data"

    store = open_tracking(world.home)
    store._client.delete_run(champion.run_id)
    assert damages(world) == {"m/2"}
    with pytest.raises(IntegrityError, match="m/2, which must be kept, is damaged"):
        world.gc(apply=True)
    store._client.restore_run(champion.run_id)
    assert damages(world) == set()

    dvc_gc(world, cloud=True)
    assert damages(world) == {"m/2"}, "its data are gone"
    with pytest.raises(IntegrityError, match="m/2, which must be kept, is damaged"):
        world.gc(apply=True)
    store._client.delete_run(champion.run_id)
    mlflow_gc(world.home)
    assert damages(world) == {"m/2"}, "and now its bytes"


def test_removed_runs_free_their_objects_on_s3(s3: Server, empty: Path, tmp_path: Path) -> None:
    shutil.copytree(empty, tmp_path / "home")
    store = Tracking(f"sqlite:///{tmp_path}/home/mlflow/mlflow.db", f"s3://{s3.bucket({})}/runs", tmp_path / "home" / "lock")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "page").write_bytes(b"x" * 1000)
    ids = [store.start_run("m", {}, {}) for _ in range(2)]
    for run_id in ids:
        store.log_file(run_id, tmp_path / "report")
        store.end_run(run_id, "FAILED")
    first, second = sorted(removal.ended_runs(store), key=lambda run: ids.index(run.id))
    assert removal.size(store, first.place) == 1000
    assert removal.remove_run(store, first)
    assert [run.id for run in removal.ended_runs(store)] == [second.id]
    assert removal.size(store, first.place) == 0 and removal.size(store, second.place) == 1000


def test_gc_removes_only_unneeded_objects_from_a_remote_on_s3(
    s3: Server, make_repository: Callable[[dict[str, str]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.of(make_repository(cases.FILES)).ensure()
    md5 = {text: hashlib.md5(text.encode()).hexdigest() for text in ("kept", "gone")}
    tree = json.dumps([{"md5": md5["kept"], "relpath": "file"}])
    listing = f"{hashlib.md5(tree.encode()).hexdigest()}.dir"
    files = {md5["kept"]: b"kept", md5["gone"]: b"gone", listing: tree.encode()}
    bucket = s3.bucket({f"data/files/md5/{name[:2]}/{name[2:]}": content for name, content in files.items()})
    s3.put(bucket, "data/readme", b"nothing of dvc's")
    monkeypatch.setenv("REMINT_DVC_REMOTE", f"s3://{bucket}/data")
    for name, content in files.items():
        place = home.dvc / "cache" / "files" / "md5" / name[:2]
        place.mkdir(parents=True, exist_ok=True)
        (place / name[2:]).write_bytes(content)
    found = sweep.unneeded(home, {listing}, float("inf"))
    assert found == [Object("cache", md5["gone"], 4), Object("remote", md5["gone"], 4)]
    assert sweep.unneeded(home, set(), 0.0) == [], "all is young"
    sweep.remove(home, found)
    sweep.remove(home, found)
    left = {each["Key"] for each in s3.client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert left == {"data/readme", *(f"data/files/md5/{name[:2]}/{name[2:]}" for name in files if name != md5["gone"])}
