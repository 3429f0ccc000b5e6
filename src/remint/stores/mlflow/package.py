"""Package format of a bundle in MLflow: a pyfunc model that remint's loader reads. No pickle, no code.

    MLmodel, conda.yaml, python_env.yaml,                      written by MLflow when the bundle is packed
    requirements.txt, constraints.txt
    registered_model_meta                                      written by MLflow when it loads from a local store
    data/bundle/                                               the sealed folder of the trained model
    data/calibration/                                          the sealed calibration, if there was one at the registration

Files from a store are checked before anything of them is loaded. Refused are files outside this list, another loader, a
code directory, and bytes that do not match the version's tags.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import warnings
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError
from remint.records import Column, DataSpec, digest
from remint.runtime import manifest
from remint.runtime.yaml import load_safe_yaml
from remint.stores.mlflow.records import ModelVersion, VersionTags

FOLDER = "model"  # of the run's files
LOADER = "remint.serving.pyfunc"
WEIGHTS = "weights.safetensors"
DATA, CALIBRATION = "data/bundle", "data/calibration"
MARK = "registered_model_meta"
AROUND = frozenset({"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "constraints.txt", MARK})
KINDS = frozenset({".safetensors", ".json", ".csv"})  # files that a bundle may hold
MAX_FILES = 1_000  # in the folder of a registered model
PARAMETERS: dict[str, tuple[str, Any]] = {  # of a request: MLflow's type and the default; None: the method's own default
    "method": ("string", "sample"),
    "seed": ("long", 0),
    "temperature": ("double", 1.0),
    "draws": ("long", None),
    "false_alarm_rate": ("double", 0.05),
    "fdr": ("double", None),
}
NEEDS = ("mlflow", "numpy", "pydantic", "safetensors", "torch")  # packages that serving needs in the training's versions


def requirement(place: str, tags: VersionTags) -> str:
    """Return the requirement by which pip finds remint elsewhere. ``place``: Home.package. ``tags``: the version's.

    ``git`` means the clone's origin at the job's commit. If another machine cannot reach that origin, and for ``index``, the
    requirement is a release.
    """
    if place not in ("git", "index"):
        return f"remint @ {place}"
    address = _pip_address(tags.repository or "") if place == "git" else None
    return f"remint @ git+{address}@{tags.commit}" if address and tags.commit else f"remint=={version('remint')}"


def _pip_address(origin: str) -> str | None:
    """Return the address of a repository in pip's form; None if there is none, or if it is on this machine only."""
    scheme, separator, rest = origin.partition("://")
    if separator:  # git.origin took away the user, which is git wherever ssh is offered
        return f"ssh://git@{rest}" if scheme == "ssh" else None if scheme == "file" else origin
    host, colon, path = origin.partition(":")
    return f"ssh://{host}/{path.lstrip('/')}" if colon and "/" not in host else None


