"""Presence of dvc's outputs: real dvc, cache and remote in folders, missing files and flipped bits."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from remint.errors import VersioningError
from remint.runtime.home import Home
from remint.stores.dvc import presence

pytestmark = pytest.mark.usefixtures("forked")

CONFIG = (
    "[core]\n    remote = local\n[cache]\n    dir = ../.remint/dvc/cache\n['remote \"local\"']\n    url = ../.remint/dvc/remote\n"
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(CONFIG)
    return Home.of(tmp_path).ensure()


def place(store: str, home: Home, md5: str) -> Path:
    return home.dvc / store / "files/md5" / md5[:2] / md5[2:]


def output(home: Home, contents: dict[str, bytes]) -> str:
    """Write a folder into cache and remote as dvc does. Return the MD5 of its listing."""
    listing = [{"md5": hashlib.md5(content).hexdigest(), "relpath": name} for name, content in sorted(contents.items())]
    text = json.dumps(listing, sort_keys=True).encode()
    files = {hashlib.md5(content).hexdigest(): content for content in contents.values()}
    files[hashlib.md5(text).hexdigest() + ".dir"] = text
    for md5, content in files.items():
        for store in ("cache", "remote"):
            place(store, home, md5).parent.mkdir(parents=True, exist_ok=True)
            place(store, home, md5).write_bytes(content)
    return next(md5 for md5 in files if md5.endswith(".dir"))


@pytest.mark.slow
def test_each_file_of_a_folder_is_checked(home: Home) -> None:
    one, two = output(home, {"a": b"1", "b": b"2"}), output(home, {"a": b"3"})
    whole = presence.check(home, [one, two])
    assert [(each.md5, each.files, each.cache_lacks, each.remote_lacks, each.lost) for each in whole] == [
        (one, 3, (), (), False),
        (two, 2, (), (), False),
    ]
    b = hashlib.md5(b"2").hexdigest()
    place("remote", home, b).unlink()  # the listing still exists: dvc status --cloud says "in sync"
    found, other = presence.check(home, [one, two])
    assert found.remote_lacks == (b,) and not found.cache_lacks and not found.lost and other.remote_lacks == ()
    presence.send(home, found)
    assert place("remote", home, b).read_bytes() == b"2" and presence.check(home, [one, two]) == whole


@pytest.mark.slow
def test_a_file_missing_from_cache_and_remote_is_reported_as_lost(home: Home) -> None:
    one = output(home, {"a": b"1", "b": b"2"})
    a, b = (hashlib.md5(content).hexdigest() for content in (b"1", b"2"))
    place("remote", home, a).unlink()
    place("remote", home, b).unlink()
    place("cache", home, b).write_bytes(b"x")  # it exists, but is useless
    (found,) = presence.check(home, [one])
    assert set(found.remote_lacks) == {a, b} and not found.lost
    with pytest.raises(VersioningError, match=f"the cache has no intact copy of {b}"):
        presence.send(home, found)
    assert not place("remote", home, a).exists()
    place("cache", home, b).unlink()
    assert presence.check(home, [one])[0].lost
    shutil.rmtree(home.dvc / "remote")
    shutil.rmtree(home.dvc / "cache")
    (found,) = presence.check(home, [one])
    assert found.files == 1 and found.lost and found.cache_lacks == found.remote_lacks == (one,)


@pytest.mark.slow
def test_flipped_bytes_on_the_remote_are_found_by_reading_and_sent_again(home: Home) -> None:
    one, b = output(home, {"a": b"1", "b": b"2"}), hashlib.md5(b"2").hexdigest()
    place("remote", home, b).write_bytes(b"x")
    assert presence.check(home, [one])[0].damaged == () and place("remote", home, b).read_bytes() == b"x", "nothing is changed"
    (found,) = presence.check(home, [one], read=True)
    assert found.damaged == (b,) and not found.lost
    presence.send(home, found)
    assert place("remote", home, b).read_bytes() == b"2" and presence.check(home, [one], read=True)[0].damaged == ()


def test_a_repository_without_a_remote_raises_one_error_of_ours(home: Home) -> None:
    (home.repository / ".dvc/config").write_text("")
    with pytest.raises(VersioningError, match="no remote specified|No remote|remote"):
        presence.check(home, ["0" * 32])
