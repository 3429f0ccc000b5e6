"""Results, code and checkpoints on their way between hosts: all by the DVC remote, which each of them reaches.

    REMOTE/runs/KEY/VALUE         run cache, where `dvc push --run-cache` has it: which inputs gave which outputs
    REMOTE/files/md5/..           outputs, and the code of a step that runs elsewhere, as a tar archive
    REMOTE/checkpoints/KEY/..     checkpoints of a training that is under way

`dvc push --run-cache` and `dvc fetch --run-cache` copy the whole history. Here only the entry of one step is copied.

python -m remint.stores.dvc.travel FOLDER QUESTION ANSWER    the process that imports dvc; question and answer are JSON files
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.records import Record
from remint.runtime import manifest, scratch
from remint.runtime.home import Home
from remint.stores.dvc import presence
from remint.stores.dvc.ask import answer_question, ask, md5_of

RUNS, KEPT, STEPS = "runs", "checkpoints", "checkpoints/*/step-*"
REMOTE_ROOT = "md5-dos2unix"  # dvc's name of the store at the root of a remote, where the run cache lies


class Offer(Record):
    """A step as another host gets it."""

    key: str  # digest of command and inputs: dvc's key of the run cache
    known: bool  # the result is in the cache now: nothing was sent
    code: str = ""  # MD5 of the sent archive


def offer(home: Home, stage: str, inputs: Sequence[str], code: Path, checkout: Path, log: Path) -> Offer:
    """Fetch the result of a stage if the remote has it, else send its inputs (their MD5) and the archive ``code``."""
    return Offer.model_validate(ask(__name__, home, {"offer": stage, "inputs": list(inputs), "code": str(code)}, checkout, log))


def recall(home: Home, stage: str, checkout: Path, log: Path) -> bool:
    """Fetch the result of a stage to the cache. Return whether the cache has it now."""
    return bool(ask(__name__, home, {"recall": stage}, checkout, log))


def record(home: Home, stage: str, checkout: Path, log: Path) -> None:
    """Send the result of a stage: its outputs, then its entry of the run cache."""
    ask(__name__, home, {"record": stage}, checkout, log)


def fetch_file(home: Home, md5: str, to: Path) -> None:
    """Fetch a file that ``offer`` sent. Raises VersioningError if the remote lacks it or has other bytes."""
    ask(__name__, home, {"fetch": md5, "to": str(to)})


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one training, in ``folder`` here and under ``key`` on the remote."""

    home: Home
    key: str
    folder: Path
    checkout: Path
    log: Path

    @property
    def names(self) -> set[str]:
        """The checkpoints in the folder."""
        return {path.relative_to(self.folder).as_posix() for path in self.folder.glob(STEPS)}

    def save(self) -> None:
        """Make the checkpoints on the remote those of the folder."""
        self._ask("save")

    def fetch(self) -> None:
        """Fetch the checkpoints that the folder lacks. A training verifies each before it uses it."""
        self._ask("bring")

    def remove(self) -> None:
        """Remove the checkpoints, here and on the remote."""
        self._ask("forget")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, act: str) -> None:
        ask(__name__, self.home, {act: self.key, "folder": str(self.folder)}, self.checkout, self.log)


def _answer(folder: Path, question: dict[str, Any]) -> Any:
    from dvc.repo import Repo

    repo = Repo(str(folder))
    if "offer" in question:
        return _offer(repo, question["offer"], question["inputs"], Path(question["code"])).to_json()
    if "recall" in question:
        return _RunCache(repo, question["recall"]).recall()
    if "record" in question:
        return _RunCache(repo, question["record"]).record()
    if "fetch" in question:
        return _fetch_file(repo.cloud.get_remote_odb(), question["fetch"], Path(question["to"]))
    key = question.get("save") or question.get("bring") or question["forget"]
    kept = _Checkpoints(repo, key)
    if "save" in question:
        return kept.save(Path(question["folder"]))
    return kept.bring(Path(question["folder"])) if "bring" in question else kept.remove()


def _offer(repo: Any, stage: str, inputs: Sequence[str], code: Path) -> Offer:
    runs = _RunCache(repo, stage)
    if runs.recall():
        return Offer(key=runs.key, known=True)
    cache, remote = repo.cache.local, repo.cloud.get_remote_odb()
    presence.send_lacking(cache, remote, inputs)
    from dvc.fs import localfs
    from dvc_data.hashfile.hash import file_md5

    md5 = str(file_md5(str(code), localfs))
    remote.add(str(code), localfs, md5)
    return Offer(key=runs.key, known=False, code=md5)


def _fetch_file(remote: Any, md5: str, to: Path) -> None:
    if not remote.exists(md5) or md5_of(remote, md5) != md5:
        raise VersioningError(f"the remote has no intact copy of {md5}")
    remote.fs.get_file(remote.oid_to_path(md5), str(to))


