"""Fetch of a bucket into a folder: exactly the changed objects. On a real S3 server."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from remint.errors import DataError, StorageError
from remint.runtime.home import Home
from remint.stores import s3 as storage
from remint.stores.s3 import bucket as door
from remint.stores.s3.folder import FetchResult
from tests.support.s3 import Proxy, Server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "home").ensure()


def fetch(home: Home, url: str, events: list[dict[str, Any]] | None = None) -> FetchResult:
    return storage.fetch(home, "x", url, (events if events is not None else []).append)


def local_objects(home: Home) -> dict[str, bytes]:
    folder = home.fetched / "x"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_more_objects_than_one_page_are_fetched(proxy: Proxy, s3: Server, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PAGE", 100)
    objects = {f"some/{i:04d}": str(i).encode() for i in range(230)}
    events: list[dict[str, Any]] = []
    assert fetch(home, f"s3://{s3.bucket(objects)}", events) == FetchResult(objects=230, fetched=230, removed=0)
    assert local_objects(home) == objects
    assert proxy.listings == 3
    assert events[-1]["step"] == events[-1]["steps"] == 230 and events[-1]["event"] == "progress"
    assert events[-1]["MiB"] * 2**20 == pytest.approx(sum(map(len, objects.values())))


def test_only_changed_objects_are_fetched(proxy: Proxy, s3: Server, home: Home) -> None:
    name = s3.bucket({"p/a": b"a", "p/b": b"b", "p/deep/c": b"c", "p/deep/d": b"d", "q": b"not asked for"})
    url = f"s3://{name}/p"
    fetch(home, url)
    assert local_objects(home) == {"a": b"a", "b": b"b", "deep/c": b"c", "deep/d": b"d"}

    proxy.object_paths.clear()
    assert fetch(home, url) == FetchResult(objects=4, fetched=0, removed=0)
    assert proxy.object_paths == []

    s3.put(name, "p/b", b"B")
    s3.put(name, "p/new", b"new")
    s3.put(name, "p/a", b"a")  # unchanged
    s3.delete(name, "p/deep/c")
    s3.delete(name, "p/deep/d")
    assert fetch(home, url) == FetchResult(objects=3, fetched=2, removed=2)
    assert sorted(proxy.object_paths) == ["p/b", "p/new"]
    assert local_objects(home) == {"a": b"a", "b": b"B", "new": b"new"}
    assert not (home.fetched / "x/deep").exists(), "a folder that holds nothing any more"


def test_a_prefix_is_a_folder_or_one_object(s3: Server, home: Home) -> None:
    name = s3.bucket({"data.npz": b"all", "data.npz.bak": b"no", "data/1": b"1", "data-2/2": b"2"})
    for prefix, expected in (
        ("data.npz", {"data.npz": b"all"}),
        ("data", {"1": b"1"}),
        ("data/", {"1": b"1"}),
        ("data-2/2", {"2": b"2"}),
        ("data-2", {"2": b"2"}),
    ):
        fetch(home, f"s3://{name}/{prefix}")
        assert local_objects(home) == expected, prefix
    fetch(home, f"s3://{name}/")
    assert set(local_objects(home)) == {"data.npz", "data.npz.bak", "data/1", "data-2/2"}


def test_a_file_becomes_a_folder_and_a_folder_a_file(s3: Server, home: Home) -> None:
    name = s3.bucket({"a": b"file", "b/c": b"below"})
    fetch(home, f"s3://{name}")
    for key in ("a", "b/c"):
        s3.delete(name, key)
    s3.put(name, "a/c", b"below")
    s3.put(name, "b", b"file")
    fetch(home, f"s3://{name}")
    assert local_objects(home) == {"a/c": b"below", "b": b"file"}


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["gone", "other bytes", "other size", "link", "folder"])
def test_a_changed_local_file_is_fetched_again(proxy: Proxy, s3: Server, home: Home, tmp_path: Path, harm: str) -> None:
    name = s3.bucket({"a": b"good", "b": b"good"})
    fetch(home, f"s3://{name}")
    path = home.fetched / "x/a"
    path.unlink()
    if harm == "other bytes":
        path.write_bytes(b"evil")
    elif harm == "other size":
        path.write_bytes(b"goodgood")
    elif harm == "link":
        (tmp_path / "elsewhere").write_bytes(b"good")
        path.symlink_to(tmp_path / "elsewhere")
    elif harm == "folder":
        path.mkdir()
        (path / "stray").write_bytes(b"stray")
    proxy.object_paths.clear()
    fetch(home, f"s3://{name}")
    assert proxy.object_paths == ["a"] and local_objects(home) == {"a": b"good", "b": b"good"} and not path.is_symlink()


def test_equal_bytes_with_another_time_are_not_fetched_again(proxy: Proxy, s3: Server, home: Home) -> None:
    name = s3.bucket({"a": b"good"})
    fetch(home, f"s3://{name}")
    os.utime(home.fetched / "x/a", (1, 1))
    proxy.object_paths.clear()
    for _ in range(2):
        assert fetch(home, f"s3://{name}").fetched == 0
    assert proxy.object_paths == []


def test_nothing_is_written_through_a_symbolic_link(s3: Server, home: Home, tmp_path: Path) -> None:
    name = s3.bucket({"a/b": b"new"})
    (tmp_path / "outside").mkdir()
    (home.fetched / "x").mkdir(parents=True)
    (home.fetched / "x/a").symlink_to(tmp_path / "outside", target_is_directory=True)
    fetch(home, f"s3://{name}")
    assert local_objects(home) == {"a/b": b"new"} and not any((tmp_path / "outside").iterdir())


def test_an_unreadable_manifest_is_treated_as_missing(s3: Server, home: Home) -> None:
    name = s3.bucket({"a": b"a"})
    for content in ("{", "[]", '{"objects": 3}'):
        fetch(home, f"s3://{name}")
        (home.fetched / ".x.json").write_text(content)
        assert fetch(home, f"s3://{name}") == FetchResult(objects=1, fetched=1, removed=0)


def test_an_object_in_parts_without_an_md5_is_fetched(s3: Server, home: Home) -> None:
    name, part = s3.bucket({}), os.urandom(5 * 2**20)
    upload = s3.client.create_multipart_upload(Bucket=name, Key="big")["UploadId"]
    parts = [
        {
            "PartNumber": i,
            "ETag": s3.client.upload_part(Bucket=name, Key="big", UploadId=upload, PartNumber=i, Body=part)["ETag"],
        }
        for i in (1, 2)
    ]
    s3.client.complete_multipart_upload(Bucket=name, Key="big", UploadId=upload, MultipartUpload={"Parts": parts})
    fetch(home, f"s3://{name}")
    assert local_objects(home) == {"big": part + part}
    assert '-2"' in (home.fetched / ".x.json").read_text()
    assert fetch(home, f"s3://{name}").fetched == 0


def test_simultaneous_jobs_fetch_once(proxy: Proxy, s3: Server, home: Home) -> None:
    objects = {f"{i}": bytes([i]) for i in range(40)}
    url, done = f"s3://{s3.bucket(objects)}", []
    threads = [threading.Thread(target=lambda: done.append(fetch(home, url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.fetched for each in done) == [0, 0, 0, 40]
    assert len(proxy.object_paths) == 40 and local_objects(home) == objects


def test_a_fetch_of_another_source_waits_while_the_data_are_in_use(s3: Server, home: Home) -> None:
    first, second = (f"s3://{s3.bucket({'a': content})}" for content in (b"1", b"2"))
    fetch(home, first)
    other = threading.Thread(target=fetch, args=(home, second))
    with storage.held(home, "x", first), storage.held(home, "x", first):  # two jobs may hold it
        other.start()
        other.join(0.5)
        assert other.is_alive() and local_objects(home) == {"a": b"1"}
    other.join()
    assert local_objects(home) == {"a": b"2"}
    with pytest.raises(StorageError, match="another source meanwhile"), storage.held(home, "x", first):
        pass


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/passwd", "a//b", "./a", "a/.", "..", ".", "", "a/", "a\\b", "..\\evil", "a\0b", "a" * 256],
)
def test_keys_that_would_leave_the_folder_are_refused_by_name(name: str) -> None:
    with pytest.raises(DataError) as caught:
        door.path_of(name)
    assert repr(name) in str(caught.value) and "rename the object" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a/b.png", "...", "..a/b", "ä/ö ü", ".hidden", "a\nb", "a" * 255])
def test_valid_keys_are_used_as_paths(name: str) -> None:
    assert door.path_of(name) == name


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://ab", "s3://user:hunter2@bucket/x", "http://bucket", "s3://bu cket/x"])
def test_an_invalid_bucket_is_refused_without_repeating_its_address(home: Home, url: str) -> None:
    with pytest.raises(DataError, match=r"^params.yaml: datasets.x.source: expected s3://bucket/prefix") as caught:
        fetch(home, url)
    assert "hunter2" not in str(caught.value)
