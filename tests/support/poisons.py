"""Malicious models: changes to a version by an attacker who can write to MLflow's artifact store.

Each change is made in ``model``, the folder of a registered version in the store. The payload creates a file: if the file
appears, the payload was executed and the test fails.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.runtime import manifest

BUNDLE = "data/bundle"


class Payload:
    """Object that creates a file when it is unpickled or when ``code`` is imported."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)

    @property
    def pickle(self) -> bytes:
        return pickle.dumps(self)

    @property
    def code(self) -> str:
        return f"import os; os.system('touch {self.mark}')\n\ndef _load_pyfunc(path):\n    return None\n"


@dataclass(frozen=True)
class Poison:
    """One attack. ``resealed``: manifest and MLflow's tags match the change, so only the loader can refuse it.

    ``record_only``: it changes only the record that a fresh process compares the model with; sampling does not read it.
    """

    make: Callable[[Path, Payload], None]
    resealed: bool = False
    record_only: bool = False


def _mlmodel(model: Path, *changes: tuple[str, str]) -> None:
    text = (model / "MLmodel").read_text()
    for old, new in changes:
        assert old in text, text
        text = text.replace(old, new)
    (model / "MLmodel").write_text(text)


LOADER = "loader_module: remint.serving.pyfunc"


def other_loader(model: Path, payload: Payload) -> None:
    (model / "evil.py").write_text(payload.code)
    _mlmodel(model, (LOADER, "loader_module: evil\n    code: ."))


def loader_of_the_library(model: Path, payload: Payload) -> None:
    _mlmodel(model, (LOADER, f"loader_module: os.system\n    config: touch {payload.mark}"))


def code_directory(model: Path, payload: Payload) -> None:
    (model / "code/remint/serving").mkdir(parents=True)
    for name in ("remint/__init__.py", "remint/serving/__init__.py", "remint/serving/pyfunc.py"):
        (model / "code" / name).write_text(payload.code)
    _mlmodel(model, (LOADER, f"{LOADER}\n    code: code"))


def python_model(model: Path, payload: Payload) -> None:
    """Write a model as mlflow.pyfunc.save_model(python_model=..) does."""
    (model / "python_model.pkl").write_bytes(payload.pickle)
    _mlmodel(
        model, (LOADER, "loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n    cloudpickle_version: 3.0.0")
    )


def another_flavor(model: Path, payload: Payload) -> None:
    (model / "data/model.pth").write_bytes(payload.pickle)
    (model / "data/pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
    _mlmodel(model, ("flavors:\n", "flavors:\n  pytorch:\n    model_data: data\n    pytorch_version: 2.13.0\n"))


def tag_in_mlmodel(model: Path, payload: Payload) -> None:
    _mlmodel(model, ("flavors:\n", f"evil: !!python/object/apply:os.system ['touch {payload.mark}']\nflavors:\n"))


def aliases_in_mlmodel(model: Path, _: Payload) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))]
    _mlmodel(model, ("flavors:\n", "\n".join(lines) + "\nflavors:\n"), (LOADER, "loader_module: *a11"))


def deep_mlmodel(model: Path, _: Payload) -> None:
    (model / "MLmodel").write_text("flavors: " + "[" * 100_000)


def tag_in_conda(model: Path, payload: Payload) -> None:
    (model / "conda.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {payload.mark}']\n")


def requirements_with_a_path(model: Path, payload: Payload) -> None:
    package = model.parent / "evil"
    package.mkdir()
    (package / "setup.py").write_text(payload.code)
    with (model / "requirements.txt").open("a") as stream:
        stream.write(f"evil @ file://{package}\n-e {package}\n")


def pickle_for_weights(model: Path, payload: Payload) -> None:
    (model / BUNDLE / "weights.safetensors").write_bytes(payload.pickle)


def torch_archive_for_weights(model: Path, payload: Payload) -> None:
    """Write a zip that contains a pickle, as torch.save and torch.export do."""
    with zipfile.ZipFile(model / BUNDLE / "weights.safetensors", "w") as out:
        out.writestr("archive/data.pkl", payload.pickle)
        out.writestr("archive/version", "3\n")


def _extra_file(name: str) -> Callable[[Path, Payload], None]:
    def make(model: Path, payload: Payload) -> None:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(payload.code.encode() if name.endswith(".py") else payload.pickle)

    return make


def sitecustomize(model: Path, payload: Payload) -> None:
    for name in ("sitecustomize.py", "usercustomize.py", "evil.pth"):
        (model / BUNDLE / name).write_text(payload.code)


def link_to_a_file(model: Path, _: Payload) -> None:
    (model / BUNDLE / "curve.csv").unlink()
    (model / BUNDLE / "curve.csv").symlink_to("/etc/passwd")


def link_to_a_device(model: Path, _: Payload) -> None:
    (model / BUNDLE / "curve.csv").unlink()
    (model / BUNDLE / "curve.csv").symlink_to("/dev/zero")


def link_to_everything(model: Path, _: Payload) -> None:
    (model / BUNDLE / "more").symlink_to("/")


def bundle_is_a_link(model: Path, _: Payload) -> None:
    """Replace the bundle by a link to a folder whose content is correct for now."""
    (model / BUNDLE).rename(model.parent / "elsewhere")
    (model / BUNDLE).symlink_to(model.parent / "elsewhere")


def pipe(model: Path, _: Payload) -> None:
    (model / BUNDLE / "weights.safetensors").unlink()
    os.mkfifo(model / BUNDLE / "weights.safetensors")


