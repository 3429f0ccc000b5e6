"""Families by name: the built-in ones, and those that an installed package offers.

A plug-in is an entry point of the group ``remint.families`` whose value is a module with ``build`` and
``phases`` (contract.Family) and ``Settings``, its subclass of recipe.ModelSettings.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from remint.errors import SettingsError
from remint.models.contract import Family
from remint.recipe import MODEL_SETTINGS, ModelSettings, unknown

GROUP = "remint.families"


def names() -> list[str]:
    """Every family that ``family:`` may name, sorted."""
    return sorted({*MODEL_SETTINGS, *_plug_ins()})


def family(name: str) -> Family:
    """The family's module. Raises SettingsError, with the nearest name, where there is none."""
    if name in MODEL_SETTINGS:
        return cast(Family, importlib.import_module(f"remint.models.{name}"))
    return cast(Family, _plug_in(name))


def settings_of(name: str) -> type[ModelSettings]:
    """The class of the family's ``model:`` block. Raises SettingsError as ``family`` does."""
    if name in MODEL_SETTINGS:
        return MODEL_SETTINGS[name]
    settings: type[ModelSettings] = _plug_in(name).Settings
    return settings


def _plug_in(name: str) -> Any:
    found = _plug_ins()
    if name not in found:
        raise SettingsError("family: " + unknown(f"family '{name}'", name, names()))
    module = found[name].load()
    missing = [part for part in ("build", "phases", "Settings") if not hasattr(module, part)]
    if missing:
        raise SettingsError(
            f"family '{name}' of entry point {found[name].value} has no {', '.join(missing)}: see remint.models.families"
        )
    return module


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
