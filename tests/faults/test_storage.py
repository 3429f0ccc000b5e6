"""A bucket that fails, refuses, sends wrong bytes or changes while it is read: no wrong byte is kept, and errors are one line."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remint.errors import DataError, IntegrityError, Interrupted, RemintError, StorageError
from remint.runtime import processes
from remint.runtime.home import Home
from remint.stores import s3 as storage
from remint.stores.s3 import bucket as door
from remint.stores.s3 import folder
from tests.support.ports import free_port
from tests.support.s3 import PASSWORD, USER, Proxy, Server

pytestmark = pytest.mark.usefixtures("forked")

OBJECTS = {f"p/{i}": bytes([i]) * 1000 for i in range(40)}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "home").ensure()


@pytest.fixture
def two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts for each request: more do not help here."""
    monkeypatch.setattr(door, "REQUESTS", 2)


def fetch(home: Home, bucket: str, prefix: str = "p") -> storage.FetchResult:
    return storage.fetch(home, "x", f"s3://{bucket}/{prefix}", lambda _event: None)


def error_of_fetch(home: Home, bucket: str, kind: type[RemintError]) -> str:
    """Return the error of a fetch. Checks that it is one line without a secret."""
    with pytest.raises(kind) as caught:
        fetch(home, bucket)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message
    assert message.startswith(f"params.yaml: datasets.x.source: s3://{bucket}/p: ")
    assert PASSWORD not in message and USER not in message
    assert caught.value.__suppress_context__, "a log shows what an error came from, and that may hold a secret"
    return message


def fetched_files(home: Home) -> dict[str, bytes]:
    folder = home.fetched / "x"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def all_files(count: int = 40) -> dict[str, bytes]:
    return {str(i): bytes([i]) * 1000 for i in range(count)}


