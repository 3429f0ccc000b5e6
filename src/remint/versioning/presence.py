"""Where the files of dvc's outputs lie: each one asked for, in the cache and on the remote, and sent again.

dvc's own `status --cloud` and `push` look for the listing of a folder and take its files for granted, so that a remote
which lost one is "in sync" for ever. Here every file is asked for by its own digest, and nothing is changed but by ``send``.

python -m remint.versioning.presence FOLDER    the process that imports dvc; the question comes on standard input, as JSON
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.home import Home
from remint.records import Record
from remint.versioning.ask import SUFFIX, answering, ask, md5_of


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


def _answer(folder: Path, question: dict[str, Any]) -> list[dict[str, Any]]:
    from dvc.repo import Repo

    repo = Repo(str(folder))
    cache, remote = repo.cache.local, repo.cloud.get_remote_odb()
    if "send" in question:
        _send(cache, remote, question["send"])
        return []
    trees = {md5: _files(md5, cache, remote) for md5 in question["outputs"]}
    everything = sorted({md5 for files in trees.values() for md5 in files})
    cached, kept = (set(odb.list_oids_exists(everything)) for odb in (cache, remote))
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


def _send(cache: Any, remote: Any, lacking: list[str]) -> None:
    for md5 in lacking:
        if not cache.exists(md5) or md5_of(cache, md5) != md5:
            raise VersioningError(f"the cache does not have {md5} whole either")
    for md5 in lacking:
        if remote.exists(md5):
            remote.delete(md5)
        remote.add(cache.oid_to_path(md5), cache.fs, md5)
    left = set(lacking) - set(remote.list_oids_exists(lacking))
    if left:
        raise VersioningError(f"the remote did not take {', '.join(sorted(left))}")


if __name__ == "__main__":
    answering(_answer)