def pack(bundle: Path, spec: DataSpec, remint: str, to: Path, calibration: Path | None = None) -> Path:
    """Write the MLflow model of a bundle to ``to``, and beside it its calibration, which scores need.

    Its input and its methods are those of serving/pyfunc.py; the output of its signature is that of a sample.
    ``remint``: its requirement by which pip finds remint.
    """
    import mlflow.pyfunc

    named = shutil.copytree(bundle, to.with_name("bundle"))  # MLflow keeps the folder's name
    conditional = bool(json.loads((bundle / "model.json").read_bytes())["model"].get("conditional"))
    signature = _signature(spec, conditional)
    needs = [remint, *(f"{name}=={_released(version(name))}" for name in NEEDS), f"-c {_constraints(to.with_name('pins.txt'))}"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")  # the signature is enough
        mlflow.pyfunc.save_model(str(to), loader_module=LOADER, data_path=str(named), signature=signature, pip_requirements=needs)
    if calibration is not None:
        shutil.copytree(calibration, to / CALIBRATION)
    return to


def _signature(spec: DataSpec, conditional: bool) -> Any:
    """Return MLflow's signature of a model. A table's rows have the columns of their source."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType  # a class is a number in one DataFrame and text in another; whole numbers may lack

    def optional(name: str) -> ColSpec:
        return ColSpec(AnyType(), name, required=False)  # type: ignore[no-untyped-call]

    own = [column.name for column in (*spec.columns, spec.label) if column is not None] if spec.is_table else ["x"]
    drawn = [ColSpec(DataType.long, "seed", required=False), *([optional("class")] if conditional else [])]
    inputs = Schema([*(each for each in drawn if each.name not in own), *map(optional, own)])
    params = ParamSchema([ParamSpec(name, DataType[kind], default) for name, (kind, default) in PARAMETERS.items()])
    if not spec.is_table:
        return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.uint8), (-1, *spec.shape))]), params)
    columns = list(spec.columns)
    if conditional and spec.label is not None:
        columns.insert(spec.label_at, spec.label)
    return ModelSignature(inputs, Schema([ColSpec(_mlflow_type(column), column.name) for column in columns]), params)


def _mlflow_type(column: Column) -> Any:
    from mlflow.types import DataType

    if column.type.startswith(("date", "time")):
        return DataType.datetime
    if column.type == "bool":
        return DataType.boolean
    if column.whole or "int" in column.type:
        return DataType.long
    return DataType.double if column.numeric or column.type in ("double", "float") else DataType.string


def _constraints(path: Path) -> Path:
    """Write the installed version of each package to ``path``. Without them pip tries many versions of boto3."""
    pins = {item.name.lower(): f"{item.name}=={_released(item.version)}" for item in distributions() if item.name != "remint"}
    path.write_text("".join(f"{pins[name]}\n" for name in sorted(pins)))
    return path


def _released(number: str) -> str:
    """Return a version without its local part: no index has 2.13.0+cpu."""
    return number.partition("+")[0]


def unpack(folder: Path) -> Path:
    """Return the bundle in a folder from a store. Raises IntegrityError if it has content that ``pack`` does not write."""
    check_regular_files(folder)
    try:
        about = load_safe_yaml((folder / "MLmodel").read_text())
        flavors: dict[str, Any] = about["flavors"]
        flavor = flavors["python_function"]
        loader, data, code = flavor["loader_module"], flavor["data"], flavor.get("code")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder}/MLmodel does not describe a model of remint: {type(error).__name__}") from error
    if (loader, data, code) != (LOADER, DATA, None) or set(flavors) != {"python_function"}:
        found = f"the loader {str(loader)[:100]!r} with code {str(code)[:100]!r}"
        raise IntegrityError(f"{folder}/MLmodel names {found}: remint loads only {LOADER} without code")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        inside = (name.is_relative_to(DATA) or name.is_relative_to(CALIBRATION)) and path.suffix in KINDS
        if path.is_file() and not inside and str(name) not in AROUND:
            raise IntegrityError(f"{folder}: {name} is not a file of a registered model: nothing was loaded")
    return folder / DATA


def check_regular_files(folder: Path) -> None:
    """Raise IntegrityError if ``folder`` contains links, pipes or devices (copying would follow them), or too many files."""
    found = [folder, *(Path(at, name) for at, folders, names in os.walk(folder) for name in (*folders, *names))]
    for path in found:
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise IntegrityError(f"{path} is a link, a pipe or a device, not a file of a registered model: nothing was read")
    if len(found) > MAX_FILES:
        raise IntegrityError(f"{folder} holds {len(found):,} files, more than a registered model has: nothing was read")


def sha256(folder: Path) -> str:
    """Return one digest over all files that ``pack`` wrote to ``folder``: the bundle and MLflow's files around it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARK)
    return digest({str(path.relative_to(folder)): manifest.sha256_file(path) for path in files})


def verified_bundle(folder: Path, version: ModelVersion) -> Path:
    """Return the bundle in a version's folder from a store. Raises IntegrityError if any file differs from the registered one."""
    bundle, registered = unpack(folder), version.tags.package_sha256
    if registered is not None and sha256(folder) != registered:  # an older remint recorded the bundle's digest only
        check(bundle, version)  # its error names the file, if that is in the bundle
        raise IntegrityError(f"{version.ref}: MLmodel or a file next to it differs from the registered one")
    return check(bundle, version)


def check(bundle: Path, version: ModelVersion) -> Path:
    """Return ``bundle`` after its files match its manifest, and that the registered one. Raises IntegrityError."""
    path = bundle / manifest.NAME
    if path.is_file() and manifest.sha256_file(path) != version.tags.manifest_sha256:  # verify reports a missing one
        raise IntegrityError(f"{version.ref}: its manifest differs from the registered one")
    sealed = manifest.verify(bundle)
    if sealed["files"].get(WEIGHTS) != version.weights_sha256:
        raise IntegrityError(f"{version.ref}: its weights differ from the registered ones")
    return bundle