def manifest_that_names_others(model: Path, payload: Payload) -> None:
    (model / "evil.json").write_bytes(payload.pickle)
    path = model / BUNDLE / manifest.NAME
    content = json.loads(path.read_text())
    content["files"] |= {"../../evil.json": manifest.sha256_file(model / "evil.json"), "/etc/passwd": "0" * 64}
    path.write_text(json.dumps(content) + "\n")


def manifest_of_another_kind(model: Path, _: Payload) -> None:
    (model / BUNDLE / manifest.NAME).write_text('{"files": 5}\n')


def deep_manifest(model: Path, _: Payload) -> None:
    (model / BUNDLE / manifest.NAME).write_text('{"files": ' + "[" * 500_000 + "\n")


# --- resealed


def _header(model: Path, header: bytes, length: int | None = None, data: bytes = b"") -> None:
    """Write weights in safetensors format: the length of the header, the header, the data."""
    size = struct.pack("<Q", len(header) if length is None else length)
    (model / BUNDLE / "weights.safetensors").write_bytes(size + header + data)


def absurd_length(model: Path, _: Payload) -> None:
    _header(model, b"{}", 2**63)


def absurd_shape(model: Path, _: Payload) -> None:
    tensor = {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 2**60]}
    _header(model, json.dumps({"x": tensor}).encode())


def overlapping_tensors(model: Path, _: Payload) -> None:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    _header(model, json.dumps(dict.fromkeys("ab", tensor)).encode(), data=bytes(8))


def deep_header(model: Path, _: Payload) -> None:
    _header(model, b'{"x":' * 100_000)


def _edit(folder: Path, name: str, /, **changes: Any) -> None:
    path = folder / BUNDLE / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def family_by_path(model: Path, _: Payload) -> None:
    _edit(model, "model.json", family="os:system")


def family_of_another_module(model: Path, payload: Payload) -> None:
    (model / BUNDLE / "evil.json").write_text(payload.code)
    _edit(model, "model.json", family="../../evil")


def settings_that_are_too_large(model: Path, _: Payload) -> None:
    content = json.loads((model / BUNDLE / "model.json").read_text())
    _edit(model, "model.json", model={**content["model"], "hidden": 10**9})


def too_many_layers(model: Path, _: Payload) -> None:
    content = json.loads((model / BUNDLE / "model.json").read_text())
    _edit(model, "model.json", model={**content["model"], "hidden": 2_000, "couplings": 1_000, "layers": 20})


def deep_model(model: Path, _: Payload) -> None:
    (model / BUNDLE / "model.json").write_text('{"family": "flow", "model": ' + "[" * 500_000)


def deep_samples(model: Path, payload: Payload) -> None:
    """Put a pickle in place of the seed in the record of the training samples."""
    header = json.dumps({"__metadata__": {"about": json.dumps({"seed": payload.pickle.hex(), "machine": {}})}}).encode()
    (model / BUNDLE / "samples.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def absurd_threads(model: Path, _: Payload) -> None:
    _edit(model, "training.json", fingerprint={"threads": "__import__('os').system('true')"})


POISONS: dict[str, Poison] = {
    "pickle for weights": Poison(pickle_for_weights),
    "another loader": Poison(other_loader),
    "code directory": Poison(code_directory),
    "link to a device": Poison(link_to_a_device),
    "absurd length of the header": Poison(absurd_length, resealed=True),
    "family by an import path": Poison(family_by_path, resealed=True),
    "python_model": Poison(python_model),
    "loader of the library": Poison(loader_of_the_library),
    "another flavor": Poison(another_flavor),
    "a tag in MLmodel": Poison(tag_in_mlmodel),
    "aliases in MLmodel": Poison(aliases_in_mlmodel),
    "a deep MLmodel": Poison(deep_mlmodel),
    "a tag in conda.yaml": Poison(tag_in_conda),
    "requirements with a path": Poison(requirements_with_a_path),
    "a torch archive for weights": Poison(torch_archive_for_weights),
    "DCP metadata": Poison(_extra_file(f"{BUNDLE}/.metadata")),
    "pt2 beside": Poison(_extra_file(f"{BUNDLE}/model.pt2")),
    "pickle beside": Poison(_extra_file("data/model.pkl")),
    "pickle called json": Poison(_extra_file(f"{BUNDLE}/more.json")),
    "module beside": Poison(_extra_file("remint.py")),
    "site customised": Poison(sitecustomize),
    "link to a file": Poison(link_to_a_file),
    "link to everything": Poison(link_to_everything),
    "bundle is a link": Poison(bundle_is_a_link),
    "pipe": Poison(pipe),
    "manifest names others": Poison(manifest_that_names_others),
    "manifest of another kind": Poison(manifest_of_another_kind),
    "a deep manifest": Poison(deep_manifest),
    "absurd shape": Poison(absurd_shape, resealed=True),
    "overlapping tensors": Poison(overlapping_tensors, resealed=True),
    "a deep header": Poison(deep_header, resealed=True),
    "family of another module": Poison(family_of_another_module, resealed=True),
    "settings that are too large": Poison(settings_that_are_too_large, resealed=True),
    "too many layers": Poison(too_many_layers, resealed=True),
    "a deep model.json": Poison(deep_model, resealed=True),
    "samples with a pickle": Poison(deep_samples, resealed=True, record_only=True),
    "absurd threads": Poison(absurd_threads, resealed=True, record_only=True),
}


def restore_model(model: Path, whole: Path) -> None:
    """Restore the original model."""
    shutil.rmtree(model.parent, ignore_errors=True)
    shutil.copytree(whole.parent, model.parent)
