"""A registry grows up: from SQLite and folders to a real PostgreSQL and a real S3 server, with nothing lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from remint.errors import Busy, IntegrityError, NotFoundError, SettingsError, UserError
from remint.maintenance import audit, state
from remint.maintenance.state import Imported
from remint.promotion import decide, queries
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.runtime import jobs, manifest
from remint.runtime.addresses import with_driver
from remint.runtime.home import Home
from remint.serving.load import load_version
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.ledger.schema import DATA
from remint.stores.ledger.spreads import SeedSpread
from remint.stores.mlflow.moving import ADDRESSES
from remint.stores.open import open_ledger, open_serving_events, open_spreads, open_tracking
from tests.support import promotion_cases as cases
from tests.support.postgres import Postgres
from tests.support.promotion_cases import MODEL
from tests.support.s3 import Server

pytestmark = pytest.mark.usefixtures("forked")

Dump = dict[str, list[dict[str, Any]]]


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    """Installation of one person, with rows in every table of the ledger but two."""
    home = cases.copy_home(registered, tmp_path / "home")
    for action, version in (("promoted", 1), ("kept", 2), ("promoted", 3), ("awaiting_approval", 4)):
        cases.record_decision(home, action, version)  # type: ignore[arg-type]
    open_ledger(home).append(
        MODEL,
        "rolled_back",
        3,
        champion_after=1,
        who="ada",
        why="größer",
        evidence="",
        expected_champion=3,
        seen="0 1f 2f",
        at=datetime(2026, 5, 1, tzinfo=UTC),
    )
    sync_mlflow_to_ledger(home, MODEL)
    open_serving_events(home).append(MODEL, "loaded", 1, "host", "first")
    spread = SeedSpread(pipeline=MODEL, recipe="r", dataset="d", seeds=(0, 1), values={"nll": (1.5, 1.25)})
    open_spreads(home).record(spread, "ada")
    CollectedVersions(home.ledger_url).record(MODEL, {9: "k" * 64})
    return home


@pytest.fixture
def stores(postgres: Postgres, s3: Server, request: pytest.FixtureRequest) -> dict[str, str]:
    """Addresses of empty stores of a team."""
    name = f"t{abs(hash((request.node.name, os.getpid()))):x}"
    return {
        "REMINT_LEDGER": postgres.database(f"{name}_ledger"),
        "MLFLOW_TRACKING_URI": postgres.database(f"{name}_mlflow"),
        "REMINT_ARTIFACTS": f"s3://{s3.bucket({'keep': b'1'})}/mlflow",
    }


def at(stores: Mapping[str, str], home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a home on another machine, with these stores."""
    for name, value in stores.items():
        monkeypatch.setenv(name, value)
    return Home(home.repository.parent / "elsewhere", home.repository.parent / "elsewhere").ensure()


def ledger_rows(url: str) -> Dump:
    with sa.create_engine(with_driver(url), poolclass=sa.NullPool).connect() as connection:
        found = {table.name: connection.execute(sa.select(table)).mappings() for table in DATA}
        return {name: sorted(map(dict, rows), key=json.dumps) for name, rows in found.items()}


def mlflow_rows(uri: str) -> Dump:
    """Return all rows by table, read by reflection: with no list of tables or types of remint's or MLflow's."""
    engine, metadata = sa.create_engine(with_driver(uri), poolclass=sa.NullPool), sa.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        found = {name: connection.execute(sa.select(table)).mappings() for name, table in metadata.tables.items()}
        return {name: sorted(map(dict, rows), key=lambda row: json.dumps(row, default=str)) for name, rows in found.items()}


def without_addresses(dump: Dump) -> Dump:
    return {
        name: [{k: v for k, v in row.items() if k not in ADDRESSES.get(name, ())} for row in rows] for name, rows in dump.items()
    }


def quiet(_text: str) -> None:
    pass


def found_before(home: Home) -> set[tuple[str, str]]:
    """Return what an audit finds in the old stores: this home has no git and no data."""
    return {(each.kind, each.thing) for each in audit.findings(home)}


def check_moved(old: Home, new: Home, done: Imported, before: set[tuple[str, str]]) -> None:
    """Hold the new stores against the old ones, row by row and byte by byte."""
    assert {(each.kind, each.thing) for each in done.findings} == before
    new_uri, new_ledger = new.tracking_uri, new.ledger_url
    old_dump, new_dump = mlflow_rows(f"sqlite:///{old.path}/mlflow/mlflow.db"), mlflow_rows(new_uri)
    assert without_addresses(new_dump) == without_addresses(old_dump)
    assert all("/home/" not in str(row[name]) for table, names in ADDRESSES.items() for row in new_dump[table] for name in names)
    rows = ledger_rows(f"sqlite:///{old.path}/ledger.db")
    assert ledger_rows(new_ledger) == rows and len(rows["ledger"]) == 5
    assert open_tracking(new).aliases(MODEL) == {"champion": 1}
    history = queries.history(new, MODEL, verify=True)
    assert history.findings == () and history.kept_hashes > 1


