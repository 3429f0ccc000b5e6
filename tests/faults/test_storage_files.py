"""One object by its SHA-256, from a real S3 server: fetched once, complete or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from remint.errors import DataError, IntegrityError, RemintError, StorageError
from remint.runtime.home import Home
from remint.stores import s3 as storage
from remint.stores.s3 import bucket as door
from tests.support.retraining_cases import Events, params_of, retraining
from tests.support.s3 import PASSWORD, USER, Proxy, Server

pytestmark = pytest.mark.usefixtures("forked")

CONTENT = bytes(range(256)) * 8192
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = "params.yaml: pipelines.x.evaluation.inception.path"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "home").ensure()


def fetch(home: Home, url: str, sha256: str = SHA256) -> Path:
    return storage.fetch_file(home, KEY, url, sha256, lambda _event: None)


def error_of_fetch(home: Home, url: str, kind: type[RemintError], sha256: str = SHA256) -> str:
    with pytest.raises(kind) as caught:
        fetch(home, url, sha256)
    message = str(caught.value)
    assert type(caught.value) is kind and message.startswith(KEY) and "\n" not in message
    assert PASSWORD not in message and USER not in message
    assert not list(home.files.glob("*")) and not list(home.files.glob(".*"))
    return message


def test_a_file_is_fetched_once(home: Home, s3: Server, proxy: Proxy) -> None:
    url = f"s3://{s3.bucket({'nets/weights.pth': CONTENT, 'nets/other.pth': b'other'})}/nets/weights.pth"
    assert fetch(home, url) == home.files / SHA256
    assert (home.files / SHA256).read_bytes() == CONTENT
    requests = (len(proxy.object_paths), proxy.listings)
    assert fetch(home, url) == home.files / SHA256 and (len(proxy.object_paths), proxy.listings) == requests
    (home.files / SHA256).write_bytes(CONTENT[:-1])
    assert fetch(home, url).read_bytes() == CONTENT
    assert [path.name for path in home.files.iterdir()] == [SHA256]


def test_a_file_with_another_digest_is_not_kept(home: Home, s3: Server) -> None:
    url = f"s3://{s3.bucket({'weights.pth': CONTENT})}/weights.pth"
    assert f"its SHA-256 is {SHA256}, expected {'0' * 64}: nothing was kept" in error_of_fetch(
        home, url, IntegrityError, "0" * 64
    )


def test_bytes_changed_in_transit_are_not_kept(home: Home, s3: Server, proxy: Proxy) -> None:
    url = f"s3://{s3.bucket({'weights.pth': CONTENT})}/weights.pth"
    proxy.rewrite = lambda _path, body: body[:-1] + b"?" if len(body) == len(CONTENT) else body
    assert "did not match its size or checksum" in error_of_fetch(home, url, IntegrityError)


@pytest.mark.parametrize("place", ["", "/nets", "/nothing"])
def test_an_address_that_is_not_one_file_is_refused(home: Home, s3: Server, place: str) -> None:
    url = f"s3://{s3.bucket({'nets/a': CONTENT, 'nets/b': CONTENT})}{place}"
    message = error_of_fetch(home, url, DataError)
    assert ("expected the address of one file" in message) == (place != "/nothing")


def test_a_server_that_always_fails_is_one_error(home: Home, s3: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "REQUESTS", 2)
    proxy.failing = 1.0
    assert "S3 failed 2 times" in error_of_fetch(home, f"s3://{s3.bucket({'weights.pth': CONTENT})}/weights.pth", StorageError)


def test_a_flow_fetches_only_the_files_that_its_metrics_need(home: Home, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first step. The file of a metric that is not in the settings can be unreachable."""
    from flows import steps

    monkeypatch.setattr(steps.progress, "reporter", lambda *_: lambda _event: None)  # the reporter would start a Prefect server
    bucket = s3.bucket({"net.pt2": CONTENT})
    blocks = {
        "evaluation": {
            "metrics": ["fd_domain", "fd_program"],
            "program": {"path": f"s3://{bucket}/net.pt2", "sha256": SHA256},
            "inception": {"path": "s3://no-such-bucket/weights.pth"},
        },
        "promotion": {},
    }
    events = Events()
    with retraining(home, params_of("digits-gan", **blocks), "digits-gan", events=events) as job:
        steps.fetch.fn(job)
    assert [path.name for path in home.files.iterdir()] == [SHA256]
    assert set(job.seconds) == {"fetch program"} and [event for event, _ in events] == ["step"]
