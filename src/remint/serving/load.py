"""``remint.load``: the model of a name, a version or a bundle's folder, for Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from remint.runtime import manifest
from remint.runtime.home import Home
from remint.serving import model
from remint.serving.model import ServedModel
from remint.stores import git
from remint.stores.open import fetch_bundle, resolve


def load(ref: str | Path, device: str = "cpu", repository: str | Path = ".") -> ServedModel:
    """Return the served model of NAME (its champion), NAME@challenger or NAME/7 in the ledger, or of a bundle's folder.

    The files are verified before anything of them is loaded. Neither the ledger nor MLflow is written to; a fetched bundle
    stays in REMINT_HOME for the next time. ``repository``: a folder in the clone whose registry is meant.

    Example: remint.load("digits-vae@champion").sample(16)

    Raises NotFoundError if there is no such version, IntegrityError if a file is not the registered one.
    """
    if isinstance(ref, Path) or (Path(ref) / manifest.NAME).is_file():
        return model.load(Path(ref), device)
    return load_version(Home.of(git.repository_of(Path(repository).absolute())), ref, device)


def load_version(home: Home, ref: str, device: str = "cpu") -> ServedModel:
    """Return the served model of a version in the registry of ``home``, as ``load`` does."""
    version = resolve(home, ref)
    return replace(model.load(fetch_bundle(home, version), device, version.ref), metrics=version.tags.measurements)
