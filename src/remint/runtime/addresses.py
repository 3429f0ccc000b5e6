"""Helpers for the addresses of servers and databases."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies_environment, url2pathname

# OpenSSL's code for an untrusted server certificate. Errors of boto3, requests and httpx contain it.
DISTRUST = "CERTIFICATE_VERIFY_FAILED"
TRUST_S3 = "S3's certificate is not trusted here: name the file of its certificate authority in AWS_CA_BUNDLE"


def s3_distrusted(message: str) -> bool:
    """Return whether an error of boto3 (or of dvc or MLflow, which repeat it) means that S3's certificate is not trusted."""
    return DISTRUST in message and "SSL validation failed" in message


LOOPBACK = ("127.0.0.1", "localhost", "::1")  # names of this machine
IPV6 = "[::1]"  # the last of them as urllib and boto3 compare it; httpx cannot read it
S3_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL")


def is_loopback(host: str) -> bool:
    """Return whether the host of an address is a loopback name of this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def loopback_without_proxy(*more: str) -> dict[str, str]:
    """Return the variables that make HTTP clients (Prefect's, MLflow's, boto3's) call this machine without a proxy.

    Both spellings are set, because some clients read only one of them. Hosts that either of them excluded stay excluded.
    ``more``: other hosts to exclude.
    """
    given = [each.strip() for name in ("no_proxy", "NO_PROXY") for each in os.environ.get(name, "").split(",")]
    is_proxied = bool(getproxies_environment().keys() - {"no"})
    s3 = [IPV6] if is_proxied and any(f"://{IPV6}" in os.environ.get(name, "") for name in S3_ENDPOINTS) else []
    value = "*" if "*" in given else ",".join(dict.fromkeys([*filter(None, given), *LOOPBACK, *s3, *more]))
    return {"NO_PROXY": value, "no_proxy": value}


def without_user(address: str) -> str:
    """Return an address without user and password."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def with_driver(address: str) -> str:
    """Make a ``postgresql://`` address use psycopg 3, the tested driver: SQLAlchemy's default driver depends on its version."""
    return address.replace("postgresql://", "postgresql+psycopg://", 1) if address.startswith("postgresql://") else address


def sqlite_address(file: Path, driver: str = "pysqlite") -> str:
    """Return SQLAlchemy's address of a SQLite database.

    SQLAlchemy takes everything after a question mark for options and has no escape for it; SQLite's own address of a file has.
    With it goes the driver's name: without a driver MLflow takes ``file:..`` for a relative path and makes that folder.
    """
    if "?" in str(file):
        return f"sqlite+{driver}:///{file.as_uri()}?uri=true"
    return f"sqlite{'' if driver == 'pysqlite' else f'+{driver}'}:///{file}"


def sqlite_file(address: str) -> Path | None:
    """Return the file of a SQLite database; None if the address is that of another database or of a server."""
    scheme, _, place = address.partition(":///")
    if scheme not in ("sqlite", "sqlite+pysqlite"):
        return None
    place, _, options = place.partition("?")
    return local_path(place) if "uri=true" in options.split("&") else Path(place)


def local_path(address: str) -> Path | None:
    """Return the path of a ``file://`` address or of a plain path, as MLflow reads them; None for an address elsewhere.

    MLflow decodes %41 in a plain path too.
    """
    parts = urlsplit(address)
    return Path(url2pathname(parts.path if parts.scheme else address)) if parts.scheme in ("", "file") else None
