"""Addresses of servers and databases, as people write them."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


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
