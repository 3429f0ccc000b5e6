"""Local copy of a bucket's prefix: unchanged files stay, removed ones are deleted, the rest is fetched."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from remint.errors import DataError, Interrupted, StorageError
from remint.runtime import processes
from remint.runtime.home import Home
from remint.runtime.locks import locked
from remint.runtime.manifest import sha256_file
from remint.stores.s3.bucket import CONNECTIONS, Bucket, BucketObject, ObjectChanged, door, parse

ROUNDS = 3  # listings of a bucket that changes while it is read

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ManifestEntry:
    """Manifest entry of a file in the folder: the bucket's facts about the object, and the file's own."""

    size: int
    etag: str
    modified: str
    version: str | None  # None if the bucket keeps no versions
    sha256: str
    mtime_ns: int

    def is_of(self, listed: BucketObject) -> bool:
        """Return whether the object is unchanged in the bucket: by its ETag, or by its time if there is no ETag."""
        same = self.etag == listed.etag if listed.etag else self.modified == listed.modified.isoformat()
        return same and self.size == listed.size


@dataclass(frozen=True)
class FetchResult:
    """Result of ``fetch``: the number of objects in the folder, of files fetched, and of files removed."""

    objects: int
    fetched: int
    removed: int


def fetch(home: Home, name: str, url: str, on_event: OnEvent, key: str | None = None) -> FetchResult:
    """Copy the objects at ``url`` into HOME/fetched/``name``, one process at a time. ``on_event`` gets progress events.

    ``key``: place in params.yaml, for errors; None: the source of dataset ``name``.

    Raises DataError if the bucket does not exist or is empty, if keys cannot be paths below a folder, or if objects change
    faster than they can be read; StorageError if S3 is out of reach, refuses or fails, or the disk is full; IntegrityError
    if bytes do not match the bucket's listing.
    """
    key = key or f"params.yaml: datasets.{name}.source"
    bucket, prefix = parse(key, url)
    with _locked(home, name), door(f"{key}: {url}"):
        return _Fetch(Bucket(bucket, prefix), url, home.fetched, name, on_event).run()


@contextmanager
def held(home: Home, dataset: str, url: str) -> Iterator[None]:
    """Keep the fetched files unchanged inside the block. Raises StorageError if they are from another source by now."""
    with _locked(home, dataset, shared=True):
        if _known(_manifest(home.fetched, dataset), url) is None:
            raise StorageError(f"another job has fetched {home.fetched / dataset} from another source meanwhile: run again")
        yield


def _locked(home: Home, dataset: str, *, shared: bool = False) -> AbstractContextManager[None]:
    """Return the lock of a dataset's folder. Ctrl-C ends the wait for it."""
    path = home.lock(f"fetched-{hashlib.sha256(dataset.encode()).hexdigest()[:16]}")
    path.parent.mkdir(parents=True, exist_ok=True)

    def pause() -> None:
        if processes.stopping.wait(0.1):
            raise Interrupted(f"interrupted while waiting for another job that fetches {dataset}")

    return locked(path, shared=shared, pause=pause)


def _manifest(root: Path, dataset: str) -> Path:
    return root / f".{dataset}.json"


