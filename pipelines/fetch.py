"""python -m pipelines.fetch DATASET: the prepared arrays of dvc.lock, from this machine's cache or the DVC remote.

A machine of a cluster runs it before its ranks (remint.distributed.node), in a checkout without git. Arrays lie in the machine's
cache under their MD5, and every byte is compared with it before they are used. Above the limit the longest unused are removed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from remint.data.blocks import size_of
from remint.errors import ResourceError
from remint.runtime.events import run_step
from remint.runtime.home import Home
from remint.runtime.locks import locked

LIMIT, DEFAULT = "REMINT_NODE_CACHE_LIMIT", "50GiB"


def main(dataset: str) -> None:
    from remint.stores.dvc import Workspace
    from remint.stores.dvc.lock import locked as recorded
    from remint.stores.dvc.lock import md5_on_disk

    here, cache = Path.cwd(), Path(os.environ["REMINT_NODE_CACHE"]) / "data"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    md5 = recorded(here / "dvc.lock", f"prepare@{dataset}")["md5"]
    kept = cache / md5
    with locked(cache / "lock"):  # another training on this machine may need the same
        if kept.exists() and md5_on_disk(kept) != md5:
            shutil.rmtree(kept)
        if not kept.exists():
            home = Home.of(here)
            workspace = Workspace(here, home, home.path / "logs", home.path / "scratch", git=False)
            found = workspace.fetch_output(here / "dvc.lock", f"prepare@{dataset}")
            _make_room(cache, _bytes(found))
            shutil.rmtree(kept.with_name(f".{md5}"), ignore_errors=True)  # left by a killed process
            shutil.copytree(found, kept.with_name(f".{md5}"))
            kept.with_name(f".{md5}").rename(kept)
        os.utime(kept)
        shutil.copytree(kept, here / "outs/prepared" / dataset, copy_function=os.link)


def _make_room(cache: Path, needed: int) -> None:
    """Remove the longest unused datasets until ``needed`` more bytes are within the limit. Raises ResourceError above it."""
    limit = size_of(LIMIT, DEFAULT)
    if needed > limit:
        raise ResourceError(f"{LIMIT}: the dataset has {needed >> 20:,} MiB: set it to more than that")
    kept = sorted((each for each in cache.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
    sizes = {each: _bytes(each) for each in kept}
    while kept and sum(sizes[each] for each in kept) + needed > limit:
        shutil.rmtree(kept.pop(0))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run_step(main)
