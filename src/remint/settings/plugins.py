"""Families and metrics by name: what recipe.py and metrics.py list, and what installed packages offer beside it.

A plug-in is an entry point whose value is a module:

    remint.families   ``build`` and ``phases`` (models/contract.py, Family), ``Settings``, its subclass of recipe.ModelSettings
    remint.metrics    ``measure(model, context)`` (evaluation/metrics.py, Metric), ``FACTS``, a metrics.Facts

Its module is imported only where params.yaml names it.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Collection, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType
from typing import Literal

from remint.errors import SettingsError
from remint.settings.catalogue import METRICS, Facts
from remint.settings.recipe import MODEL_SETTINGS, ModelSettings, did_you_mean

Kind = Literal["family", "metric"]

GROUPS: dict[Kind, str] = {"family": "remint.families", "metric": "remint.metrics"}
PARTS: dict[Kind, tuple[str, ...]] = {"family": ("build", "phases", "Settings"), "metric": ("FACTS", "measure")}
BUILT_IN: dict[Kind, Collection[str]] = {"family": MODEL_SETTINGS, "metric": METRICS}
STEPS: dict[Kind, str] = {"family": "train", "metric": "evaluate"}  # whose result its code decides


def names(kind: Kind = "family") -> list[str]:
    """Every family that ``family:``, or metric that ``metrics:``, may name, sorted."""
    return sorted({*BUILT_IN[kind], *_entry_points(kind)})


def settings_of(name: str) -> type[ModelSettings]:
    """The class of the family's ``model:`` block. Raises SettingsError: an unknown name, a plug-in that is none."""
    if name in MODEL_SETTINGS:
        return MODEL_SETTINGS[name]
    settings: type[ModelSettings] = module_of(name).Settings
    return settings


def facts_of(name: str) -> Facts:
    """What the metric asks for and what its numbers mean. Raises SettingsError: an unknown name, a plug-in that is none."""
    if name in METRICS:
        return METRICS[name]
    facts: Facts = module_of(name, "metric").FACTS
    return facts


def module_of(name: str, kind: Kind = "family") -> ModuleType:
    """The module of a plug-in. Raises SettingsError: none of that name, one that cannot be imported or lacks a part."""
    found = _entry_points(kind)
    if name not in found:
        raise SettingsError(did_you_mean(f"{kind} '{name}'", name, names(kind)))
    point = found[name]
    where = f"{kind} '{name}': its plug-in {point.value}{_origin(point)}"
    try:
        module: ModuleType = point.load()
    except Exception as error:  # a plug-in may raise anything while it is imported
        words = " ".join(str(error).split()).replace(";", ",")
        raise SettingsError(f"{where} cannot be imported: {type(error).__name__}: {words}") from error
    missing = [part for part in PARTS[kind] if not hasattr(module, part)]
    if missing:
        raise SettingsError(f"{where} has no {', '.join(missing)}: see remint.settings.plugins")
    if kind == "family" and not (isinstance(module.Settings, type) and issubclass(module.Settings, ModelSettings)):
        raise SettingsError(f"{where}: Settings is not a subclass of remint.settings.recipe.ModelSettings")
    if kind == "metric" and not isinstance(module.FACTS, Facts):
        raise SettingsError(f"{where}: FACTS is not a remint.settings.catalogue.Facts")
    return module


def require_watched_code(name: str, workspace: Path, watched: Sequence[str], constraints: Path, kind: Kind = "family") -> None:
    """Refuses a plug-in whose code may change without its step being run again.

    Every file that it is made of is either below one of the ``watched`` paths of the workspace, which the step
    depends on, or installed; and the plug-in itself, where it is installed, is pinned in ``constraints``, which the
    step depends on too. Raises SettingsError. What is built in is watched as it is.
    """
    if name in BUILT_IN[kind]:
        return
    step = STEPS[kind]
    point = _entry_points(kind)[name]
    roots = [(workspace / path).resolve() for path in watched]
    first, *others = _files(point.module)
    for file in (first, *others):
        if not _installed(file) and not any(file.is_relative_to(root) for root in roots):
            raise SettingsError(
                f"{kind} '{name}': its code {file} is not among the dependencies of the {step} step: "
                f"add it to dvc.yaml (stages.{step}.do.deps) and CODE in pipelines/{step}.py"
            )
    pin = f"{point.dist.name}=={point.dist.version}" if point.dist else point.value
    if _installed(first) and _folded(pin) not in map(_folded, constraints.read_text().splitlines()):
        raise SettingsError(
            f"{kind} '{name}': its package is not among the dependencies of the {step} step: add {pin} to {constraints.name}"
        )


def _entry_points(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUPS[kind])}


def _origin(point: EntryPoint) -> str:
    return f" of {point.dist.name} {point.dist.version}" if point.dist else ""


def _files(module: str) -> list[Path]:
    """The module's file, then those of all that it imports, found in their text, down to what is installed.

    The library's own are left out: which of those decide weights is the library's affair.
    """
    todo, seen, files = [module], {"remint"}, []
    while todo:
        name = todo.pop()
        if name in seen or name.startswith("remint."):
            continue
        seen.add(name)
        spec = _spec(name)
        if spec is None or not spec.has_location or spec.origin is None:
            continue  # built into Python, a folder without __init__.py, or not a module but a name in one
        files.append(Path(spec.origin).resolve())
        todo.extend(name.rpartition(".")[:1])
        if not _installed(files[-1]) and files[-1].suffix == ".py":
            todo.extend(_imported(files[-1], spec.parent or ""))
    return files


def _spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name) if name else None
    except (ImportError, ValueError):
        return None


def _imported(file: Path, package: str) -> list[str]:
    """Names of what a source file imports, wherever in it; of ``from a import b`` both a and a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _installed(file: Path) -> bool:
    """Whether a package manager put the file where it is."""
    return any(file.is_relative_to(folder) for folder in _standard_library()) or bool(
        {"site-packages", "dist-packages"} & set(file.parts)
    )


@cache
def _standard_library() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


def _folded(pin: str) -> str:
    """One spelling of a pinned package's name (PEP 503)."""
    return pin.partition("#")[0].strip().lower().replace("_", "-").replace(".", "-")
