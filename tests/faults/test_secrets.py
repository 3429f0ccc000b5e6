"""Thirty secrets, each in a place where a person has one, in a command that fails: none is printed, logged or written (case 29).

tests/e2e/test_access.py searches the files of a whole run.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.server
import io
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.parse
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.server.log_filter import RedactingFilter
from flows.stack import doctor
from remint import cli
from remint.errors import RemintError, RepositoryError
from remint.runtime import processes
from remint.runtime.home import Home
from remint.stores import git as workspace
from remint.stores import s3 as storage
from remint.stores import uncommitted
from remint.stores.dvc import reach as remote
from remint.stores.ledger import chain, database
from remint.stores.mlflow import Tracking
from remint.stores.s3 import bucket as s3_door
from tests.support.leaks import Search, make_secrets
from tests.support.postgres import Postgres
from tests.support.s3 import Server
from tests.support.trials import Trials

pytestmark = pytest.mark.usefixtures("forked")

CLOSED_PORT = "127.0.0.1:9"  # the port "discard", which is closed


@dataclass
class TrialEnvironment:
    """Stores and environment of one trial. ``output``: all messages and logs of the trial."""

    repository: Path
    home: Home
    postgres: Postgres
    s3: Server
    environment: pytest.MonkeyPatch
    output: list[str]

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.environment.setenv(name, value)

    def assert_fails(self, act: Callable[[], object], kind: type[RemintError] = RemintError) -> None:
        """Call ``act``, which must fail with an error of ours. Record its texts for a person and for Prefect's log."""
        stream = io.StringIO()
        handler, logger = logging.StreamHandler(stream), logging.Logger("as of Prefect")
        handler.addFilter(RedactingFilter())
        logger.addHandler(handler)
        with pytest.raises(kind) as caught:
            act()
        logger.error("Encountered an exception: %s", caught.value, exc_info=caught.value)
        self.output += [str(caught.value), repr(caught.value), stream.getvalue()]

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.repository, check=True, capture_output=True)

    def tracking(self, uri: str) -> Tracking:
        return Tracking(uri, self.home.artifacts, self.home.lock("registry"))

    def push(self, url: str = "s3://bucket/dvc") -> None:
        """Record dvc's error about a remote that it cannot use."""
        self.set(REMINT_DVC_REMOTE=url)
        self.assert_fails(lambda: remote.reach(self.home))


def _ledger(place: TrialEnvironment, url: str) -> None:
    place.environment.setattr(database, "ATTEMPTS", 1)
    place.set(REMINT_LEDGER=url)
    place.assert_fails(lambda: chain.Ledger(place.home.ledger_url))


