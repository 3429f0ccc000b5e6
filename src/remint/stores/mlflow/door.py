"""Common code of all MLflow calls: import, locks, requests that make no duplicates, and MLflow's errors as remint's."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from remint.errors import NotFoundError, RemintError, StorageError, TrackingError
from remint.runtime.addresses import (
    DISTRUST,
    TRUST_S3,
    loopback_without_proxy,
    s3_distrusted,
    sqlite_address,
    sqlite_file,
    with_driver,
)
from remint.runtime.home import S3_PATIENCE
from remint.runtime.locks import locked
from remint.runtime.manifest import NO_ROOM
from remint.runtime.retry import doubling, retry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Connection

PREFIX = "remint."  # of remint's tags in MLflow; the records have them without it
ATTEMPTS = 9  # tries of a request whose reply is lost, over 13 seconds
PAUSE = 0.05  # seconds before the second try, doubled each time
NO_ROOM_WORDS = ("disk is full", "disk I/O error", "No space left", "File too large", "could not extend file")
UNAVAILABLE = "TEMPORARILY_UNAVAILABLE"  # MLflow's code if its database refused or went away
LOST = ("INTERNAL_ERROR", UNAVAILABLE)  # MLflow's codes if it does not know whether a request was done
TRUST = "name the file of its certificate authority in MLFLOW_TRACKING_SERVER_CERT_PATH"

Made = TypeVar("Made")
Answer = TypeVar("Answer")

# MLflow reads these when it is imported, so they are set before any import of it.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # a URL would break the output of --json
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # remint stores no pickles
os.environ.update(loopback_without_proxy())  # for a server on this machine
for _name, _value in S3_PATIENCE.items():  # for files on S3
    os.environ.setdefault(_name, _value)
_environment = threading.RLock()


@lru_cache(maxsize=8)
def client(uri: str, lock: Path) -> MlflowClient:
    """Return MLflow's client for one address. A missing database is made first (seconds, once); else nothing is written."""
    from mlflow import MlflowClient

    # MLflow prints the traceback of an error and raises it as well; people should see remint's one line only.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    place = sqlite_file(uri)
    if not uri.startswith("http") and not (place and place.exists()):
        with exclusive_lock(lock, "database", uri):
            _make_database(uri, place)
    opened = cast("MlflowClient", RetryingClient(MlflowClient(uri, registry_uri=uri)))
    _first_request(opened, uri)
    return opened


def _make_database(uri: str, place: Path | None) -> None:
    """Make a database if it is missing. ``place``: its file, of SQLite.

    A SQLite database is made under another name and then renamed: MLflow's migrations are not one transaction, and MLflow
    would always refuse a file that a killed process left half migrated.
    """
    if place is None:
        _make_tables(uri)
    elif not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(f".{place.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        _make_tables(sqlite_address(unfinished))
        unfinished.rename(place)


def _make_tables(uri: str) -> None:
    """Make the tables of a database if it has none, with MLflow's default folder (./mlruns) as an address.

    MLflow writes this folder into SQL as Python quotes a string, which fails for a path with apostrophes.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, Path("mlruns").absolute().as_uri())  # type: ignore[no-untyped-call]


def _first_request(client: MlflowClient, uri: str) -> None:
    """Send a first request. If the certificate is not trusted, fail at once: MLflow would retry for four minutes."""
    from mlflow.exceptions import MlflowException

    if uri.startswith("https:"):
        try:
            with _no_retries():
                client.search_experiments(max_results=1)
        except MlflowException as error:
            if DISTRUST in str(error):
                raise
        else:
            return
    client.search_experiments(max_results=1)


class RetryingClient:
    """MLflow client that retries when the database went away: a restart of the database ends no training.

    Requests that create something are not retried here (``create_once`` does that, after a look); the others can be repeated
    without harm. For a server MLflow's own retries do this, except for a reply that breaks off after its first line.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        # Each write loads all versions of the model to check that it is no prompt. Cached, as it takes 0.3 s for 10,000.
        client._raise_if_prompt = cache(client._raise_if_prompt)  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return found if name.startswith(("_", "create_")) or not callable(found) else partial(_again, found)


def _again(call: Callable[..., Answer], *arguments: Any, **named: Any) -> Answer:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import ChunkedEncodingError
    from sqlalchemy.exc import OperationalError

    def passes(error: Exception) -> bool:
        if not isinstance(error, MlflowException | OperationalError):  # MLflow passes on the latter at the end of a session
            return False
        code = getattr(error, "error_code", UNAVAILABLE)
        went_away = code == UNAVAILABLE or isinstance(error.__context__, ChunkedEncodingError)
        return went_away and not _is_full(error)

    return retry(partial(call, *arguments, **named), passes=passes, pauses=doubling(PAUSE, ATTEMPTS))


@contextmanager
def exclusive_lock(lock: Path, name: str, uri: str = "") -> Iterator[None]:
    """Hold the exclusive lock ``name`` inside the block, among all processes of this host and all hosts of one PostgreSQL.

    Raises TrackingError if PostgreSQL is out of reach, or went away during the block: the block's work is done then, but
    other hosts may have entered the block meanwhile.
    """
    path = lock.with_name(f"{lock.name}-{hashlib.sha256(name.encode()).hexdigest()[:16]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if not uri.startswith("postgresql"):
            yield
            return
        from sqlalchemy.exc import DBAPIError

        connection = _advisory_lock(uri, name)
        try:
            yield
        except BaseException:
            _close(connection)
            raise
        try:
            connection.commit()
        except DBAPIError as error:
            raise TrackingError(
                f"the lock on {name} was lost because PostgreSQL went away: run again ({first_line(error)})"
            ) from error
        finally:
            _close(connection)


def _advisory_lock(uri: str, name: str) -> Connection:
    """Return a connection that holds the lock of this name until it is closed, or PostgreSQL goes away."""
    import sqlalchemy as sa

    lock_id = int.from_bytes(hashlib.sha256(f"remint {name}".encode()).digest()[:8], "big", signed=True)
    engine = sa.create_engine(with_driver(uri), poolclass=sa.NullPool)

    def take() -> Connection:
        connection = engine.connect()
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_id)))
        return connection

    try:
        return retry(take, passes=lambda error: isinstance(error, sa.exc.OperationalError), pauses=doubling(PAUSE, ATTEMPTS))
    except sa.exc.OperationalError as error:
        raise TrackingError(f"cannot take the lock on {name}, PostgreSQL is out of reach: {first_line(error)}") from error


