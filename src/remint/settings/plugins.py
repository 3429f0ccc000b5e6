"""Families and metrics by name: those of recipe.py and catalogue.py, and those of installed packages.

A plug-in is an entry point whose value is a module:

    remint.families   ``build`` and ``phases`` (models/contract.py, Family), ``Settings``, its subclass of recipe.ModelSettings
    remint.metrics    ``measure(model, context)`` (evaluation/context.py, Metric), ``FACTS``, a catalogue.Facts

The module is imported only if params.yaml names the plug-in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Literal

from remint.errors import SettingsError
from remint.runtime.manifest import sha256_tree
from remint.settings.base import did_you_mean
from remint.settings.catalogue import METRICS, Facts
from remint.settings.imports import OWN_PACKAGES, Imports
from remint.settings.recipe import MODEL_SETTINGS, ModelSettings

Kind = Literal["family", "metric"]

GROUPS: dict[Kind, str] = {"family": "remint.families", "metric": "remint.metrics"}
REQUIRED_NAMES: dict[Kind, tuple[str, ...]] = {"family": ("build", "phases", "Settings"), "metric": ("FACTS", "measure")}
BUILT_IN: dict[Kind, Collection[str]] = {"family": MODEL_SETTINGS, "metric": METRICS}


def names(kind: Kind = "family") -> list[str]:
    """Return all names that ``family:`` (or ``metrics:``) accepts, sorted."""
    return sorted({*BUILT_IN[kind], *_entry_points(kind)})


def settings_of(name: str) -> type[ModelSettings]:
    """Return the class of the family's ``model:`` block. Raises SettingsError if the name is unknown or the plug-in invalid."""
    if name in MODEL_SETTINGS:
        return MODEL_SETTINGS[name]
    settings: type[ModelSettings] = module_of(name).Settings
    return settings


def facts_of(name: str) -> Facts:
    """Return the metric's needs and the meaning of its values. Raises SettingsError as ``settings_of`` does."""
    if name in METRICS:
        return METRICS[name]
    facts: Facts = module_of(name, "metric").FACTS
    return facts


def module_of(name: str, kind: Kind = "family") -> ModuleType:
    """Return the module of a plug-in. Raises SettingsError if it does not exist, cannot be imported or lacks a part."""
    found = _entry_points(kind)
    if name not in found:
        raise SettingsError(did_you_mean(f"{kind} '{name}'", name, names(kind)))
    point = found[name]
    where = f"{kind} '{name}': its plug-in {point.value}{_origin(point)}"
    try:
        module: ModuleType = point.load()
    except Exception as error:  # a plug-in may raise anything while it is imported
        message = " ".join(str(error).split()).replace(";", ",")
        raise SettingsError(f"{where} cannot be imported: {type(error).__name__}: {message}") from error
    missing = [part for part in REQUIRED_NAMES[kind] if not hasattr(module, part)]
    if missing:
        raise SettingsError(f"{where} has no {', '.join(missing)}: see remint.settings.plugins")
    if kind == "family" and not (isinstance(module.Settings, type) and issubclass(module.Settings, ModelSettings)):
        raise SettingsError(f"{where}: Settings is not a subclass of remint.settings.recipe.ModelSettings")
    if kind == "metric" and not isinstance(module.FACTS, Facts):
        raise SettingsError(f"{where}: FACTS is not a remint.settings.catalogue.Facts")
    return module


def module_name(name: str, kind: Kind = "family") -> str:
    """Return the name of the module that builds a family or measures a metric."""
    if name not in BUILT_IN[kind]:
        return _entry_points(kind)[name].module
    return f"remint.models.{name}" if kind == "family" else f"remint.evaluation.{METRICS[name].module}"


def digests(imports: Imports, steps: Iterable[str], family: str, metrics: Iterable[str] = ()) -> dict[str, str]:
    """Return digests of the code of ``steps``, a family and metrics, and of the other files in the plug-ins' folders."""
    roots, data = list(steps), dict[str, str]()
    named: list[tuple[str, Kind]] = [(family, "family"), *((metric, "metric") for metric in metrics)]
    for name, kind in named:
        module = module_name(name, kind)
        roots.append(module)
        if name not in BUILT_IN[kind] and "." in module and (path := imports.paths(module).get(module)):
            files = sorted(each for each in path.parent.rglob("*") if each.is_file() and each.suffix != ".pyc")
            data[f"{module} and beside it"] = sha256_tree(*(each for each in files if each.suffix != ".py"))
            module_parts = (each.relative_to(path.parent).with_suffix("").parts for each in files if each.suffix == ".py")
            roots += [".".join((module.rpartition(".")[0], *parts)) for parts in module_parts]
    return imports.digests(*roots) | data


def require_own_code(name: str, workspace: Path, constraints: Path, kind: Kind = "family") -> None:
    """Refuse a plug-in with which a version could not be rebuilt.

    Each of its files must be in the workspace (a checkout of one commit) or installed. An installed plug-in must also be
    pinned in ``constraints``. Raises SettingsError.
    """
    if name in BUILT_IN[kind]:
        return
    point = _entry_points(kind)[name]
    files = [path for module, path in Imports().paths(point.module).items() if module.partition(".")[0] not in OWN_PACKAGES]
    for file in files:
        if not file.is_relative_to(workspace.resolve()):
            raise SettingsError(
                f"{kind} '{name}': its code {file} is neither in this repository nor installed: move it into the repository and "
                f"commit it, or install it and add its version to {constraints.name}"
            )
    pin = f"{point.dist.name}=={point.dist.version}" if point.dist else point.value
    if not files and _normalise_pin(pin) not in map(_normalise_pin, constraints.read_text().splitlines()):
        raise SettingsError(f"{kind} '{name}': the version of its package is not pinned: add {pin} to {constraints.name}")


def _entry_points(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUPS[kind])}


def _origin(point: EntryPoint) -> str:
    return f" of {point.dist.name} {point.dist.version}" if point.dist else ""


def _normalise_pin(pin: str) -> str:
    """Normalise the name of a pinned package (PEP 503)."""
    return pin.partition("#")[0].strip().lower().replace("_", "-").replace(".", "-")