def _on_remote(repo: Any, *parts: str) -> tuple[Any, str]:
    """Return the remote's file system, and the place of these parts below its root."""
    root = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name=REMOTE_ROOT)
    return root.fs, root.fs.join(root.path, *parts)


class _RunCache:
    """Entry of one stage in dvc's run cache, here and on the remote."""

    def __init__(self, repo: Any, stage: str) -> None:
        from dvc.stage.cache import _get_stage_hash

        self.repo = repo
        self.stage = repo.stage.load_one("dvc.yaml", stage)
        self.stage.save_deps()
        self.key = str(_get_stage_hash(self.stage))
        self.here = Path(repo.stage_cache.cache_dir) / self.key[:2] / self.key
        self.fs, self.there = _on_remote(repo, RUNS, self.key[:2], self.key)

    def recall(self) -> bool:
        """Fetch the result, unless the cache has it. Return whether the cache has it now."""
        if self._is_whole():
            return True
        if not self.fs.exists(self.there):
            return False
        with scratch.folder() as temporary:
            for path in self.fs.find(self.there):
                self.fs.get_file(path, str(temporary / self.fs.name(path)))
                self.here.mkdir(parents=True, exist_ok=True)  # never without an entry: dvc would fail on it
                shutil.copy(temporary / self.fs.name(path), self.here / f".{self.fs.name(path)}")
                (self.here / f".{self.fs.name(path)}").rename(self.here / self.fs.name(path))
        if self._is_whole():
            return True
        shutil.rmtree(self.here, ignore_errors=True)  # an entry without its outputs, or one that names others
        return False

    def _is_whole(self) -> bool:
        """Return whether the cache has the outputs of the newest entry, after what is missing or damaged was fetched."""
        entry = self.repo.stage_cache._load(self.stage) if any(self.here.glob("*")) else None
        if entry is None or {out["path"] for out in entry["outs"]} != {out.def_path for out in self.stage.outs}:
            return False
        outputs = [str(out["md5"]) for out in entry["outs"]]
        presence.mend_cache(self.repo, outputs)
        cache = self.repo.cache.local
        return all(cache.exists(md5) for output in outputs for md5 in (output, *presence.files_of(output, cache)))

    def record(self) -> None:
        entry = self.repo.stage_cache._load(self.stage)
        if entry is None:
            raise VersioningError(f"dvc has no result of {self.stage.addressing} in its run cache")
        remote = self.repo.cloud.get_remote_odb()
        presence.send_lacking(self.repo.cache.local, remote, [str(out["md5"]) for out in entry["outs"]])
        newest = max(self.here.iterdir(), key=lambda path: path.stat().st_mtime)
        self.fs.makedirs(self.there, exist_ok=True)
        self.fs.put_file(str(newest), self.fs.join(self.there, newest.name))


class _Checkpoints:
    """Checkpoints of one training on the remote."""

    def __init__(self, repo: Any, key: str) -> None:
        self.fs, self.root = _on_remote(repo, KEPT, key)

    def steps(self) -> dict[str, list[str]]:
        """Return the files of each checkpoint on the remote, by its path below the training's folder."""
        found: dict[str, list[str]] = {}
        if self.fs.exists(self.root):
            for path in self.fs.find(self.root):
                found.setdefault(self.fs.relpath(self.fs.parent(path), self.root), []).append(path)
        return found

    def save(self, folder: Path) -> None:
        here = {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob(STEPS))}
        there = self.steps()
        for name, path in here.items():
            place = self.fs.join(self.root, *name.split("/"))
            files = sorted(path.glob("*"), key=lambda each: each.name == manifest.NAME)  # without its manifest it is damaged
            if len(there.get(name, [])) == len(files):
                continue
            self.fs.makedirs(place, exist_ok=True)
            for each in files:
                try:
                    self.fs.put_file(str(each), self.fs.join(place, each.name))
                except FileNotFoundError:  # the training removed this checkpoint meanwhile: it has newer ones
                    break
        if here:
            for name in sorted(set(there) - set(here)):
                self._remove(self.fs.join(self.root, *name.split("/")))

    def bring(self, folder: Path) -> None:
        for name, files in self.steps().items():
            place = folder / name
            if place.exists() or not place.is_relative_to(folder) or ".." in place.parts:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with scratch.folder(beside=place) as temporary:
                whole = temporary / place.name
                whole.mkdir()
                for path in files:
                    self.fs.get_file(path, str(whole / self.fs.name(path)))
                whole.rename(place)

    def remove(self) -> None:
        if self.fs.exists(self.root):
            self._remove(self.root)

    def _remove(self, place: str) -> None:
        """Remove a folder. On S3 each file by a request of its own: not every server takes the bulk requests of s3fs."""
        if self.fs.protocol == "local":
            shutil.rmtree(place)
            return
        for path in list(self.fs.find(place)):
            self.fs.fs.rm_file(path)


if __name__ == "__main__":
    answer_question(_answer)