def _close(connection: Connection) -> None:
    from sqlalchemy.exc import DBAPIError

    with suppress(DBAPIError):  # the connection is lost already
        connection.close()


def create_once(create: Callable[[], Made], find: Callable[[], Made | None]) -> Made:
    """Return the result of ``create``, made exactly once: if a reply is lost, ``find`` looks before ``create`` is repeated.

    MLflow's own retries are off inside: they would repeat a POST whose first copy may have been done.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    def work() -> Made:
        with _no_retries():
            return create()

    def passes(error: Exception) -> bool:
        lost = isinstance(error, MlflowException | OperationalError) and getattr(error, "error_code", UNAVAILABLE) in LOST
        return lost and not _is_full(error)

    return retry(work, passes=passes, pauses=doubling(PAUSE, ATTEMPTS), instead=find)


@contextmanager
def _no_retries() -> Iterator[None]:
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    with _environment:
        before = os.environ.get(name)
        os.environ[name] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


@contextmanager
def door(what: str) -> Iterator[None]:
    """Turn errors of MLflow and of the libraries below it into remint's. ``what`` completes "MLflow could not ..."."""
    try:
        yield
    except (RemintError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not _is_vendor(error):
            raise
        line = first_line(error)
        if _is_full(error):
            raise StorageError(f"no room to {what}: {line}; nothing incomplete is left; free space and run again") from error
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise NotFoundError(f"MLflow could not {what}: {line}") from error
        if s3_distrusted(str(error)):
            line = TRUST_S3
        elif DISTRUST in line and type(error).__module__.startswith("mlflow."):
            line = f"its server's certificate is not trusted here; {TRUST}"
        raise TrackingError(f"MLflow could not {what}: {line}") from error


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in NO_ROOM or any(words in str(error) for words in NO_ROOM_WORDS)


def _is_vendor(error: Exception) -> bool:
    """Return whether an error comes from MLflow, its database, its network or its files, and not from a bug in remint."""
    root = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | ModuleNotFoundError) or root in (  # a driver that is not installed
        "mlflow",
        "sqlalchemy",
        "sqlite3",
        "psycopg",
        "requests",
        "urllib3",
        "botocore",
        "boto3",
        "alembic",
    )


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Return remint's tags under their names in MLflow."""
    return {key if key.startswith((PREFIX, "mlflow.")) else PREFIX + key: value for key, value in tags.items()}


def pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Yield all results of a paged search."""
    token = None
    while True:
        page = search(max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
