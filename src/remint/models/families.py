"""Module of each family: a file of this folder, or a plug-in (remint.settings.plugins)."""

from __future__ import annotations

import importlib
from typing import cast

from remint.models.contract import Family
from remint.settings import plugins
from remint.settings.recipe import MODEL_SETTINGS


def family(name: str) -> Family:
    """Return the module of a family. Raises SettingsErrorwith the nearest name if the family does not exist."""
    if name in MODEL_SETTINGS:
        return cast(Family, importlib.import_module(plugins.module_name(name)))
    return cast(Family, plugins.module_of(name))
