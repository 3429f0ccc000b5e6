"""Addresses of servers and databases, as people write them."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

# OpenSSL's word for a server's certificate that is not trusted here, in the errors of all that stand on it.
DISTRUST = "CERTIFICATE_VERIFY_FAILED"
TRUST_S3 = "S3's certificate is not trusted here: name the file of the authority that it is of in AWS_CA_BUNDLE"


def s3_distrusted(words: str) -> bool:
    """Whether it is S3's certificate that boto3 does not trust, by its words or by those of dvc and MLflow, who pass them on."""
    return DISTRUST in words and "SSL validation failed" in words


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
