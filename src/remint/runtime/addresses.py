"""Helpers for the addresses of servers and databases."""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit, urlunsplit

# OpenSSL's code for an untrusted server certificate. Errors of boto3, requests and httpx contain it.
DISTRUST = "CERTIFICATE_VERIFY_FAILED"
TRUST_S3 = "S3's certificate is not trusted here: name the file of its certificate authority in AWS_CA_BUNDLE"


def s3_distrusted(message: str) -> bool:
    """Return whether an error of boto3 (or of dvc or MLflow, which repeat it) means that S3's certificate is not trusted."""
    return DISTRUST in message and "SSL validation failed" in message


LOOPBACK = ("127.0.0.1", "localhost", "::1")  # names of this machine


def is_loopback(host: str) -> bool:
    """Return whether the host of an address is a loopback name of this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def loopback_without_proxy() -> dict[str, str]:
    """Return the variables that make HTTP clients (Prefect's, MLflow's, boto3's) call this machine without a proxy.

    Both spellings are set, because some clients read only one of them. Hosts that either of them excluded stay excluded.
    """
    given = [each.strip() for name in ("no_proxy", "NO_PROXY") for each in os.environ.get(name, "").split(",")]
    value = "*" if "*" in given else ",".join(dict.fromkeys([*filter(None, given), *LOOPBACK]))
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