def test_nothing_is_lost_on_the_way_to_postgresql_and_s3(
    home: Home, stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Server
) -> None:
    drawn = {number: load_version(home, f"{MODEL}/{number}").sample(2, seed=7).tolist() for number in (1, 2, 3, 4)}
    before = {each.version: each for each in open_tracking(home).versions(MODEL)}
    found = found_before(home)
    exported = state.export_state(home, tmp_path / "state", quiet)
    assert (exported.models, exported.rows) == ({MODEL: 4}, 5)

    new = at(stores, home, monkeypatch)
    done = state.import_state(new, tmp_path / "state", quiet)
    assert done.models == {MODEL: 4} and done.files == exported.files and done.ledger and done.mlflow
    check_moved(home, new, done, found)
    after = {each.version: each for each in open_tracking(new).versions(MODEL)}
    assert after == before, "number, key, tags, times, run and text"
    assert {number: load_version(new, f"{MODEL}/{number}").sample(2, seed=7).tolist() for number in drawn} == drawn
    assert not (tmp_path / "state/unfinished").exists()

    again = state.import_state(new, tmp_path / "state", quiet)
    assert (again.ledger, again.mlflow, again.files, again.models) == (0, 0, 0, {MODEL: 4})

    # It goes on: the next version, run, experiment and row follow those of before.
    monkeypatch.setattr("remint.promotion.decide.fresh.check", lambda bundle, log: "not looked at")
    assert cases.register_model(new, seed=9).version == 5
    made: Any = open_tracking(new)
    assert int(made._client.create_experiment("later")) > max(
        int(row["experiment_id"]) for row in mlflow_rows(new.tracking_uri)["experiments"][:-1]
    )
    assert decide.promote(new, f"{MODEL}/5", "better", 1).sequence == 6
    assert open_ledger(new).verify(MODEL) == []
    objects = s3.client.list_objects_v2(Bucket=stores["REMINT_ARTIFACTS"].split("/")[2], Prefix="mlflow/")["Contents"]
    assert len(objects) > exported.files, "files of the new version lie beside the old ones"
    with pytest.raises(UserError, match="has other content"):
        state.import_state(new, tmp_path / "state", quiet)
    assert open_ledger(new).champion(MODEL) == 5, "and nothing was lost by the refusal"


