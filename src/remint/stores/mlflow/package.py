"""The form in which a bundle lies in MLflow: a pyfunc model that a loader of ours reads. No pickle, no code.

    MLmodel, conda.yaml, python_env.yaml,                      written by MLflow when it is packed
    requirements.txt, constraints.txt
    registered_model_meta                                      written by MLflow where it loads from a local store
    data/bundle/                                               the sealed folder of the trained model

What comes back from a store is judged before anything of it is loaded: files outside this list, another loader, a
code directory or bytes that the version's tags do not vouch for are refused.
"""

from __future__ import annotations

import os
import shutil
import stat
import warnings
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from remint.errors import IntegrityError
from remint.records import DataSpec, digest
from remint.runtime import manifest
from remint.runtime.yaml import load_safe_yaml
from remint.stores.mlflow.records import ModelVersion, VersionTags

FOLDER = "model"  # of the run's files
LOADER = "remint.serving.pyfunc"
WEIGHTS = "weights.safetensors"
DATA = "data/bundle"
MARK = "registered_model_meta"
AROUND = frozenset({"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "constraints.txt", MARK})
KINDS = frozenset({".safetensors", ".json", ".csv"})  # files that a bundle may hold
MOST_FILES = 1_000  # that lie where a model is kept
NEEDS = ("mlflow", "numpy", "pydantic", "safetensors", "torch")  # of these serving takes the versions that trained


def requirement(place: str, tags: VersionTags) -> str:
    """The line by which pip finds remint elsewhere. ``place``: Home.package. ``tags``: the version's.

    ``git`` means the origin of the clone at the job's commit. Without one that another machine could reach, and for
    ``index``, the line names a release.
    """
    if place not in ("git", "index"):
        return f"remint @ {place}"
    address = _pip_address(tags.repository or "") if place == "git" else None
    return f"remint @ git+{address}@{tags.commit}" if address and tags.commit else f"remint=={version('remint')}"


def _pip_address(origin: str) -> str | None:
    """The address of a repository as pip wants it; None where there is none, or a path that is relative."""
    scheme, separator, rest = origin.partition("://")
    if scheme == "ssh" and separator:
        return f"ssh://git@{rest}"  # what git.origin took away
    if separator:
        return origin
    host, colon, path = origin.partition(":")
    if colon and "/" not in host:
        return f"ssh://{host}/{path.lstrip('/')}"
    return Path(origin).as_uri() if Path(origin).is_absolute() else None


def pack(bundle: Path, spec: DataSpec, remint: str, to: Path) -> Path:
    """Write the model that MLflow keeps, at ``to``: one integer ``seed`` a row in, one sample a row out.

    ``remint``: the line of its requirements by which pip finds remint.
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    named = shutil.copytree(bundle, to.with_name("bundle"))  # MLflow keeps the folder's own name
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.long, "seed")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *spec.shape))]),
    )
    needs = [remint, *(f"{name}=={_released(version(name))}" for name in NEEDS), f"-c {_constraints(to.with_name('pins.txt'))}"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")  # the signature says it all
        mlflow.pyfunc.save_model(str(to), loader_module=LOADER, data_path=str(named), signature=signature, pip_requirements=needs)
    return to


def _constraints(path: Path) -> Path:
    """Write down the version of each package here. Without them pip tries one version of boto3 after the other."""
    pins = {item.name.lower(): f"{item.name}=={_released(item.version)}" for item in distributions() if item.name != "remint"}
    path.write_text("".join(f"{pins[name]}\n" for name in sorted(pins)))
    return path


def _released(number: str) -> str:
    """A version without its local part: 2.13.0+cpu is on no index."""
    return number.partition("+")[0]


def unpack(folder: Path) -> Path:
    """The bundle in what a store gave back. Raises IntegrityError for what ``pack`` does not write."""
    only_files(folder)
    try:
        about = load_safe_yaml((folder / "MLmodel").read_text())
        flavors: dict[str, Any] = about["flavors"]
        flavor = flavors["python_function"]
        loader, data, code = flavor["loader_module"], flavor["data"], flavor.get("code")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder}/MLmodel does not describe a model of remint: {type(error).__name__}") from error
    if (loader, data, code) != (LOADER, DATA, None) or set(flavors) != {"python_function"}:
        found = f"the loader {str(loader)[:100]!r} with code {str(code)[:100]!r}"
        raise IntegrityError(f"{folder}/MLmodel asks for {found}: only {LOADER} without code is loaded")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        inside = name.is_relative_to(DATA) and path.suffix in KINDS
        if path.is_file() and not inside and str(name) not in AROUND:
            raise IntegrityError(f"{folder}: {name} is not a file of a registered model: nothing of it is loaded")
    return folder / DATA


def only_files(folder: Path) -> None:
    """Raises IntegrityError where a link, a pipe, a device or far too much lies at ``folder`` or below: a copy follows it."""
    found = [folder, *(Path(at, name) for at, folders, names in os.walk(folder) for name in (*folders, *names))]
    for path in found:
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise IntegrityError(f"{path} is a link, a pipe or a device, not a file of a registered model: nothing of it is read")
    if len(found) > MOST_FILES:
        raise IntegrityError(f"{folder} holds {len(found):,} files, more than a registered model has: nothing of it is read")


def local(place: str) -> Path | None:
    """The folder or file of this machine that an address of MLflow's means; None: it is elsewhere."""
    address = urlsplit(place)
    if address.scheme not in ("", "file"):
        return None
    return Path(url2pathname(address.path) if address.scheme else place)


def sha256(folder: Path) -> str:
    """One digest over all that ``pack`` wrote at ``folder``: the bundle, and what MLflow and people read around it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARK)
    return digest({str(path.relative_to(folder)): manifest.sha256_file(path) for path in files})


def opened(folder: Path, version: ModelVersion) -> Path:
    """The bundle in what a store gave back of a version, each file the one that was registered. Raises IntegrityError."""
    bundle, registered = unpack(folder), version.tags.package_sha256
    if registered is not None and sha256(folder) != registered:  # an older remint wrote down the bundle's digest only
        check(bundle, version)  # which names a file of the bundle
        raise IntegrityError(f"{version.ref}: MLmodel or a file beside it is not the one that was registered")
    return check(bundle, version)


def check(bundle: Path, version: ModelVersion) -> Path:
    """``bundle`` again, once its manifest holds and is the one that was registered. Raises IntegrityError."""
    path = bundle / manifest.NAME
    if path.is_file() and manifest.sha256_file(path) != version.tags.manifest_sha256:  # where it is missing, verify says so
        raise IntegrityError(f"{version.ref}: its manifest is not the one that was registered")
    sealed = manifest.verify(bundle)
    if sealed["files"].get(WEIGHTS) != version.weights_sha256:
        raise IntegrityError(f"{version.ref}: its weights are not those that were registered")
    return bundle
