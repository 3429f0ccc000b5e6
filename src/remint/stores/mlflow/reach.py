"""Whether MLflow's store answers, and is of this MLflow's schema. Looks only: no database is made or migrated."""

from __future__ import annotations

import os
from pathlib import Path

from remint.errors import TrackingError
from remint.stores.mlflow.door import door

PATIENCE = 5  # seconds


def reach(uri: str) -> None:
    """Raises TrackingError where the store is out of reach, refuses these credentials, or has another schema.

    ``uri``: as ``Home.tracking_uri`` names it, with its driver.
    A database that is not there yet, or holds nothing, is made by the first run.
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
    if address.get_backend_name() == "sqlite":
        if not Path(address.database or "").exists():
            return
        address = sa.make_url(f"sqlite:///file:{address.database}?mode=ro&uri=true")
    elif address.get_backend_name() == "postgresql":
        options = {"connect_timeout": PATIENCE}
    engine = sa.create_engine(address, poolclass=sa.NullPool, connect_args=options)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found not in (None, wanted := _newest()):
        raise TrackingError(
            f"MLflow's database has schema {found}, this MLflow knows {wanted}: make a backup, then mlflow db upgrade ADDRESS"
        )


def _newest() -> str | None:
    """The newest schema that this MLflow knows."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()
