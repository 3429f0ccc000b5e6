"""What every call of MLflow goes through: its import, its locks, requests that are not doubled, and its errors made ours."""

from __future__ import annotations

import errno
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
from remint.runtime.addresses import DISTRUST, TRUST_S3, loopback_without_proxy, s3_distrusted, with_driver
from remint.runtime.home import S3_PATIENCE
from remint.runtime.locks import locked
from remint.runtime.retry import doubling, retry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Connection

PREFIX = "remint."  # of our tags in MLflow; our records have them without it
ATTEMPTS = 9  # times that a request is sent whose reply is lost: for 13 seconds
PAUSE = 0.05  # seconds before it is sent again, twice as many each time
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM_WORDS = ("disk is full", "disk I/O error", "No space left", "File too large", "could not extend file")
AWAY = "TEMPORARILY_UNAVAILABLE"  # MLflow's code where its database refused, or went away
LOST = ("INTERNAL_ERROR", AWAY)  # its codes where it does not know whether a request was done
TRUST = "name the file of the authority that it is of in MLFLOW_TRACKING_SERVER_CERT_PATH"

Made = TypeVar("Made")
Answer = TypeVar("Answer")

# MLflow reads these when it is imported, by whomever: so they are set before anybody here can.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # of a server's runs, into what --json prints
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # nothing of ours is a pickle
os.environ.update(loopback_without_proxy())  # of a server on this machine
for _name, _value in S3_PATIENCE.items():  # of its files
    os.environ.setdefault(_name, _value)
_environment = threading.RLock()


@lru_cache(maxsize=8)
def client(uri: str, lock: Path) -> MlflowClient:
    """MLflow's client of one address; its database is made under a lock where there is none (seconds, once).

    A SQLite database is made beside its place and renamed into it: MLflow's migrations are not one transaction, and a
    file that a killed process left half migrated would be refused for ever.
    """
    from mlflow import MlflowClient

    # MLflow prints the traceback of an error and raises it as well; ours is the one line that people should see.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with exclusive(lock, "database", uri):
        place = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished = place.with_name(f".{place.name}.unfinished")
            unfinished.unlink(missing_ok=True)
            MlflowClient(f"sqlite:///{unfinished}", registry_uri=f"sqlite:///{unfinished}").search_experiments(max_results=1)
            unfinished.rename(place)
        opened = cast("MlflowClient", RetryingClient(MlflowClient(uri, registry_uri=uri)))
        _greet(opened, uri)
    return opened


def _greet(client: MlflowClient, uri: str) -> None:
    """A first request. A certificate that is not believed will not be believed later: MLflow would ask for four minutes."""
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
    """MLflow's client, which asks again where a database went away: one that restarts ends no training.

    What makes something is not sent again (``once`` does, after a look); to do the rest twice is to do it once. For a server
    MLflow's own retries do this, but for a reply that breaks off after its first line.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._patient = client
        # Each write loads every version of the model, to see that it is no prompt: once is enough, at 10,000 it takes 0.3 s.
        client._raise_if_prompt = cache(client._raise_if_prompt)  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._patient, name)
        return found if name.startswith(("_", "create_")) or not callable(found) else partial(_again, found)


def _again(call: Callable[..., Answer], *arguments: Any, **named: Any) -> Answer:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import ChunkedEncodingError
    from sqlalchemy.exc import OperationalError

    def passes(error: Exception) -> bool:
        if not isinstance(error, MlflowException | OperationalError):  # the latter where MLflow lets it through as a session ends
            return False
        went_away = getattr(error, "error_code", AWAY) == AWAY or isinstance(error.__context__, ChunkedEncodingError)
        return went_away and not _is_full(error)

    return retry(partial(call, *arguments, **named), passes=passes, pauses=doubling(PAUSE, ATTEMPTS))


@contextmanager
def exclusive(lock: Path, name: str, uri: str = "") -> Iterator[None]:
    """Nobody else on this host, nor on any other of the same PostgreSQL, is inside a block of this name.

    Raises TrackingError where PostgreSQL is out of reach, or went away during the block: what was done in it is done, and other
    hosts may have come in meanwhile.
    """
    path = lock.with_name(f"{lock.name}-{hashlib.sha256(name.encode()).hexdigest()[:16]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if not uri.startswith("postgresql"):
            yield
            return
        from sqlalchemy.exc import DBAPIError

        connection = _locked(uri, name)
        try:
            yield
        except BaseException:
            _let_go(connection)
            raise
        try:
            connection.commit()
        except DBAPIError as error:
            raise TrackingError(
                f"the lock on {name} was lost, its PostgreSQL went away: run again ({first_line(error)})"
            ) from error
        finally:
            _let_go(connection)


def _locked(uri: str, name: str) -> Connection:
    """A connection that holds the lock of this name until it is closed, or its PostgreSQL goes away."""
    import sqlalchemy as sa

    word = int.from_bytes(hashlib.sha256(f"remint {name}".encode()).digest()[:8], "big", signed=True)
    engine = sa.create_engine(with_driver(uri), poolclass=sa.NullPool)

    def take() -> Connection:
        connection = engine.connect()
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(word)))
        return connection

    try:
        return retry(take, passes=lambda error: isinstance(error, sa.exc.OperationalError), pauses=doubling(PAUSE, ATTEMPTS))
    except sa.exc.OperationalError as error:
        raise TrackingError(f"the lock on {name} cannot be had, its PostgreSQL is away: {first_line(error)}") from error


def _let_go(connection: Connection) -> None:
    from sqlalchemy.exc import DBAPIError

    with suppress(DBAPIError):  # it is gone already
        connection.close()


def create_once(create: Callable[[], Made], find: Callable[[], Made | None]) -> Made:
    """What ``create`` makes, made once: where its reply is lost, ``find`` is asked before it is sent again.

    MLflow's own retries are off inside: they send a POST again whose first copy may have been done.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    def work() -> Made:
        with _no_retries():
            return create()

    def passes(error: Exception) -> bool:
        lost = isinstance(error, MlflowException | OperationalError) and getattr(error, "error_code", AWAY) in LOST
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
    """Turns MLflow's errors, and those of what it stands on, into ours. ``what`` completes "MLflow could not ..."."""
    try:
        yield
    except (RemintError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not _is_vendor(error):
            raise
        line = first_line(error)
        if _is_full(error):
            raise StorageError(f"no room to {what}: {line}; nothing half-made is left; free space and run again") from error
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
    """Whether an error comes from MLflow, its database, its network or its files, and not from a mistake of ours."""
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
    """Our tags as MLflow holds them."""
    return {key if key.startswith((PREFIX, "mlflow.")) else PREFIX + key: value for key, value in tags.items()}


def pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Everything that a paged search finds."""
    token = None
    while True:
        page = search(max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
