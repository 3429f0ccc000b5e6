"""Presence of dvc's files in the cache and on the remote, checked file by file; push and repair.

dvc's `status --cloud` and `push` look only for the listing of a folder: a remote that lost a file stays "in sync". `push`
sends damaged files of the cache, and succeeds even if the remote did not store them. `checkout` assumes that the cache is
intact. Here each file is looked for by its own digest, and read before it is copied.

python -m remint.stores.dvc.presence FOLDER QUESTION ANSWER    the process that imports dvc; question and answer are JSON files
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.records import Record
from remint.runtime.home import Home
from remint.stores.dvc.ask import answer_question, ask, md5_of
from remint.stores.dvc.lock import SUFFIX


class Presence(Record):
    """Presence of one output, by the MD5 in its dvc.lock (for a folder: the MD5 of its listing, ending in .dir)."""

    md5: str
    files: int  # number of its files, with the listing; 1 if the listing is gone
    cache_lacks: tuple[str, ...]  # MD5 of files that the cache does not have
    remote_lacks: tuple[str, ...]
    damaged: tuple[str, ...] = ()  # MD5 of files on the remote with other bytes; () if they were not read

    @property
    def lost(self) -> bool:
        """True if a file is intact neither in the cache nor on the remote."""
        return bool(set(self.cache_lacks) & {*self.remote_lacks, *self.damaged})


def check(home: Home, outputs: Sequence[str], *, read: bool = False) -> list[Presence]:
    """Return the presence of each output. ``read``: the bytes on the remote are read and compared with their MD5.

    Raises VersioningError if there is no remote, or it is out of reach.
    """
    return [Presence.model_validate(each) for each in ask(__name__, home, {"outputs": list(outputs), "read": read})]


def send(home: Home, found: Presence) -> None:
    """Copy the missing and damaged files of an output from the cache to the remote, after their MD5 was checked.

    Raises VersioningError if the cache lacks one of them: nothing was sent then.
    """
    ask(__name__, home, {"send": [*found.remote_lacks, *found.damaged]})


def complete(home: Home, outputs: Sequence[str], checkout: Path, log: Path) -> int:
    """Copy the files that the remote lacks of these outputs from the cache, listings last. Return the number of files.

    Raises VersioningError if there is no remote, it is out of reach, or the cache does not have all of them intact: nothing
    was sent then.
    """
    return int(ask(__name__, home, {"complete": list(outputs)}, checkout, log))


class RepairResult(Record):
    """Result of ``mend``: MD5 of files."""

    damaged: tuple[str, ...]  # removed from the cache because their bytes did not match
    brought: tuple[str, ...]  # fetched from the remote, intact
    unavailable_reason: str = ""  # error of the remote; "" if it answered


def mend(home: Home, outputs: Sequence[str], checkout: Path, log: Path) -> RepairResult:
    """Read every file of these outputs in the cache, remove the damaged ones, and fetch the missing ones from the remote."""
    return RepairResult.model_validate(ask(__name__, home, {"mend": list(outputs)}, checkout, log))


def _answer(folder: Path, question: dict[str, Any]) -> Any:
    from dvc.repo import Repo

    repo = Repo(str(folder))
    cache = repo.cache.local
    if "mend" in question:
        return mend_cache(repo, question["mend"]).to_json()
    remote = repo.cloud.get_remote_odb()
    if "send" in question:
        _send(cache, remote, question["send"])
        return None
    if "complete" in question:
        return send_lacking(cache, remote, question["complete"])
    trees = {md5: files_of(md5, cache, remote) for md5 in question["outputs"]}
    everything = list(dict.fromkeys(md5 for files in trees.values() for md5 in files))
    kept = set(remote.list_oids_exists(everything))
    cached = set(cache.list_oids_exists(everything))
    damaged = {md5 for md5 in sorted(kept) if md5_of(remote, md5) != md5} if question["read"] else set()
    return [
        Presence(
            md5=output,
            files=len(files),
            cache_lacks=tuple(md5 for md5 in files if md5 not in cached),
            remote_lacks=tuple(md5 for md5 in files if md5 not in kept),
            damaged=tuple(md5 for md5 in files if md5 in damaged),
        ).to_json()
        for output, files in trees.items()
    ]


def send_lacking(cache: Any, remote: Any, outputs: Sequence[str]) -> int:
    """Do the work of ``complete``, in the process that imports dvc."""
    everything = list(dict.fromkeys(md5 for output in outputs for md5 in files_of(output, cache, remote)))
    kept = set(remote.list_oids_exists(everything))
    lacking = [md5 for md5 in everything if md5 not in kept]
    _send(cache, remote, lacking)
    return len(lacking)


def mend_cache(repo: Any, outputs: Sequence[str]) -> RepairResult:
    """Do the work of ``mend``, in the process that imports dvc."""
    cache = repo.cache.local
    damaged = _remove_damaged(cache, outputs)  # without an intact listing, a folder's files are found only after it was fetched
    try:
        remote = repo.cloud.get_remote_odb()
        listings = _fetch(cache, remote, [output for output in outputs if output.endswith(SUFFIX)])
        damaged += _remove_damaged(cache, outputs)
        brought = _fetch(cache, remote, sorted({md5 for output in outputs for md5 in files_of(output, cache)}))
    except Exception as error:  # noqa: BLE001  damaged files are removed even if the remote fails
        return RepairResult(
            damaged=tuple(damaged), brought=(), unavailable_reason=(str(error).strip() or type(error).__name__).splitlines()[0]
        )
    return RepairResult(damaged=tuple(damaged), brought=(*listings, *brought))


def _remove_damaged(cache: Any, outputs: Sequence[str]) -> list[str]:
    everything = sorted({md5 for output in outputs for md5 in (*files_of(output, cache), output)})
    damaged = [md5 for md5 in everything if cache.exists(md5) and md5_of(cache, md5) != md5]
    for md5 in damaged:
        cache.delete(md5)
    return damaged


def _fetch(cache: Any, remote: Any, wanted: Sequence[str]) -> list[str]:
    """Fetch the files that the cache lacks and the remote has intact. Return their MD5."""
    lacking = [md5 for md5 in wanted if not cache.exists(md5)]
    whole = [md5 for md5 in lacking if remote.exists(md5) and md5_of(remote, md5) == md5]
    for md5 in whole:
        cache.add(remote.oid_to_path(md5), remote.fs, md5, verify=True)
    return whole


def files_of(output: str, *stores: Any) -> list[str]:
    """Return the MD5 of each file of an output, a folder's listing last, so that it is sent last."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    if output.endswith(SUFFIX):
        for odb in stores:
            if odb.exists(output) and md5_of(odb, output) == output:
                tree = Tree.load(odb, HashInfo("md5", output))
                return [*sorted({str(info.value) for _, _, info in tree}), output]
    return [output]


def _send(cache: Any, remote: Any, lacking: Sequence[str]) -> None:
    for md5 in lacking:
        if not cache.exists(md5) or md5_of(cache, md5) != md5:
            raise VersioningError(f"the cache has no intact copy of {md5}: nothing was sent")
    for listings in (False, True):  # listings last: dvc assumes that all files exist when it finds the listing
        chosen = [md5 for md5 in lacking if md5.endswith(SUFFIX) == listings]
        for md5 in chosen:
            if remote.exists(md5):
                remote.delete(md5)
        if chosen:
            remote.add([cache.oid_to_path(md5) for md5 in chosen], cache.fs, chosen, check_exists=False)
    left = set(lacking) - set(remote.list_oids_exists(list(lacking)))
    if left:
        raise VersioningError(f"the remote did not store {', '.join(sorted(left))}")


if __name__ == "__main__":
    answer_question(_answer)
