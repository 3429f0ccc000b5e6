"""Shell completion of pipelines and datasets in params.yaml, and of models and versions in the ledger.

A shell calls these functions at each TAB, while a line is typed. They are fast, write nothing, and complete nothing after an
error. They return only plain names, because a shell evaluates the answer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from remint.runtime.addresses import sqlite_file, with_driver
from remint.runtime.home import Home, is_name
from remint.settings.params import read_params
from remint.stores import git

PATIENCE = 2  # seconds to wait for the ledger's database
VERSIONS = "SELECT DISTINCT version FROM ledger WHERE model = :model ORDER BY version DESC"


def pipelines() -> list[str]:
    return _names("pipelines")


def datasets() -> list[str]:
    return _names("datasets")


def models() -> list[str]:
    """Return the models in the ledger, else the pipelines, after which models are named."""
    known = [str(row[0]) for row in _ledger("SELECT DISTINCT model FROM ledger ORDER BY model")]
    return [name for name in known if is_name(name)] or _names("pipelines")


def model_refs(incomplete: str) -> list[str]:
    """Return names; after NAME@ the aliases; after NAME/ the versions, newest first. Typer drops those that do not match."""
    name = re.split("[@/]", incomplete)[0]
    if incomplete == name or not is_name(name):
        return models()
    if "@" in incomplete:
        return [f"{name}@{alias}" for alias in ("champion", "challenger")]
    return [f"{name}/{row[0]}" for row in _ledger(VERSIONS, model=name) if str(row[0]).isdecimal()]


def _names(block: str) -> list[str]:
    """Return the names below ``datasets:`` or ``pipelines:``, in the order of the file."""
    try:
        content = read_params(git.repository_of(Path.cwd()))[block]
        return [name for name in content if is_name(name)]
    except Exception:  # noqa: BLE001  a shell would print an error into the typed line
        return []


def _ledger(query: str, **values: Any) -> list[Any]:
    """Return rows of the ledger's database. A missing database is not created."""
    import sqlalchemy as sa  # late import: every command imports this module

    try:
        address = with_driver(Home.of(git.repository_of(Path.cwd())).ledger_url)
        place = sqlite_file(address)
        if place and not place.is_file():
            return []
        engine = sa.create_engine(address, connect_args={"timeout" if place else "connect_timeout": PATIENCE})
        with engine.connect() as connection:
            return list(connection.execute(sa.text(query), values))
    except Exception:  # noqa: BLE001  as above
        return []
