"""Names that a shell completes: pipelines and datasets of params.yaml, models and versions of the ledger.

A shell asks at each TAB, in the middle of a typed line. So these functions are quick, they write nothing, and where
something is wrong they complete nothing. Only plain names are given: a shell evaluates what it gets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from remint.runtime.addresses import with_driver
from remint.runtime.home import Home, is_name
from remint.settings.params import read_params
from remint.stores import git

PATIENCE = 2  # seconds that the ledger's database has to answer
VERSIONS = "SELECT DISTINCT version FROM ledger WHERE model = :model ORDER BY version DESC"


def pipelines() -> list[str]:
    return _names("pipelines")


def datasets() -> list[str]:
    return _names("datasets")


def models() -> list[str]:
    """Names of models: what the ledger knows, else the pipelines, which give models their names."""
    known = [str(row[0]) for row in _ledger("SELECT DISTINCT model FROM ledger ORDER BY model")]
    return [name for name in known if is_name(name)] or _names("pipelines")


def model_refs(incomplete: str) -> list[str]:
    """NAME; behind NAME@ the aliases; behind NAME/ the versions, the newest first. Typer leaves out what does not fit."""
    name = re.split("[@/]", incomplete)[0]
    if incomplete == name or not is_name(name):
        return models()
    if "@" in incomplete:
        return [f"{name}@{alias}" for alias in ("champion", "challenger")]
    return [f"{name}/{row[0]}" for row in _ledger(VERSIONS, model=name) if str(row[0]).isdecimal()]


def _names(block: str) -> list[str]:
    """The names below ``datasets:`` or ``pipelines:``, in the order of the file."""
    try:
        content = read_params(git.repository_of(Path.cwd()))[block]
        return [name for name in content if is_name(name)]
    except Exception:  # noqa: BLE001  a shell shows whatever is printed in the middle of what is typed
        return []


def _ledger(query: str, **values: Any) -> list[Any]:
    """Rows of the ledger's database, which is not made where there is none."""
    try:
        address = sa.make_url(with_driver(Home.of(git.repository_of(Path.cwd())).ledger_url))
        is_sqlite = address.get_backend_name() == "sqlite"
        if is_sqlite and not Path(address.database or "").is_file():
            return []
        engine = sa.create_engine(address, connect_args={"timeout" if is_sqlite else "connect_timeout": PATIENCE})
        with engine.connect() as connection:
            return list(connection.execute(sa.text(query), values))
    except Exception:  # noqa: BLE001  as above
        return []
