"""Where the files of dvc's outputs lie: each one asked for, in the cache and on the remote, sent, and brought back.

dvc's own `status --cloud` and `push` look for the listing of a folder and take its files for granted, so that a remote
which lost one is "in sync" for ever; `push` sends what a flipped cache holds, and ends well where the remote took it not;
`checkout` takes the cache for whole. Here every file is asked for by its own digest, and read before it is copied.

python -m remint.stores.dvc.presence FOLDER QUESTION ANSWER    the process that imports dvc; question and answer are files of JSON
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.records import Record
from remint.runtime.home import Home
from remint.stores.dvc.ask import answering, ask, md5_of
from remint.stores.dvc.lock import SUFFIX


class Presence(Record):
    """One output of dvc, by the MD5 in its dvc.lock (of a folder: that of its listing, ending in .dir)."""

    md5: str
    files: int  # that it consists of, the listing counted; of a folder whose listing is gone: 1
    cache_lacks: tuple[str, ...]  # MD5 of files that the cache does not have
    remote_lacks: tuple[str, ...]
    damaged: tuple[str, ...] = ()  # on the remote, with other bytes than their MD5 says; only where they were read

    @property
    def lost(self) -> bool:
        """Whether neither cache nor remote has it whole."""
        return bool(set(self.cache_lacks) & {*self.remote_lacks, *self.damaged})


def look(home: Home, outputs: Sequence[str], *, read: bool = False) -> list[Presence]:
    """Where each of these outputs lies. ``read``: the bytes on the remote are read and held against their MD5.

    Raises VersioningError where there is no remote, or it is out of reach.
    """
    return [Presence.model_validate(each) for each in ask(__name__, home, {"outputs": list(outputs), "read": read})]


def send(home: Home, found: Presence) -> None:
    """Copies what the remote lacks of an output, or has damaged, from the cache, each file held against its MD5 first.

    Raises VersioningError where the cache has not all of it: nothing was sent then.
    """
    ask(__name__, home, {"send": [*found.remote_lacks, *found.damaged]})


def complete(home: Home, outputs: Sequence[str], checkout: Path, log: Path) -> int:
    """Copies what the remote lacks of these outputs from the cache, listings last; how many files.

    Raises VersioningError where there is no remote, it is out of reach, or the cache has not all of it whole: nothing was
    sent then.
    """
    return int(ask(__name__, home, {"complete": list(outputs)}, checkout, log))


class Mended(Record):
    """What ``mend`` did: MD5 of files."""

    damaged: tuple[str, ...]  # that lay in the cache with other bytes than their MD5 says, and are gone from there
    brought: tuple[str, ...]  # that came from the remote, whole
    unavailable_reason: str = ""  # the remote could not be asked


def mend(home: Home, outputs: Sequence[str], checkout: Path, log: Path) -> Mended:
    """Reads every file of these outputs in the cache, takes the damaged ones away, and brings what is lacking from the remote."""
    return Mended.model_validate(ask(__name__, home, {"mend": list(outputs)}, checkout, log))


def _answer(folder: Path, question: dict[str, Any]) -> Any:
    from dvc.repo import Repo

    repo = Repo(str(folder))
    cache = repo.cache.local
    if "mend" in question:
        return _mend(cache, repo, question["mend"]).to_json()
    remote = repo.cloud.get_remote_odb()
    if "send" in question:
        _send(cache, remote, question["send"])
        return None
    named: list[str] = question["complete"] if "complete" in question else question["outputs"]
    trees = {md5: _files(md5, cache, remote) for md5 in named}
    everything = list(dict.fromkeys(md5 for files in trees.values() for md5 in files))
    kept = set(remote.list_oids_exists(everything))
    if "complete" in question:
        lacking = [md5 for md5 in everything if md5 not in kept]
        _send(cache, remote, lacking)
        return len(lacking)
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


def _mend(cache: Any, repo: Any, outputs: Sequence[str]) -> Mended:
    damaged = _take_away(cache, outputs)  # of folders whose listing is damaged that one alone, until it is here again
    try:
        remote = repo.cloud.get_remote_odb()
        listings = _bring(cache, remote, [output for output in outputs if output.endswith(SUFFIX)])
        damaged += _take_away(cache, outputs)
        brought = _bring(cache, remote, sorted({md5 for output in outputs for md5 in _files(output, cache)}))
    except Exception as error:  # noqa: BLE001  whatever keeps the remote away: what is damaged must be gone all the same
        return Mended(
            damaged=tuple(damaged), brought=(), unavailable_reason=(str(error).strip() or type(error).__name__).splitlines()[0]
        )
    return Mended(damaged=tuple(damaged), brought=(*listings, *brought))


def _take_away(cache: Any, outputs: Sequence[str]) -> list[str]:
    everything = sorted({md5 for output in outputs for md5 in (*_files(output, cache), output)})
    damaged = [md5 for md5 in everything if cache.exists(md5) and md5_of(cache, md5) != md5]
    for md5 in damaged:
        cache.delete(md5)
    return damaged


def _bring(cache: Any, remote: Any, wanted: Sequence[str]) -> list[str]:
    """Copies those that the cache lacks and the remote has whole; which."""
    lacking = [md5 for md5 in wanted if not cache.exists(md5)]
    whole = [md5 for md5 in lacking if remote.exists(md5) and md5_of(remote, md5) == md5]
    for md5 in whole:
        cache.add(remote.oid_to_path(md5), remote.fs, md5, verify=True)
    return whole


def _files(output: str, *stores: Any) -> list[str]:
    """The MD5 of each file of an output, a folder's listing last, so that it is sent last."""
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
            raise VersioningError(f"the cache does not have {md5} whole either")
    for listings in (False, True):  # whoever finds a listing takes its files for granted
        chosen = [md5 for md5 in lacking if md5.endswith(SUFFIX) == listings]
        for md5 in chosen:
            if remote.exists(md5):
                remote.delete(md5)
        if chosen:
            remote.add([cache.oid_to_path(md5) for md5 in chosen], cache.fs, chosen, check_exists=False)
    left = set(lacking) - set(remote.list_oids_exists(list(lacking)))
    if left:
        raise VersioningError(f"the remote did not take {', '.join(sorted(left))}")


if __name__ == "__main__":
    answering(_answer)
