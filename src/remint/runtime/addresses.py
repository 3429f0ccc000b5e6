"""Addresses of servers and databases, as people write them."""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit, urlunsplit

# OpenSSL's word for a server's certificate that is not trusted here, in the errors of all that stand on it.
DISTRUST = "CERTIFICATE_VERIFY_FAILED"
TRUST_S3 = "S3's certificate is not trusted here: name the file of the authority that it is of in AWS_CA_BUNDLE"


def s3_distrusted(words: str) -> bool:
    """Whether it is S3's certificate that boto3 does not trust, by its words or by those of dvc and MLflow, who pass them on."""
    return DISTRUST in words and "SSL validation failed" in words


LOOPBACK = ("127.0.0.1", "localhost", "::1")  # names that this machine has for itself


def is_loopback(host: str) -> bool:
    """Whether a host of an address is this machine, by a name that no other machine reaches."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def loopback_without_proxy() -> dict[str, str]:
    """Variables by which HTTP clients (Prefect's, MLflow's, boto3's) ask this machine itself directly, and not a proxy.

    Some read the one spelling, some the other; the hosts that a person excluded stay excluded.
    """
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = dict.fromkeys([*(each.strip() for each in given.split(",") if each.strip()), *LOOPBACK])
    value = given if given.strip() == "*" else ",".join(hosts)
    return {"NO_PROXY": value, "no_proxy": value}


def without_user(address: str) -> str:
    """An address without the user and password that it may hold."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def with_driver(address: str) -> str:
    """``postgresql://`` by psycopg 3, the driver that is tested: what the bare name means changes with SQLAlchemy's version."""
    return address.replace("postgresql://", "postgresql+psycopg://", 1) if address.startswith("postgresql://") else address
