"""Check of MLflow's store: does it answer, and has it this MLflow's schema? No database is made or migrated."""

from __future__ import annotations

import os
from pathlib import Path

from remint.errors import TrackingError
from remint.runtime.addresses import sqlite_file
from remint.stores.mlflow.door import door

PATIENCE = 5  # seconds


def reach(uri: str) -> None:
    """Raise TrackingError if the store is out of reach, refuses the credentials, or has another schema.

    ``uri``: Home.tracking_uri, with its driver. A missing or empty database is no error: the first run makes it.
    """
    with door("reach its store"):
        if uri.startswith("http"):
            _server(uri)
        else:
            _database(uri)


def _server(uri: str) -> None:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE))
    from mlflow import MlflowClient

    MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)


def _database(uri: str) -> None:
    import sqlalchemy as sa
    from alembic.migration import MigrationContext

    address, options = sa.make_url(uri), {}
    if place := sqlite_file(uri):
        if not place.exists():
            return
        address = sa.make_url(f"sqlite:///{place.absolute().as_uri()}?mode=ro&uri=true")
    elif address.get_backend_name() == "postgresql":
        options = {"connect_timeout": PATIENCE}
    engine = sa.create_engine(address, poolclass=sa.NullPool, connect_args=options)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found not in (None, wanted := _newest()):
        raise TrackingError(
            f"MLflow's database has schema {found}, this MLflow needs {wanted}: make a backup, then mlflow db upgrade ADDRESS"
        )


def _newest() -> str | None:
    """Return the newest schema that this MLflow knows."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()