def _mlflow(place: TrialEnvironment, uri: str) -> None:
    place.set(MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    place.assert_fails(lambda: place.tracking(place.home.tracking_uri).names())


def _echo_server(place: TrialEnvironment, **variables: str) -> None:
    """Send a request to a server that echoes the headers in its answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"error_code": "UNAUTHENTICATED", "message": " ".join(str(self.headers).split())}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    echo = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    try:
        place.set(**variables)
        _mlflow(place, f"http://127.0.0.1:{echo.server_port}")
        assert "uthorization" in place.output[0], "it did say what it was sent"
    finally:
        echo.shutdown()
        echo.server_close()


def _s3(place: TrialEnvironment, url: str = "s3://bucket/data", **variables: str) -> None:
    place.environment.setattr(s3_door, "REQUESTS", 1)
    place.set(**variables)
    place.assert_fails(lambda: storage.fetch(place.home, "scans", url, lambda _event: None))


def _own_remote(place: TrialEnvironment, secret: str) -> None:
    own = place.repository / ".dvc/config.local"
    endpoint = f"    endpointurl = {place.s3.address}\n    access_key_id = ada\n    secret_access_key = {secret}\n"
    own.write_text(f"[core]\n    remote = own\n['remote \"own\"']\n    url = s3://bucket/dvc\n{endpoint}")
    place.assert_fails(lambda: remote.reach(place.home))
    own.unlink()


def _uncommitted(place: TrialEnvironment, name: str, content: str) -> None:
    (place.repository / name).write_text(content)
    place.assert_fails(lambda: uncommitted.commit_of_tree(place.repository), RepositoryError)
    (place.repository / name).unlink()


def _origin(place: TrialEnvironment, address: str) -> None:
    """Record the address of origin, as in the tags of a version, and the error of a fetch from it."""
    place.git("remote", "add", "origin", address)
    place.output.append(workspace.origin(place.repository))
    assert place.output[-1] == f"https://{CLOSED_PORT}/team/remint.git"
    assert not workspace.obtain(place.repository, "1" * 40)
    place.assert_fails(lambda: workspace.run_git(place.repository, "fetch", "origin"))
    place.git("remote", "remove", "origin")


def _prefect(place: TrialEnvironment, url: str) -> None:
    place.set(PREFECT_API_URL=url)
    found = doctor.run_doctor(place.home, None)
    assert [each.about for each in found if each.about == "prefect"] == ["prefect"]
    place.output += [each.what for each in found]


def _unexpected_error(place: TrialEnvironment, secret: str) -> None:
    """Record the command line's output for an unexpected error."""

    def raise_error() -> None:
        raise KeyError(f"no {secret} here")

    place.environment.setattr(sys.modules["remint.cli.app"], "app", raise_error)
    with contextlib.redirect_stderr(io.StringIO()) as output, pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and "KeyError" in output.getvalue()
    place.output.append(output.getvalue())


def _child(place: TrialEnvironment, secret: str) -> None:
    """Record the log of a step that prints the secret."""
    log = place.home.path / "child.log"
    command = [sys.executable, "-c", f"print('before'); print('''{secret}'''); print('after')"]
    assert processes.run_process(command, cwd=place.repository, env=dict(os.environ), log=log) == 0
    place.output.append(log.read_text())
    assert place.output[-1].split()[0] == "before" and place.output[-1].split()[-1] == "after"


def _logged(place: TrialEnvironment, secret: str) -> None:
    """Record a log line of Prefect that contains the secret."""
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.Logger("own")
    handler.addFilter(RedactingFilter())
    logger.addHandler(handler)
    logger.warning("signs in with %s", secret)
    assert "signs in with" in stream.getvalue()
    place.output.append(stream.getvalue())


def _address(url: str) -> Callable[[TrialEnvironment, str], str]:
    """Return a function that fills the secret and the server into an address."""
    return lambda place, secret: url.format(
        secret=urllib.parse.quote(secret, safe=""), host=place.postgres.folder, nobody=CLOSED_PORT
    )


def _with_address(act: Callable[..., None], url: str) -> Callable[[TrialEnvironment, str], None]:
    return lambda place, secret: act(place, _address(url)(place, secret))


def _with_variables(act: Callable[..., None], **variables: str) -> Callable[[TrialEnvironment, str], None]:
    def do(place: TrialEnvironment, secret: str) -> None:
        act(
            place,
            **{name: value.format(secret=secret, s3=place.s3.address, nobody=CLOSED_PORT) for name, value in variables.items()},
        )

    return do


KEYS = {"AWS_ENDPOINT_URL": "{s3}", "AWS_ACCESS_KEY_ID": "ada", "AWS_SECRET_ACCESS_KEY": "nothing of worth"}

WAYS: dict[str, Callable[[TrialEnvironment, str], None]] = {
    "the ledger, a wrong password": _with_address(_ledger, "postgresql://locked:{secret}@/postgres?host={host}"),
    "the ledger, a wrong password in the query": _with_address(
        _ledger, "postgresql://locked@/postgres?host={host}&password={secret}"
    ),
    "the ledger, a server that is away": _with_address(_ledger, "postgresql://locked:{secret}@{nobody}/postgres"),
    "the ledger, a database that is none of ours": _with_address(_ledger, "mysql://ada:{secret}@{nobody}/db"),
    "the ledger, an address that is none": _with_address(_ledger, "postgresql://ada:{secret}@host:port/db"),
    "the ledger, a setting that is none": _with_address(
        _ledger, "postgresql://locked:{secret}@/postgres?host={host}&no_such={secret}"
    ),
    "MLflow's database, a wrong password": _with_address(_mlflow, "postgresql+psycopg://locked:{secret}@/postgres?host={host}"),
    "MLflow's database, no such driver": _with_address(_mlflow, "mysql://ada:{secret}@{nobody}/db"),
    "MLflow's server, away": _with_address(_mlflow, "http://ada:{secret}@{nobody}"),
    "MLflow's server, by TLS, away": _with_address(_mlflow, "https://ada:{secret}@{nobody}"),
    "MLflow's password, said back": _with_variables(
        _echo_server, MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="{secret}"
    ),
    "MLflow's token, said back": _with_variables(_echo_server, MLFLOW_TRACKING_TOKEN="{secret}"),
    "MLflow's files on S3, by credentials in the address": lambda place, secret: (
        place.set(REMINT_ARTIFACTS=f"s3://ada:{secret}@bucket/mlflow"),
        place.assert_fails(lambda: place.home.artifacts),
    )[-1],
    "S3, a wrong key": _with_variables(_s3, **{**KEYS, "AWS_SECRET_ACCESS_KEY": "{secret}"}),
    "S3, a wrong name of a key": _with_variables(_s3, **{**KEYS, "AWS_ACCESS_KEY_ID": "{secret}"}),
    "S3, a wrong session": _with_variables(_s3, **{**KEYS, "AWS_SESSION_TOKEN": "{secret}"}),
    "S3, an endpoint with a password": _with_variables(_s3, **{**KEYS, "AWS_ENDPOINT_URL": "http://ada:{secret}@{nobody}"}),
    "S3, a proxy with a password": _with_variables(
        _s3, **{**KEYS, "AWS_ENDPOINT_URL": "http://s3.test", "HTTP_PROXY": "http://ada:{secret}@{nobody}"}
    ),
    "S3, a source with credentials": lambda place, secret: _s3(place, f"s3://ada:{secret}@bucket/data"),
    "DVC's remote, by credentials in the address": lambda place, secret: place.push(f"s3://ada:{secret}@bucket/dvc"),
    "DVC's remote, a wrong key in its settings": _own_remote,
    "DVC's remote, an endpoint with a password": lambda place, secret: (
        place.set(**{**KEYS, "AWS_ENDPOINT_URL": f"http://ada:{secret}@{CLOSED_PORT}"} | {"AWS_ACCESS_KEY_ID": "ada"}),
        place.push(),
    )[-1],
    "git, a token for origin": lambda place, secret: _origin(
        place, f"https://{urllib.parse.quote(secret, safe='')}@{CLOSED_PORT}/team/remint.git"
    ),
    "git, a password for origin": lambda place, secret: _origin(
        place, f"https://ada:{urllib.parse.quote(secret, safe='')}@{CLOSED_PORT}/team/remint.git"
    ),
    "uncommitted work": lambda place, secret: (
        place.set(AWS_SECRET_ACCESS_KEY=secret),
        _uncommitted(place, "notes.txt", f"the key is {secret}\n"),
    )[-1],
    "an uncommitted file of variables": lambda place, secret: _uncommitted(place, ".env", f"AWS_SECRET_ACCESS_KEY={secret}\n"),
    "Prefect's address with a password": _with_address(_prefect, "http://ada:{secret}@{nobody}/api"),
    "a line of Prefect's log": lambda place, secret: (
        place.set(PREFECT_API_AUTH_STRING=f"ada:{secret}"),
        _logged(place, secret),
    )[-1],
    "a mistake of ours": lambda place, secret: (place.set(PREFECT_API_KEY=secret), _unexpected_error(place, secret))[-1],
    "what a child prints": lambda place, secret: (place.set(AWS_SESSION_TOKEN=secret), _child(place, secret))[-1],
}


@pytest.fixture(scope="module")
def password_postgres(postgres: Postgres) -> Postgres:
    """PostgreSQL with a role that needs its password."""
    postgres.add_password_role("locked", "the right one")
    return postgres


@pytest.mark.case(29)
def test_a_planted_secret_is_found_nowhere(
    trials: Trials,
    tmp_path: Path,
    make_repository: Callable[[dict[str, str]], Path],
    password_postgres: Postgres,
    s3_server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(WAYS) == 30
    repository = make_repository(
        {"params.yaml": "datasets: {}\npipelines: {}\n", ".dvc/config": "[core]\n    analytics = false\n"}
    )
    for trial in trials(short=30, full=30):
        name, act = list(WAYS.items())[trial.number]
        (secret,) = make_secrets(trial.random, [name]).values()
        with pytest.MonkeyPatch.context() as environment:
            home = Home(repository, tmp_path / f"home {trial.number}").ensure()
            place = TrialEnvironment(repository, home, password_postgres, s3_server, environment, [])
            act(place, secret)
        search = Search([secret])
        shown = capsys.readouterr()
        search.texts("what was said", *place.output, shown.out, shown.err)
        search.tree(tmp_path)
        search.git(repository)
        assert place.output and not any(search.found.values()), (name, search.found, place.output)
        trial.note(found=sum(len(places) for places in search.found.values()))


def test_the_search_finds_each_planted_word(
    tmp_path: Path, make_repository: Callable[[dict[str, str]], Path], postgres: Postgres
) -> None:
    """In a file, a nested archive, git, a table, and encoded as in a header: without this test an empty result shows nothing."""
    import psycopg

    word = "planted/word-of-some-length"
    search = Search([word, "another word"])
    (tmp_path / "plain").write_text(f"x{word}y")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("inner.gz", gzip.compress(word.encode()))
    search.tree(tmp_path)
    search.git(make_repository({"file": word}))
    url = postgres.database("searched")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE words AS SELECT %s::text AS word", (word,))
    search.postgres(url)
    for user in ("a", "ad", "ada"):
        search.texts(f"header of {user}", base64.b64encode(f"{user}:{word}".encode()).decode())
    search.texts("address", urllib.parse.quote(word, safe=""))
    places = search.found[word]
    assert len(places) == 8, places
    assert search.found["another word"] == []
