"""``remint.load``: the model of a name, a version or a bundle's folder, for Python."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from remint.errors import IntegrityError, UserError
from remint.runtime import manifest, scratch
from remint.runtime.home import Home
from remint.serving import model
from remint.serving.model import ServedModel
from remint.stores import git, s3
from remint.stores.mlflow import ModelVersion
from remint.stores.open import fetch_bundle, open_tracking, resolve
from remint.stores.published import POINTER, Publication, Published

if TYPE_CHECKING:
    from remint.serving.anomalies.calibration import Calibrated


def load(ref: str | Path, device: str = "cpu", repository: str | Path = ".") -> ServedModel:
    """Return the served model of NAME (its champion), NAME@challenger or NAME/7 in the ledger, or of a bundle's folder.

    s3://bucket/models/NAME, or a folder with champion.json, is the champion that ``publish:`` wrote there: it needs neither
    the ledger nor MLflow, and no clone. The files are verified before anything of them is loaded. Neither the ledger nor
    MLflow is written to; fetched files stay in REMINT_HOME for the next time, published ones else in ~/.cache/remint.
    ``repository``: a folder in the clone whose registry is meant.

    Example: remint.load("digits-vae@champion").sample(16)

    Raises NotFoundError if there is no such version, IntegrityError if a file is not the registered one.
    """
    if is_published(ref):
        return of_published(str(ref), device)
    if isinstance(ref, Path) or (os.sep in ref and (Path(ref) / manifest.NAME).is_file()):  # a plain name is one of the registry
        return model.load(Path(ref), device)
    return load_version(Home.of(git.repository_of(Path(repository).absolute())), ref, device)


def load_version(home: Home, ref: str, device: str = "cpu") -> ServedModel:
    """Return the served model of a version in the registry of ``home``, as ``load`` does."""
    return of_version(home, resolve(home, ref), device)


def of_version(home: Home, version: ModelVersion, device: str = "cpu") -> ServedModel:
    """Return the served model of a version. Its calibration is fetched and verified once, where scores need it."""
    served = model.load(fetch_bundle(home, version), device, version.ref)
    return replace(served, metrics=version.tags.measurements, calibration=cache(partial(_calibration, home, version)))


def is_published(ref: str | Path) -> bool:
    """Return whether this is the address of a published model: in a bucket, or a folder with its pointer."""
    folder = isinstance(ref, Path) or os.sep in ref
    return str(ref).startswith(s3.SCHEME) or (folder and (Path(ref) / POINTER).is_file())


def of_published(address: str, device: str = "cpu") -> ServedModel:
    """Return the served model that is published at an address. Its calibration is fetched and verified where scores need it."""
    place = Published("the published model", address)
    found = place.champion()
    served = model.load(place.cached(found.manifest), device, found.ref)
    return replace(served, metrics=found.metrics, calibration=cache(partial(_published_calibration, place, found)))


def _published_calibration(place: Published, found: Publication) -> Calibrated:
    from remint.serving.anomalies import calibration

    if found.calibration is None:
        raise UserError(f"{found.ref} was published without a calibration, which scores need: run remint calibrate {found.ref}")
    return calibration.read(place.cached(found.calibration), found.digest)


def _calibration(home: Home, version: ModelVersion) -> Calibrated:
    from remint.serving.anomalies import calibration

    if version.tags.calibration is None:
        raise UserError(f"{version.ref} has no calibration, which scores need: run remint calibrate {version.ref}")
    with scratch.folder() as temporary:
        try:
            return calibration.read(open_tracking(home).fetch_calibration(version, temporary), version.key)
        except IntegrityError as error:
            raise IntegrityError(f"{error}: run remint calibrate {version.ref}") from error
