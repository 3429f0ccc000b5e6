"""Published models: the files of champions in a bucket or a folder, for services that have neither the ledger nor MLflow.

    PLACE/NAME/SHA-256/        files of a bundle or a calibration; the SHA-256 is that of its manifest, so they never change
    PLACE/NAME/champion.json   pointer to them (Publication), written last

So a reader of the pointer finds all files, or the former pointer. It compares them with their manifest, and that with the
pointer, before anything is loaded. Verified files stay in a private folder: REMINT_HOME/published, or ~/.cache/remint/published.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remint.errors import IntegrityError, NotFoundError, UserError
from remint.records import MetricValue
from remint.runtime import manifest, scratch
from remint.runtime.locks import locked
from remint.stores.files import open_files
from remint.stores.mlflow.package import KINDS, MAX_FILES

POINTER = "champion.json"
MOST = 64 << 30  # bytes of one bundle or calibration
KEPT = 6  # folders in the cache of one address: three bundles with their calibrations
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,3}")  # in a manifest

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Publication(BaseModel):
    """Pointer to the published champion of a model. A newer remint may add fields."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    digest: Sha256  # the version's key
    manifest: Sha256  # of the manifest of its bundle
    calibration: Sha256 | None = None  # of the manifest of its calibration
    metrics: dict[str, MetricValue] = {}  # measured at the registration
    decision: Sha256  # hash of the ledger's row that made it champion

    @property
    def ref(self) -> str:
        return f"{self.model}/{self.version}"


class Published:
    """The published champion of one model. ``address``: s3://bucket/prefix/NAME or a folder."""

    def __init__(self, where: str, address: str) -> None:
        self.address = address.rstrip("/")
        self._files = open_files(where, self.address)

    def pointer(self) -> Publication | None:
        """Return the pointer; None if nothing is published. Raises IntegrityError if remint did not write it."""
        with scratch.folder() as temporary:
            if self._files.fetch(POINTER, temporary / POINTER, manifest.LARGEST) is None:
                return None
            content = (temporary / POINTER).read_bytes()
        try:
            return Publication.model_validate_json(content)
        except ValidationError as error:
            raise IntegrityError(f"{self.address}/{POINTER} is not a pointer to a model: remint did not write it") from error

    def champion(self) -> Publication:
        """Return the pointer. Raises NotFoundError if nothing is published here."""
        found = self.pointer()
        if found is None:
            raise NotFoundError(f"{self.address} has no {POINTER}: is publish: set, and was a version promoted since?")
        return found

    def publish(self, pointer: Publication, bundle: Path, calibration: Path | None) -> None:
        """Write the files, read them back, and then write the pointer. Files that are there and verify are not written again."""
        self._put(bundle, pointer.manifest)
        if calibration is not None and pointer.calibration is not None:
            self._put(calibration, pointer.calibration)
        self._files.write(POINTER, f"{pointer.model_dump_json(indent=1)}\n".encode())

    def _put(self, folder: Path, sha256: str) -> None:
        with scratch.folder() as temporary:
            try:
                self._fetch(sha256, temporary / "found")
            except (IntegrityError, NotFoundError):
                shutil.rmtree(temporary / "found", ignore_errors=True)
                self._files.upload(folder, sha256)
                self._fetch(sha256, temporary / "found")

    def cached(self, sha256: str) -> Path:
        """Return the verified files of a manifest in this account's cache. They are fetched once and verified each time.

        Raises IntegrityError if they are missing or damaged, or are not files of a model.
        """
        cache = _private() / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        cache.mkdir(exist_ok=True, mode=0o700)
        to = cache / sha256
        with locked(cache / "lock"):  # services of one host fetch a new champion at the same moment
            try:
                _verify(to, sha256)
            except IntegrityError:
                shutil.rmtree(to, ignore_errors=True)
                with scratch.folder(beside=to) as temporary:
                    self._fetch(sha256, temporary / "fetched")
                    (temporary / "fetched").rename(to)
            os.utime(to)
            folders = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
            for old in folders[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        return to

    def _fetch(self, sha256: str, to: Path) -> None:
        """Fetch the files that a manifest lists, and verify them. Nothing else is read."""
        to.mkdir()
        self._get(sha256, manifest.NAME, to, manifest.LARGEST)
        left = MOST
        for name in _listed(to, sha256):
            left -= self._get(sha256, name, to, left)
        _verify(to, sha256)

    def _get(self, sha256: str, name: str, to: Path, most: int) -> int:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        size = self._files.fetch(f"{sha256}/{name}", to / name, most)
        if size is None:
            raise IntegrityError(
                f"{self.address}/{sha256}/{name} is missing: run remint publish where the champion is registered"
            )
        return size


def _listed(folder: Path, sha256: str) -> list[str]:
    """Return the files that a manifest lists. Raises IntegrityError if it is another one, or they are not files of a model."""
    try:
        names = list(dict[str, str](json.loads((folder / manifest.NAME).read_bytes())["files"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"the published {manifest.NAME} cannot be read: {type(error).__name__}") from error
    if manifest.sha256_file(folder / manifest.NAME) != sha256:
        raise IntegrityError(f"the published {manifest.NAME} is not the one that {POINTER} names: {sha256[:12]}")
    if len(names) > MAX_FILES:
        raise IntegrityError(f"the published {manifest.NAME} lists {len(names):,} files, more than a model has")
    for name in names:
        if not FILE.fullmatch(name) or Path(name).suffix not in KINDS or name == manifest.NAME:
            raise IntegrityError(f"{ascii(name)[:100]} is not a file of a model: nothing was loaded")
    return names


def _verify(folder: Path, sha256: str) -> None:
    manifest.verify(folder)
    if manifest.sha256_file(folder / manifest.NAME) != sha256:
        raise IntegrityError(f"{folder}/{manifest.NAME} is not the published one")


def _private() -> Path:
    """Return this account's folder for published files. Raises UserError if other accounts could write to it."""
    home = os.environ.get("REMINT_HOME")
    path = (Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remint") / "published"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{path} must be a folder of this account only: chmod 700, or set REMINT_HOME to another folder")
    return path
