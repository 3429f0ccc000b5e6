"""Reader of dvc.lock and of other files of dvc that name outputs, and dvc's MD5 of files on disk, computed from their bytes.

dvc identifies a file by its time, size and inode, and assumes that its cache is intact. So it does not notice a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.runtime.home import is_name
from remint.runtime.yaml import load_safe_yaml

SUFFIX = ".dir"  # of the digest of a folder's listing
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


def locked(lock: Path, stage: str) -> dict[str, Any]:
    """Return the record of a stage's only output in a dvc.lock: ``md5``, ``size``, ``nfiles``, ``hash``.

    Raises VersioningError if there is none.
    """
    try:
        (out,) = _outs(lock, stage)
        return {key: out[key] for key in ("md5", "size", "nfiles", "hash")}
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise VersioningError(f"{lock.name} names no output of {stage} ({type(error).__name__})") from error


def outputs(lock: Path, stage: str) -> dict[str, str]:
    """Return the MD5 of each output of a stage, by its path. Raises VersioningError if the lock does not name the stage."""
    try:
        return {str(out["path"]): str(out["md5"]) for out in _outs(lock, stage)}
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise VersioningError(f"{lock.name} names no output of {stage} ({type(error).__name__})") from error


def dependency(lock: Path, stage: str, folder: str) -> str:
    """Return the name of a stage's only dependency in a folder such as outs/features. Raises VersioningError if it has none."""
    try:
        deps = load_safe_yaml(lock.read_text())["stages"][stage]["deps"]
        (name,) = (Path(dep["path"]).name for dep in deps if str(Path(dep["path"]).parent) == folder)
        if not is_name(name):
            raise ValueError("not a valid name")
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise VersioningError(f"{lock.name} names no dependency of {stage} in {folder} ({type(error).__name__})") from error
    return name


def tracked(repository: Path, files: Iterable[str]) -> list[Path]:
    """Return the files and folders that dvc tracks, by dvc.yaml and the given ``.dvc`` files (paths below ``repository``).

    Of an output whose name contains a variable the folder above it. A file that is not readable names nothing: dvc reports it.
    """
    found = []
    for name in ("dvc.yaml", *files):
        try:
            content = load_safe_yaml((repository / name).read_text())
            stages = content["stages"].values() if name == "dvc.yaml" else [content]
            for stage in (each.get("do", each) for each in stages):
                folder = (repository / name).parent / stage.get("wdir", "")
                found += [folder / _static(out) for out in stage.get("outs", [])]
        except (OSError, KeyError, TypeError, AttributeError, ValueError):
            continue
    return found


def _static(out: str | dict[str, Any]) -> str:
    """Return the path of an output up to its first variable."""
    path = str(out.get("path") or next(iter(out))) if isinstance(out, dict) else out
    return path if "${" not in path else path[: path.index("${")].rpartition("/")[0]


def _outs(lock: Path, stage: str) -> list[dict[str, Any]]:
    outs: list[dict[str, Any]] = load_safe_yaml(lock.read_text())["stages"][stage]["outs"]
    for out in outs:
        if MD5.fullmatch(out["md5"]) is None or out["path"].startswith("/") or ".." in out["path"].split("/"):
            raise ValueError("invalid path or digest")
    return outs


def sort_stages(text: str) -> str:
    """Return a dvc.lock with its stages sorted by name: dvc writes them in the order in which they ended or were restored.

    Lines are moved, not rewritten: dvc's YAML rules differ from those of most writers.
    """
    head, *stages = re.split(r"^(?=  \S)", text, flags=re.MULTILINE)
    return head + "".join(sorted(stages))


def md5_on_disk(path: Path) -> str | None:
    """Return the MD5 of a file, or of a folder's listing in dvc's form; None if there is nothing at ``path``."""
    if path.is_file():
        return _md5(path)
    if not path.is_dir():
        return None
    files = {each.relative_to(path).as_posix(): each for each in path.rglob("*") if each.is_file()}
    listing = [{"md5": _md5(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + SUFFIX


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