def test_a_fetch_succeeds_when_a_third_of_the_answers_is_slow_down(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket = s3.bucket(OBJECTS)
    proxy.failing = 0.3
    fetch(home, bucket)
    assert fetched_files(home) == all_files()
    assert proxy.refused >= 8


@pytest.mark.usefixtures("two_attempts")
def test_a_server_that_always_fails_is_one_error(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket = s3.bucket({"p/a": b"a"})
    proxy.failing = 1.0
    message = error_of_fetch(home, bucket, StorageError)
    assert "S3 failed 2 times (last: 503 SlowDown): run again later" in message
    assert proxy.listings == 2


@pytest.mark.usefixtures("s3", "two_attempts")
def test_an_unreachable_server_is_one_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:{PASSWORD}@127.0.0.1:{port}")
    assert f"out of reach at 127.0.0.1:{port} (EndpointConnectionError): check the network" in error_of_fetch(
        home, "any", StorageError
    )


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("endpoint", [f"http://{PASSWORD} x", PASSWORD, "http://[1"])
def test_an_invalid_endpoint_is_an_error_that_names_its_variable(
    home: Home, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert "AWS_ENDPOINT_URL" in error_of_fetch(home, "any", StorageError)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId")],
)
def test_wrong_credentials_are_one_error(
    s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: str
) -> None:
    bucket = s3.bucket({"p/a": b"a"})
    monkeypatch.setenv(name, value)
    assert f"S3 refuses ({code}): check the credentials" in error_of_fetch(home, bucket, StorageError)


def test_missing_credentials_are_one_error(s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket({"p/a": b"a"})
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials for S3 (PartialCredentialsError)" in error_of_fetch(home, bucket, StorageError)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials for S3 (NoCredentialsError): set AWS_PROFILE" in error_of_fetch(home, bucket, StorageError)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "no credentials for S3 (ProfileNotFound)" in error_of_fetch(home, bucket, StorageError)


def test_a_missing_or_empty_bucket_is_one_error(s3: Server, home: Home) -> None:
    for name in ("there-is-none", "No-Such.Name"):
        assert "this bucket does not exist at this endpoint" in error_of_fetch(home, name, DataError)
    assert "there are no objects" in error_of_fetch(home, s3.bucket({"q/a": b"a"}), DataError)


def test_an_emptied_prefix_removes_no_local_file(s3: Server, home: Home) -> None:
    bucket = s3.bucket({"p/a": b"a", "q": b"q"})
    fetch(home, bucket)
    s3.delete(bucket, "p/a")
    error_of_fetch(home, bucket, DataError)
    assert fetched_files(home) == {"a": b"a"}


def test_a_flipped_byte_is_fetched_again_and_refused_if_it_stays(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket = s3.bucket(OBJECTS)
    spoilt: list[str] = []

    def flip(path: str, body: bytes) -> bytes:
        if path.endswith("p/7"):
            spoilt.append(path)
            return bytes([body[0] ^ 1]) + body[1:]
        return body

    proxy.rewrite = lambda path, body: body if spoilt else flip(path, body)
    fetch(home, bucket)
    assert len(spoilt) == 1 and fetched_files(home) == all_files()

    s3.put(bucket, "p/7", b"new")
    proxy.rewrite = flip
    assert "'p/7' did not match its size or checksum in the bucket, 3 times" in error_of_fetch(home, bucket, IntegrityError)
    assert fetched_files(home) == all_files(), "what was there is intact"
    proxy.rewrite = lambda _path, body: body
    fetch(home, bucket)
    assert fetched_files(home) == all_files() | {"7": b"new"}


def test_checksums_are_verified_in_any_environment(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    assert door.Bucket("any", "").s3.meta.config.response_checksum_validation == "when_supported"


def test_a_truncated_body_is_one_error(proxy: Proxy, s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket({"p/a": b"a" * 1000})
    proxy.rewrite = lambda path, body: body[:500] if path.endswith("p/a") else body
    assert "'p/a' did not match its size or checksum" in error_of_fetch(home, bucket, IntegrityError)
    proxy.keeps_content_length, proxy.object_paths = True, []
    monkeypatch.setattr(door, "REQUESTS", 5)
    monkeypatch.setattr(door, "PAUSE", 0)
    assert "'p/a' was truncated, 5 times" in error_of_fetch(home, bucket, StorageError)
    assert proxy.object_paths.count("p/a") == 5 and fetched_files(home) == {} and not list((home.fetched).glob(".x.parts/*"))


def test_a_truncated_body_is_requested_as_often_as_a_missing_one(
    proxy: Proxy, s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three attempts were too few: with one truncated answer in fifteen, 4 of 200 reads of twelve objects failed."""
    monkeypatch.setattr(door, "PAUSE", 0)
    bucket, cuts = s3.bucket({"p/a": b"a" * 1000}), iter(range(door.REQUESTS - 1))
    proxy.keeps_content_length = True
    proxy.rewrite = lambda path, body: body[:500] if path.endswith("p/a") and next(cuts, None) is not None else body
    fetch(home, bucket)
    assert fetched_files(home) == {"a": b"a" * 1000} and proxy.object_paths.count("p/a") == door.REQUESTS


def test_an_object_that_changes_after_the_listing_is_fetched_in_its_new_version(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket = s3.bucket({"p/a": b"1", "p/b": b"b"})
    once = iter([b"2"])

    def change(path: str) -> None:
        if path.endswith("p/a") and (content := next(once, None)):
            s3.put(bucket, "p/a", content)

    proxy.on_request = change
    assert fetch(home, bucket).fetched == 2
    assert fetched_files(home) == {"a": b"2", "b": b"b"} and proxy.listings == 4 and proxy.object_paths.count("p/b") == 1


def test_an_object_removed_after_the_listing_is_left_out(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket = s3.bucket({"p/a": b"1", "p/b": b"b"})
    proxy.on_request = lambda path: s3.delete(bucket, "p/a") if path.endswith("p/a") else None
    fetch(home, bucket)
    assert fetched_files(home) == {"b": b"b"}


def test_an_object_that_always_changes_is_a_clear_error(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket, count = s3.bucket({"p/a": b"0"}), iter(range(100))
    proxy.on_request = lambda path: s3.put(bucket, "p/a", str(next(count)).encode() * 9) if path.endswith("p/a") else None
    assert "'p/a' changed while it was read, 3 times: run again when no program writes" in error_of_fetch(home, bucket, DataError)
    assert fetched_files(home) == {}


@pytest.mark.parametrize("key", ["../evil", "/evil", "a//evil", "..\\evil", "./evil", "p/../../evil"])
def test_a_bucket_with_a_hostile_key_is_refused_before_anything_is_written(
    proxy: Proxy, s3: Server, home: Home, tmp_path: Path, key: str
) -> None:
    bucket = s3.bucket({"p/good": b"good", "p/placeholder": b"evil"})
    proxy.rewrite = lambda _path, body: body.replace(b"placeholder", key.encode())  # the server would not store such a key
    message = error_of_fetch(home, bucket, DataError)
    assert repr(key) in message and "rename the object" in message
    assert proxy.object_paths == [] and not list(tmp_path.rglob("*evil*")) and not list(tmp_path.rglob("good"))


def test_a_key_that_is_both_object_and_folder_is_refused(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket = s3.bucket({"p/a": b"a", "p/placeholder": b"b"})
    proxy.rewrite = lambda _path, body: body.replace(b"placeholder", b"a/b")
    assert "'a' is both an object and a folder of other objects" in error_of_fetch(home, bucket, DataError)


def test_changes_are_found_on_a_server_without_etags(proxy: Proxy, s3: Server, home: Home) -> None:
    """Then size and modification time, in seconds, show what changed."""
    bucket = s3.bucket({"p/a": b"1", "p/b": b"b"})
    etags = [each["ETag"].strip('"').encode() for each in s3.client.list_objects_v2(Bucket=bucket)["Contents"]]

    def remove_etags(_path: str, body: bytes) -> bytes:
        for etag in etags:
            body = body.replace(b"&#34;" + etag + b"&#34;", b"")
        return body

    proxy.rewrite = remove_etags
    fetch(home, bucket)
    assert '"etag": ""' in (home.fetched / ".x.json").read_text()
    proxy.object_paths.clear()
    assert fetch(home, bucket).fetched == 0 and proxy.object_paths == []
    time.sleep(1.0)
    s3.put(bucket, "p/a", b"2")
    etags += [each["ETag"].strip('"').encode() for each in s3.client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert fetch(home, bucket).fetched == 1 and fetched_files(home) == {"a": b"2", "b": b"b"}


def test_a_full_disk_is_reported_before_any_file_is_removed(s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket({"p/a": b"1"})
    fetch(home, bucket)
    s3.delete(bucket, "p/a")
    s3.put(bucket, "p/b", b"b" * 1000)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _path: SimpleNamespace(free=999))
    assert "no room for 0 MiB" in error_of_fetch(home, bucket, StorageError)
    assert fetched_files(home) == {"a": b"1"}


def test_a_disk_that_fills_up_during_a_fetch_is_one_error(s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would need its own file system; here only flushing fails in the same way."""
    bucket = s3.bucket({"p/a": b"1"})

    def raise_no_space(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "part")

    monkeypatch.setattr(door.os, "fsync", raise_no_space)
    assert "No space left on device" in error_of_fetch(home, bucket, StorageError)


KILLED = """
import os, signal, sys
from pathlib import Path
from remint.stores import s3 as storage
from remint.runtime.home import Home
from remint.stores.s3 import bucket

home, url, count = Home(Path(sys.argv[1]), Path(sys.argv[1]) / "home"), sys.argv[2], int(sys.argv[3])
real = os.fsync

def fsync(handle):
    global count
    real(handle)
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = fsync
storage.fetch(home, "x", url, lambda event: None)
"""


@pytest.mark.parametrize("point", [1, 5, 6])  # 5 objects and the manifest are flushed once each
def test_a_fetch_killed_at_any_point_is_completed_by_the_next(s3: Server, home: Home, tmp_path: Path, point: int) -> None:
    old, new = {f"p/{i}": b"old" for i in range(4)}, {f"p/{i}": b"new" for i in (0, 1, 2, 5, 6)}
    bucket = s3.bucket(old)
    fetch(home, bucket)
    for key, content in new.items():
        s3.put(bucket, key, content)
    s3.delete(bucket, "p/3")
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), f"s3://{bucket}/p", str(point)], check=False)
    assert died.returncode == -9
    for name, entry in json.loads((home.fetched / ".x.json").read_text())["objects"].items():
        path = home.fetched / "x" / name
        if path.exists() and path.stat().st_mtime_ns == entry["mtime_ns"]:
            assert path.read_bytes() == b"old", "what the manifest vouches for is what it says"
    fetch(home, bucket)
    assert fetched_files(home) == {key.removeprefix("p/"): content for key, content in new.items()}
    assert not (home.fetched / ".x.parts").exists()


def test_objects_that_were_complete_before_an_error_are_not_fetched_again(proxy: Proxy, s3: Server, home: Home) -> None:
    bucket = s3.bucket(OBJECTS)
    proxy.rewrite = lambda path, body: body + b"x" if path.endswith("p/39") else body
    error_of_fetch(home, bucket, IntegrityError)
    kept = set(fetched_files(home))
    assert len(kept) > 10 and "39" not in kept
    proxy.rewrite = lambda _path, body: body
    proxy.object_paths.clear()
    assert fetch(home, bucket).fetched == 40 - len(kept)
    assert fetched_files(home) == all_files() and set(proxy.object_paths).isdisjoint(f"p/{name}" for name in kept)


def test_ctrl_c_ends_a_fetch_and_a_wait_for_another_fetch(
    proxy: Proxy, s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, stopping = s3.bucket({"p/a": b"a"}), threading.Event()
    monkeypatch.setattr(processes, "stopping", stopping)
    ended: list[Any] = []

    def work() -> None:
        with pytest.raises(Interrupted) as caught:
            fetch(home, bucket)
        ended.append(str(caught.value))

    reading, go_on = threading.Event(), threading.Event()
    proxy.on_request = lambda path: (reading.set(), go_on.wait(20)) if path.endswith("p/a") else None
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert reading.wait(20)
    stopping.set()
    time.sleep(1.0)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert sorted(message.split("interrupted")[1][:6] for message in ended) == [" while", ": fetc"]