@pytest.mark.parametrize(
    "moments",
    [
        ("file:5", "ledger:4"),
        pytest.param(("file:0", "file:5", "mlflow:3", "mlflow:60", "ledger:0", "ledger:4"), marks=pytest.mark.soak),
    ],
)
def test_an_import_that_is_killed_goes_on(
    moments: tuple[str, ...], home: Home, stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process is killed while it writes files, within MLflow's rows, between the databases and within the ledger's rows."""
    found = found_before(home)
    exported = state.export_state(home, tmp_path / "state", quiet)
    new = at(stores, home, monkeypatch)
    for moment in moments:
        program = [sys.executable, "-m", "tests.support.registry_moves", str(new.path), str(tmp_path / "state"), moment]
        killed = subprocess.run(program, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stdout, killed.stderr)
    done = state.import_state(new, tmp_path / "state", quiet)
    assert done.ledger > 0 and done.mlflow == 0 and done.files == 0, "the last kills were within the ledger's rows"
    assert exported.files > 5
    check_moved(home, new, done, found)


def test_an_export_that_is_killed_goes_on_and_is_no_state_before_its_end(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"

    def cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("remint.maintenance.state.exporting._copy", cut)
        with pytest.raises(KeyboardInterrupt):
            state.export_state(home, folder, quiet)
    with pytest.raises(NotFoundError, match="no whole state: the export did not end: run it again"):
        state.import_state(home, folder, quiet)
    first = state.export_state(home, folder, quiet)
    (folder / "files/left").write_text("of an earlier export")
    cases.record_decision(home, "rejected", 4)
    second = state.export_state(home, folder, quiet)
    assert (second.files, second.rows) == (first.files, first.rows + 1) and not (folder / "files/left").exists()


def test_stores_with_other_content_are_refused_and_keep_it(
    home: Home, registered: Home, stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Server
) -> None:
    exported = state.export_state(home, tmp_path / "state", quiet)
    name = json.loads((tmp_path / "state/files.jsonl").read_text().splitlines()[0])["name"]
    assert exported.files
    new = at(stores, home, monkeypatch)
    bucket = stores["REMINT_ARTIFACTS"].split("/")[2]
    s3.put(bucket, f"mlflow/{name}", b"of another installation")
    with pytest.raises(UserError, match="is there with other bytes: it was not touched"):
        state.import_state(new, tmp_path / "state", quiet)
    assert s3.client.get_object(Bucket=bucket, Key=f"mlflow/{name}")["Body"].read() == b"of another installation"
    assert open_ledger(new).models() == [] and open_tracking(new).names() == []

    s3.delete(bucket, f"mlflow/{name}")
    cases.append_row(new, "kept", 1)
    before = ledger_rows(new.ledger_url)
    with pytest.raises(UserError, match="has other content: its table .* Nothing was written") as refused:
        state.import_state(new, tmp_path / "state", quiet)
    assert refused.value.exit_status == 2 and "\n" not in str(refused.value)
    assert ledger_rows(new.ledger_url) == before and open_tracking(new).names() == []


@pytest.mark.soak
def test_a_damaged_state_is_refused(home: Home, stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.export_state(home, tmp_path / "state", quiet)
    new = at(stores, home, monkeypatch)
    weights = next((tmp_path / "state/files").rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="weights.safetensors is damaged or missing"):
        state.import_state(new, tmp_path / "state", quiet)
    with sa.create_engine(f"sqlite:///{tmp_path}/state/ledger.db").begin() as connection:
        connection.exec_driver_sql("UPDATE ledger SET why = 'as I like it'")
    with pytest.raises(IntegrityError, match=r"ledger.db is damaged or missing"):
        state.import_state(new, tmp_path / "state", quiet)
    assert open_ledger(new).models() == []


def test_what_cannot_be_exported_whole_is_refused(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(SettingsError, match="holds other things"):
        state.export_state(home, tmp_path / "other", quiet)
    with jobs.live(home, pipeline=MODEL), pytest.raises(Busy, match=f"{MODEL} is running here"):
        state.export_state(home, tmp_path / "state", quiet)
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(SettingsError, match="set it to that of the server's database"):
            state.export_state(home, tmp_path / "state", quiet)
    cases.execute_sql(home, "UPDATE ledger SET why = 'as I like it' WHERE sequence = 2")
    with pytest.raises(IntegrityError, match="does not verify, and nothing was exported"):
        state.export_state(home, tmp_path / "state", quiet)
    assert not (tmp_path / "state/state.json").exists()


@pytest.mark.soak
def test_a_state_also_moves_back_to_sqlite_and_a_folder(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And from an experiment whose files lie outside of REMINT_ARTIFACTS."""
    elsewhere = tmp_path / "archive"
    shutil.move(home.path / "mlflow/artifacts", elsewhere)
    with sa.create_engine(f"sqlite:///{home.path}/mlflow/mlflow.db").begin() as connection:
        for table, names in ADDRESSES.items():
            for name in names:
                connection.exec_driver_sql(
                    f"UPDATE {table} SET {name} = replace({name}, '{home.path}/mlflow/artifacts', '{elsewhere}')"
                )
    state.export_state(home, tmp_path / "state", quiet)
    monkeypatch.setenv("REMINT_ARTIFACTS", str(tmp_path / "new files"))
    new = Home(tmp_path / "small", tmp_path / "small").ensure()
    done = state.import_state(new, tmp_path / "state", quiet)
    assert done.models == {MODEL: 4}
    shutil.rmtree(elsewhere)
    monkeypatch.delenv("REMINT_ARTIFACTS")
    bundle = open_tracking(new).fetch(open_tracking(new).version(f"{MODEL}/3"), tmp_path / "back")
    manifest.verify(bundle)


@pytest.mark.soak
def test_a_team_exports_from_postgresql_and_its_files_stay_on_s3(
    home: Home, stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.export_state(home, tmp_path / "state", quiet)
    new = at(stores, home, monkeypatch)
    state.import_state(new, tmp_path / "state", quiet)
    again = state.export_state(new, tmp_path / "again", quiet)
    assert (again.files, again.roots, again.models, again.rows) == (0, {}, {MODEL: 4}, 5)
    assert mlflow_rows(f"sqlite:///{tmp_path}/again/mlflow.db") == mlflow_rows(new.tracking_uri)
    assert ledger_rows(f"sqlite:///{tmp_path}/again/ledger.db") == ledger_rows(new.ledger_url)
    for name in ("REMINT_LEDGER", "MLFLOW_TRACKING_URI", "REMINT_ARTIFACTS"):
        monkeypatch.delenv(name)
    small = Home(tmp_path / "small", tmp_path / "small").ensure()
    assert state.import_state(small, tmp_path / "again", quiet).models == {MODEL: 4}
    assert (
        load_version(small, f"{MODEL}/3").sample(2, seed=7).tolist()
        == load_version(home, f"{MODEL}/3").sample(2, seed=7).tolist()
    )
