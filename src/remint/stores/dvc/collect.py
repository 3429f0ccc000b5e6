"""Garbage collection of dvc's cache, run cache and remote, through dvc's own stores.

`dvc gc` is not used: it stops at a commit whose dvc.yaml it cannot read, ignores the files of a folder whose listing is out
of reach (`--force`, which its dry run implies), considers no ages and counts no bytes. As in `dvc gc`, the listing of a folder
is removed before its files, because dvc assumes that all files exist when it finds the listing.

An entry of the run cache is useful while every output that it names is kept. Recent objects are kept, with the objects that
they name: another host may have written them for a version that it is about to register.

python -m remint.stores.dvc.collect FOLDER QUESTION ANSWER    the process that imports dvc; question and answer are JSON files
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from remint.runtime.home import Home
from remint.stores.dvc.ask import answer_question, ask, md5_of
from remint.stores.dvc.lock import SUFFIX

MD5 = re.compile(r"\bmd5[\"']?\s*:\s*[\"']?([0-9a-f]{32}(?:\.dir)?)\b")
PARALLEL = 16  # objects that are removed at the same time
MODIFIED = ("mtime", "LastModified", "last_modified", "updated")  # file systems' names for the time of an object's last change

Place = Literal["run cache", "cache", "remote"]


@dataclass(frozen=True)
class Object:
    """Unneeded file of dvc. ``name``: its MD5; in the run cache a key, or one entry of a key."""

    place: Place
    name: str
    bytes: int


def md5s_in(text: str) -> set[str]:
    """Return every MD5 in a dvc.lock or .dvc file, dependencies too: at least those that dvc would keep."""
    return set(MD5.findall(text))


def unneeded(home: Home, wanted: Collection[str], before: float) -> list[Object]:
    """Return the objects that are older than ``before`` (Unix time) and that nothing needs. Changes nothing.

    ``wanted``: MD5 of the kept outputs; the files of a kept folder are kept too. Raises VersioningError if the remote is out
    of reach.
    """
    question = {"wanted": sorted(wanted), "before": before}
    return [Object(**each) for each in ask(__name__, home, question)]


def remove(home: Home, objects: Sequence[Object]) -> None:
    """Remove these objects; skip those that are gone already. Raises VersioningError."""
    ask(__name__, home, {"remove": [asdict(each) for each in objects]})


@dataclass(frozen=True)
class _Listed:
    path: str
    bytes: int
    modified: float


@dataclass(frozen=True)
class _Entry(_Listed):
    """Entry of the run cache, with the outputs of the step that it records."""

    outputs: frozenset[str]


class _Stores:
    """Cache, remote (if there is one) and run cache of dvc in a folder."""

    def __init__(self, folder: Path) -> None:
        from dvc.config import NoRemoteError
        from dvc.repo import Repo

        repo = Repo(str(folder))
        self.odbs: dict[Place, Any] = {"cache": repo.cache.local}
        self.runs = Path(repo.stage_cache.cache_dir)
        with suppress(NoRemoteError):  # then only the cache is cleared
            self.odbs["remote"] = repo.cloud.get_remote_odb()

    def unneeded(self, wanted: set[str], before: float) -> list[Object]:
        listed = {place: _listed(odb) for place, odb in self.odbs.items()}
        entries = self._entries()
        remembered = [each for of_key in entries.values() for each in of_key]
        young = {md5 for found in listed.values() for md5, each in found.items() if each.modified >= before}
        young |= {md5 for each in remembered if each.modified >= before for md5 in each.outputs}
        kept = self._with_files(wanted | young, listed)
        runs = []
        for key, of_key in sorted(entries.items()):
            gone = [each for each in of_key if not each.outputs <= kept]
            if len(gone) == len(of_key) or "/." in key:  # the latter: left by a killed gc
                runs.append(Object("run cache", key, sum(each.bytes for each in gone)))
            else:
                runs += [Object("run cache", f"{key}/{each.path}", each.bytes) for each in gone]
        objects = [
            Object(place, md5, each.bytes)
            for place, found in listed.items()
            for md5, each in sorted(found.items(), key=lambda item: (not item[0].endswith(SUFFIX), item[0]))
            if md5 not in kept
        ]
        return runs + objects

    def _entries(self) -> dict[str, list[_Entry]]:
        """Return the entries of each key of the run cache, keys without entries too: dvc fails on their empty folders."""
        found: dict[str, list[_Entry]] = {}
        for folder in sorted(self.runs.glob("*/*")):
            of_key = found.setdefault(str(folder.relative_to(self.runs)), [])
            for path in sorted(folder.glob("*")):
                state, outs = path.stat(), path.read_text(errors="replace").partition("\nouts:")[2]
                of_key.append(_Entry(path.name, state.st_size, state.st_mtime, frozenset(md5s_in(outs))))
        return found

    def _with_files(self, outputs: set[str], listed: dict[Place, dict[str, _Listed]]) -> set[str]:
        """Return the outputs and the files of the folders among them, by the first intact listing of each."""
        kept = set(outputs)
        for output in outputs:
            if output.endswith(SUFFIX):
                odbs = [self.odbs[place] for place, found in listed.items() if output in found]
                kept.update(next((_files(odb, output) for odb in odbs if md5_of(odb, output) == output), ()))
        return kept

    def remove(self, objects: Sequence[Object]) -> None:
        """Remove entries of the run cache, then listings, then files. One request each: s3fs hides failures of bulk requests."""
        for each in objects:
            if each.place == "run cache":
                _forget(self.runs / each.name)
        for listings in (True, False):
            chosen = [each for each in objects if each.place != "run cache" and each.name.endswith(SUFFIX) == listings]
            with ThreadPoolExecutor(PARALLEL) as pool:
                list(pool.map(self._remove, chosen))

    def _remove(self, one: Object) -> None:
        odb = self.odbs[one.place]
        with suppress(FileNotFoundError):  # removed meanwhile
            odb.fs.fs.rm_file(odb.oid_to_path(one.name))


def _forget(path: Path) -> None:
    """Remove an entry of the run cache, or a key with its entries. A key is renamed first: dvc fails on its empty folder."""
    if path.is_dir():
        aside = path.with_name(f".{path.name.lstrip('.')}")
        path.rename(aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def _listed(odb: Any) -> dict[str, _Listed]:
    """Return every object of a store by its MD5. Files that dvc did not write are left out."""
    found = {}
    for path, info in _infos(odb):
        try:
            md5 = odb.path_to_oid(path)
        except ValueError:  # not a file of dvc
            continue
        if re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
            found[md5] = _Listed(path, int(info.get("size") or 0), _modified(info))
    return found


def _infos(odb: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the metadata of each file of a store."""
    if odb.fs.protocol != "local":
        yield from odb.fs.fs.find(odb.path, detail=True).items()
        return
    for path in odb.fs.find(odb.path):
        with suppress(FileNotFoundError):  # removed meanwhile
            yield path, odb.fs.info(path)


def _modified(info: dict[str, Any]) -> float:
    """Return the time of an object's last change (Unix time); now if its store does not record it."""
    for key in MODIFIED:
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return time.time()


def _files(odb: Any, output: str) -> set[str]:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    return {str(info.value) for _, _, info in Tree.load(odb, HashInfo("md5", output))}


def _answer(folder: Path, question: dict[str, Any]) -> list[dict[str, Any]]:
    stores = _Stores(folder)
    if "remove" in question:
        stores.remove([Object(**each) for each in question["remove"]])
        return []
    return [asdict(each) for each in stores.unneeded(set(question["wanted"]), question["before"])]


if __name__ == "__main__":
    answer_question(_answer)
