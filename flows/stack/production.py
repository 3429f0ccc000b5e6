"""Checks of servers for ``remint doctor --production``: versions, clocks, and the schema of Prefect's database."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.metadata import distribution, version
from pathlib import Path

from flows.server import client
from flows.server.client import Server
from flows.server.server import DATABASES
from remint.maintenance import production
from remint.maintenance.doctor import Symptom
from remint.redaction import redacted
from remint.runtime.addresses import without_user
from remint.runtime.home import Home
from remint.settings.params import Params

PREFECTS = "prefect/server/database/_migrations"
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}  # that can be asked without asyncio


def examine(home: Home, params: Params | None, servers: list[Server]) -> Iterator[Symptom]:
    """Try all parts. ``servers``: Prefect's and MLflow's."""
    yield from production.examine(home, params)
    for served in servers:
        yield from _server(served)
    if not any(each.name == "Prefect" for each in servers):
        yield Symptom(
            about="prefect",
            level="missing",
            what="PREFECT_API_URL is not set.",
            why="Each run starts a temporary server of its own, and no schedule, queue or form is shared.",
            do="export PREFECT_API_URL=https://HOST/api",
        )
    yield from _migrations()


def _server(served: Server) -> Iterator[Symptom]:
    """Compare the version and the clock of a server with this machine's."""
    path, package = ("admin/version", "prefect") if served.name == "Prefect" else ("version", "mlflow")
    headers = client.credentials() if served.name == "Prefect" else {}
    where = without_user(served.address)
    began = time.time()
    try:
        answer = client.ask(served, path, headers)
    except client.NoAnswer:
        return  # the other checks report it
    yield from production.clock_of_header(package, f"{served.name} at {where}", answer.headers.get("date", ""), began)
    theirs, ours = answer.text.strip().strip('"'), version(package)
    if answer.status_code == 200 and theirs != ours:
        yield Symptom(
            about=package,
            level="warning",
            what=f"{served.name} at {where} is version {theirs[:40]}, and this machine has {ours}.",
            why="Only servers and clients of one constraints.txt are tested together.",
            do=f"git pull && make setup    # on the older of the two, then start {served.name} again",
        )


def _migrations() -> Iterator[Symptom]:
    """Compare the schema of Prefect's database with its package, on the host that has the database's address."""
    address = next((os.environ[name] for name in DATABASES if os.environ.get(name)), None)
    if address is None:
        return
    import sqlalchemy as sa
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    try:
        url = sa.make_url(address)
        dialect = url.get_backend_name()
        query = {name: value for name, value in url.query.items() if name != "ssl"}  # of asyncpg; psycopg reads PGSSLMODE
        asked = url.set(drivername=DRIVERS[dialect], query=query)
        with sa.create_engine(asked, poolclass=sa.NullPool).connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except (sa.exc.SQLAlchemyError, KeyError, ModuleNotFoundError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield Symptom(
            about="prefect",
            level="missing",
            what=f"Prefect's database cannot be read: {redacted(text)}.",
            why="Its server cannot start.",
            do="Correct PREFECT_SERVER_DATABASE_CONNECTION_URL: docs/how-to/production.md",
        )
        return
    scripts = Path(str(distribution("prefect").locate_file(PREFECTS)))
    newest = ScriptDirectory(str(scripts), version_locations=[str(scripts / "versions" / dialect)]).get_current_head()
    if found != newest:
        yield Symptom(
            about="prefect",
            level="missing",
            what=f"Prefect's database has schema {found}, this Prefect needs {newest}.",
            why="Its server migrates it at the start, or refuses, if another version of Prefect wrote it.",
            do="prefect server database upgrade -y    # after pg_dump prefect",
        )
