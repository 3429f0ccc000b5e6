"""remint doctor --production: every part is tried for real, its faults are named with a command, and no probe is left."""

from __future__ import annotations

import http.server
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import sqlalchemy as sa

from flows.stack import doctor
from flows.stack import production as servers
from remint.distributed import probe as devices_probe
from remint.errors import StepError, VersioningError
from remint.maintenance import production
from remint.maintenance.doctor import Symptom
from remint.runtime.home import Home
from remint.settings.params import load_params
from remint.stores.dvc import reach
from remint.stores.ledger import probe as ledger_probe
from remint.stores.ledger.schema import VERSION
from remint.stores.open import open_ledger, open_tracking
from tests.support.mlflow_server import run_server
from tests.support.postgres import Postgres
from tests.support.promotion_cases import copy_home
from tests.support.s3 import Server

pytestmark = pytest.mark.usefixtures("forked")

ROOT = Path(__file__).parents[2]
PIPELINE = "digits-flow"  # the first of params.yaml


@pytest.fixture
def home(make_repository: Callable[[dict[str, str]], Path], empty: Path) -> Home:
    kept = ("params.yaml", ".dvc/config", "deploy/prometheus/alerts.yml")
    repository = make_repository({name: (ROOT / name).read_text() for name in kept})
    (repository / ".dvc/tmp").mkdir()
    copy_home(Home(repository, empty), repository / ".remint")
    return Home(repository, repository / ".remint")


def about(found: Iterator[Symptom] | list[Symptom], *parts: str) -> list[Symptom]:
    """Return the symptoms about these parts. Each has a sentence each, and a remedy."""
    kept = [each for each in found if each.about in parts]
    assert all(each.what.endswith(".") and each.why.endswith(".") and each.do for each in kept), kept
    return kept