def _known(path: Path, url: str) -> dict[str, ManifestEntry] | None:
    """Return the entries of a manifest; None if it is missing, unreadable or of another source: then all is fetched again."""
    try:
        content = json.loads(path.read_bytes())
        if content["source"] != url:
            return None
        return {name: ManifestEntry(**entry) for name, entry in content["objects"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


class _Fetch:
    """One fetch and its progress."""

    def __init__(self, bucket: Bucket, url: str, root: Path, dataset: str, on_event: OnEvent) -> None:
        self.bucket, self.url, self.on_event = bucket, url, on_event
        self.folder, self.manifest, self.parts = root / dataset, _manifest(root, dataset), root / f".{dataset}.parts"
        self.written = _known(self.manifest, url)
        self.kept = dict(self.written or {})
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.count = self.bytes = 0  # fetched so far

    def run(self) -> FetchResult:
        removed = 0
        for _ in range(ROUNDS):
            listed = self.bucket.objects()
            self.folder.mkdir(parents=True, exist_ok=True)
            missing = [each for each in listed.values() if not self._is_here(each)]
            self._check_room(sum(each.size for each in missing))
            removed += self._remove_others(set(listed))
            changed = self._get_all(missing)
            if not changed:
                return FetchResult(len(listed), self.count, removed)
        raise DataError(
            f"the object {changed[0]!r} changed while it was read, {ROUNDS} times: run again when no program writes to the bucket"
        )

    def _is_here(self, listed: BucketObject) -> bool:
        """Return whether the object is here, unchanged: by size and time, or by its SHA-256 if the time differs."""
        kept, path = self.kept.get(listed.name), self.folder / listed.name
        if kept is None or not kept.is_of(listed):
            return False
        try:
            here = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(here.st_mode) or here.st_size != kept.size:
            return False
        if here.st_mtime_ns != kept.mtime_ns:
            if sha256_file(path) != kept.sha256:
                return False
            self.kept[listed.name] = replace(kept, mtime_ns=here.st_mtime_ns)
        return True

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise StorageError(
                f"no room for {needed / 2**20:.0f} MiB in {self.folder} ({free / 2**20:.0f} MiB free): nothing was fetched; "
                "free space, or set REMINT_HOME to a folder of a larger disk"
            )

    def _remove_others(self, names: set[str]) -> int:
        """Remove files that are not in the bucket, and all links (nothing may be written through one). Return their number."""
        removed = 0
        for place, folders, files in os.walk(self.folder, topdown=False):
            for path in (Path(place, each) for each in (*files, *folders)):
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path.is_symlink() or path.relative_to(self.folder).as_posix() not in names:
                    path.unlink()
                    removed += 1
        self.kept = {name: kept for name, kept in self.kept.items() if name in names}
        return removed

    def _get_all(self, missing: list[BucketObject]) -> list[str]:
        """Fetch objects in parallel. Return the keys of those that changed meanwhile. Complete files are kept in any case."""
        todo: queue.SimpleQueue[BucketObject] = queue.SimpleQueue()
        for each in missing:
            todo.put(each)
        changed: list[str] = []
        total = self.count + len(missing)
        shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir()
        try:
            with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="s3") as pool:
                working = {pool.submit(self._work, todo, changed) for _ in missing[:CONNECTIONS]}
                try:
                    while working:
                        ended, working = wait(working, timeout=0.5, return_when=FIRST_EXCEPTION)
                        self.on_event({"event": "progress", "step": self.count, "steps": total, "MiB": self.bytes / 2**20})
                        for worker in ended:
                            worker.result()
                        if processes.stopping.is_set():
                            raise Interrupted("interrupted: fetched files are kept; run the same command again to continue")
                except BaseException:
                    self.stop.set()
                    raise
        finally:
            if self.kept != self.written:
                self._write()
            shutil.rmtree(self.parts, ignore_errors=True)
        return changed

    def _work(self, todo: queue.SimpleQueue[BucketObject], changed: list[str]) -> None:
        """Fetch objects from the queue until it is empty or a worker has failed."""
        part = self.parts / str(threading.get_ident())
        while not self.stop.is_set():
            try:
                listed = todo.get_nowait()
            except queue.Empty:
                return
            try:
                sha256, version = self.bucket.read(listed, part, self._on_bytes)
            except ObjectChanged:
                changed.append(listed.key)
                continue
            path = self.folder / listed.name
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
            facts = (listed.size, listed.etag, listed.modified.isoformat(), version)
            with self.lock:
                self.kept[listed.name] = ManifestEntry(*facts, sha256, path.stat().st_mtime_ns)
                self.count += 1

    def _on_bytes(self, count: int) -> None:
        if self.stop.is_set():
            raise Interrupted("another object failed")
        with self.lock:
            self.bytes += count

    def _write(self) -> None:
        """Write the manifest atomically, after the files that it lists."""
        temporary = self.manifest.with_suffix(".tmp")
        objects = {name: asdict(kept) for name, kept in sorted(self.kept.items())}
        with temporary.open("w") as stream:
            json.dump({"source": self.url, "objects": objects}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.manifest)