def files_of(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


@contextmanager
def answering(text: str, ahead: timedelta = timedelta()) -> Iterator[str]:
    """Run a server with this answer to everything, and a clock that is ahead. Yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", format_datetime(datetime.now(UTC) + ahead, usegmt=True))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()


@pytest.mark.slow
def test_a_whole_installation_of_one_host_passes_and_keeps_no_probe(home: Home) -> None:
    open_ledger(home)
    params = load_params(home.repository)
    doctor.run_doctor(home, params, real=True)  # makes the experiment and the folders that the first run makes
    before = files_of(home.dvc / "remote", home.path / "mlflow/artifacts")
    found = doctor.run_doctor(home, params, real=True)
    assert [(each.about, each.level) for each in found if each.level != "note"] == [("home", "warning"), ("prefect", "missing")]
    assert "REMINT_LEDGER and MLFLOW_TRACKING_URI are files of this host" in about(found, "home")[0].what
    assert files_of(home.dvc / "remote", home.path / "mlflow/artifacts") == before
    with closing(sqlite3.connect(home.path / "ledger.db")) as database:
        assert database.execute("SELECT count(*) FROM leases").fetchone() == (0,)


@pytest.mark.slow
def test_stores_that_take_no_probe_are_named(home: Home) -> None:
    open_ledger(home)
    open_tracking(home).artifact_place(PIPELINE)  # the experiment
    artifacts = home.path / "mlflow/artifacts"
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.write_text("a file where the folder was")
    home.dvc.mkdir(exist_ok=True)
    (home.dvc / "remote").write_text("a file where the folder was")
    with closing(sqlite3.connect(home.path / "ledger.db")) as database:
        database.execute("CREATE TRIGGER refuse BEFORE INSERT ON leases BEGIN SELECT RAISE(ABORT, 'no more rows'); END")
    found = list(production.examine(home, load_params(home.repository)))
    (ledger,), (dvc,), (mlflow,) = about(found, "ledger"), about(found, "dvc"), about(found, "mlflow")
    assert "no more rows" in ledger.what and "GRANT" in ledger.do
    assert "could not be written and read back" in dvc.what and "s3:PutObject" in dvc.do
    assert "could not be written and read back" in mlflow.what and f"EDIT of the experiment {PIPELINE}" in mlflow.do
    assert {each.level for each in (ledger, dvc, mlflow)} == {"missing"}


@pytest.mark.slow
def test_the_probes_pass_through_a_server_of_mlflow_and_s3_and_are_deleted(
    home: Home, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket({})
    monkeypatch.setenv("REMINT_DVC_REMOTE", f"s3://{bucket}/dvc")
    assert reach.probe(home) == "" and list(production._bucket(home)) == []
    now = time.time()
    monkeypatch.setattr(production.time, "time", lambda: now + 3600)
    (symptom,) = about(production._bucket(home), "s3")
    assert "The clock of the S3 server of REMINT_DVC_REMOTE" in symptom.what and "behind this machine's" in symptom.what
    monkeypatch.setattr(production.time, "time", lambda: now)
    assert s3.client.list_objects_v2(Bucket=bucket).get("Contents", []) == []
    with run_server(home.path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        assert list(production._artifacts(home, PIPELINE)) == []
    assert files_of(home.path / "files") == []


class Store:
    """Files of a remote that keeps other bytes, or refuses to delete."""

    def __init__(self, *, other_bytes: bool = False) -> None:
        self.other_bytes, self.content = other_bytes, b""

    def join(self, *parts: str) -> str:
        return "/".join(parts)

    def makedirs(self, *_: object, **__: object) -> None:
        pass

    def pipe_file(self, _place: str, content: bytes) -> None:
        self.content = b"0" * len(content) if self.other_bytes else content

    def cat_file(self, _place: str) -> bytes:
        return self.content

    def rm_file(self, _place: str) -> None:
        raise PermissionError("s3:DeleteObject is denied")


def test_a_remote_that_refuses_to_delete_is_a_note_and_one_with_other_bytes_a_fault(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VersioningError, match="other bytes came back"):
        reach._probe(Store(other_bytes=True), "bucket/dvc")
    kept = reach._probe(Store(), "bucket/dvc")
    assert kept.startswith("bucket/dvc/remint-probe-") and "s3:DeleteObject is denied" in kept
    monkeypatch.setattr(production, "probe_remote", lambda _: kept)
    (symptom,) = about(production._remote(home), "dvc")
    assert symptom.level == "note" and kept in symptom.what


def test_the_ledger_in_postgresql_is_tried_with_the_rights_of_this_role(
    home: Home, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = postgres.database("probed")
    monkeypatch.setenv("REMINT_LEDGER", owner)
    (symptom,) = about(production._ledger(home), "ledger")
    assert f"has no tables, this remint has {VERSION}" in symptom.what and symptom.do == "remint models"
    open_ledger(home)
    assert list(production._ledger(home)) == []
    found = ledger_probe.probe(owner)
    assert found.server >= (11, 0) and abs(found.ahead) < 5 and found.schema == VERSION
    engine = sa.create_engine(owner.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM leases")).scalar() == 0
        connection.execute(sa.text("CREATE ROLE reader LOGIN"))
        connection.execute(sa.text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
        connection.execute(sa.text("UPDATE ledger_schema SET version = 4"))
    engine.dispose()
    (symptom,) = about(production._ledger(home), "ledger")
    assert "has schema 4" in symptom.what and symptom.do == "remint models"
    monkeypatch.setenv("REMINT_LEDGER", owner.replace("//remint@", "//reader@"))
    (symptom,) = about(production._ledger(home), "ledger")
    assert "permission denied for table leases" in symptom.what and "GRANT" in symptom.do
    monkeypatch.setattr(production, "OLDEST", (99, 0))
    monkeypatch.setenv("REMINT_LEDGER", owner)
    assert any("older than 99" in each.what for each in production._ledger(home))


@pytest.mark.parametrize(
    ("text", "ahead", "word"),
    [
        (version("prefect"), 0, ""),
        ("2.20.0", 0, "is version 2.20.0, and this machine has"),
        (version("prefect"), 3600, "s ahead of this machine's"),
        (version("prefect"), -90, "s behind this machine's"),
    ],
)
def test_servers_of_other_versions_and_other_clocks_are_named(text: str, ahead: int, word: str) -> None:
    with answering(f'"{text}"', timedelta(seconds=ahead)) as address:
        found = about(servers._server(doctor.client.prefect(f"{address}/api")), "prefect")
    assert [word in each.what and "127.0.0.1" in each.what for each in found] == ([True] if word else [])


def test_a_clock_may_differ_by_seconds() -> None:
    assert [list(production.clock("ledger", "it", ahead)) for ahead in (-4.9, 0.0, 4.9)] == [[], [], []]
    (symptom,) = production.clock("ledger", "the database", -7.2)
    assert symptom.what == "The clock of the database is 7 s behind this machine's." and "set-ntp" in symptom.do


def test_mlflows_server_is_asked_for_its_version() -> None:
    with answering(version("mlflow")) as address:
        assert list(servers._server(doctor.client.mlflow(address))) == []
    with answering("2.0.0") as address:
        (symptom,) = servers._server(doctor.client.mlflow(address))
    assert "MLflow" in symptom.what and "2.0.0" in symptom.what


def test_the_schema_of_prefects_database_is_compared_where_its_address_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(servers._migrations()) == []
    place = tmp_path / "prefect.db"
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{place}")
    with closing(sqlite3.connect(place)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('of another time')")
    (symptom,) = servers._migrations()
    newest = symptom.what.rpartition(" ")[2].removesuffix(".")
    assert "of another time" in symptom.what and symptom.do.startswith("prefect server database upgrade")
    with closing(sqlite3.connect(place)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (newest,))
    assert list(servers._migrations()) == []
    address = "postgresql+asyncpg://prefect:a-password-of-its@127.0.0.1:9/prefect?ssl=verify-full"
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", address)
    (symptom,) = servers._migrations()
    assert "cannot be read" in symptom.what and "a-password-of-its" not in str(symptom)


@pytest.mark.soak
def test_two_ranks_compute_and_exchange_a_number() -> None:
    """By gloo, on a machine without GPUs. With GPUs the same call uses NCCL."""
    devices_probe.probe(2)


def test_devices_that_fail_are_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is made up: no device here computes wrongly."""

    def fail(_count: int) -> None:
        raise StepError("one of 2 processes failed")

    monkeypatch.setattr(devices_probe, "probe", fail)
    params = load_params(home.repository)
    assert list(production._devices(params)) == [], "no pipeline asks for several"
    vae = params.pipelines[PIPELINE]
    two = vae.model_copy(update={"training": vae.training.model_copy(update={"devices": 2})})
    monkeypatch.setattr("remint.distributed.machine.devices", lambda: 2)
    (symptom,) = about(production._devices(params.model_copy(update={"pipelines": {PIPELINE: two}})), "torch")
    assert "one of 2 processes failed" in symptom.what and "NCCL_DEBUG=INFO" in symptom.do


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine: apt-get install prometheus")
def test_alert_rules_that_are_damaged_or_missing_are_named(home: Home) -> None:
    assert list(production._rules(home.repository)) == []
    rules = home.repository / production.RULES
    rules.write_text(rules.read_text().replace("remint_up) == 0", "remint_up) == == 0"))
    (symptom,) = about(production._rules(home.repository), "alerts")
    assert "promtool refuses deploy/prometheus/alerts.yml" in symptom.what and "git checkout" in symptom.do
    rules.unlink()
    (symptom,) = about(production._rules(home.repository), "alerts")
    assert "is missing" in symptom.what


def test_little_room_for_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(production, "TEMPORARY", 2**62)
    (symptom,) = about(production._temporary(), "disk")
    assert "TMPDIR" in symptom.do
