"""Bucket on S3: list its objects, read them with every byte verified, and turn boto3's errors into remint's."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from remint.errors import DataError, IntegrityError, RemintError, StorageError
from remint.runtime.addresses import TRUST_S3, loopback_without_proxy, s3_distrusted
from remint.runtime.manifest import NO_ROOM
from remint.runtime.retry import doubling, retry

SCHEME = "s3://"
REQUESTS = 8  # tries of a request that gets no answer or a server error, over half a minute
PAUSE = 0.05  # seconds before a truncated object is requested again, doubled each time
READ_TIMEOUT = 60  # seconds without a byte of an answer
DOWNLOADS = 3  # tries of an object whose bytes are wrong; a truncated one: REQUESTS tries
PAGE = 1000  # objects in one listing, S3's maximum
CONNECTIONS = 16  # parallel connections
CHUNK = 2**20  # bytes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")  # of a bucket
MD5 = re.compile(r"[0-9a-f]{32}")  # the ETag of an object that was not uploaded in parts
GONE = ("PreconditionFailed", "NoSuchKey", "412", "404")  # S3's codes for an object that changed since it was listed
STALE = ("ExpiredToken", "InvalidToken", "RequestTimeTooSkewed")  # refusals with other statuses than 403


@dataclass(frozen=True)
class BucketObject:
    """Object in a bucket's listing. ``name``: its path in the folder."""

    name: str
    key: str
    size: int
    etag: str  # "" if the server sends none
    modified: datetime


class ObjectChanged(Exception):
    """Error: the object changed since it was listed."""


class _WrongBytes(Exception):
    """Error: the received bytes are not those of the object."""


class Bucket:
    """Objects below ``prefix``. All threads of a fetch share one instance."""

    def __init__(self, bucket: str, prefix: str, requests: int | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.s3 = _client(requests or REQUESTS)

    def objects(self) -> dict[str, BucketObject]:
        """Return the objects below the prefix, by path in the folder; or the single object that the prefix names.

        Raises DataError if there are none, or if their keys cannot be files below a folder.
        """
        prefix = self.prefix
        if prefix and not prefix.endswith("/"):
            if (single := self.find(prefix)) is not None and single.size:
                return {single.name: single}
            prefix += "/"
        found = {}
        listing = self.s3.get_paginator("list_objects_v2")
        for page in listing.paginate(Bucket=self.bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE}):
            for entry in page.get("Contents", []):
                if entry["Size"] or not entry["Key"].endswith("/"):  # a console makes empty objects to show folders
                    name = path_of(entry["Key"].removeprefix(prefix))
                    found[name] = _listed(name, entry)
        if not found:
            raise DataError("there are no objects: correct bucket and prefix, or upload the data")
        folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
        if both := sorted(folders & set(found)):
            raise DataError(f"the key {both[0]!r} is both an object and a folder of other objects: rename one of them")
        return found

    def find(self, key: str) -> BucketObject | None:
        """Return the object of a key, which ends in no slash; None if there is none."""
        first = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=key, MaxKeys=1).get("Contents", [])
        return _listed(path_of(key.rpartition("/")[2]), first[0]) if first and first[0]["Key"] == key else None

    def read(self, listed: BucketObject, part: Path, on_bytes: Callable[[int], None]) -> tuple[str, str | None]:
        """Write an object's bytes, verified, to ``part``. Return their SHA-256 and the object's version (None: it has none).

        ``on_bytes`` gets the size of each chunk; it may raise to end the read. Raises ObjectChanged; IntegrityError if the bytes
        do not match the bucket's listing DOWNLOADS times; StorageError if they are truncated REQUESTS times.
        """
        from botocore.exceptions import FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        cut, broken = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError), (_WrongBytes, FlexibleChecksumError)
        pauses = doubling(PAUSE, REQUESTS)  # boto3 retries requests, but not answers that break off

        def download() -> tuple[str, str | None]:
            return retry(lambda: self._read(listed, part, on_bytes), passes=lambda error: isinstance(error, cut), pauses=pauses)

        end = "times: nothing was kept; run again"
        try:
            return retry(download, passes=lambda error: isinstance(error, broken), pauses=[0.0] * (DOWNLOADS - 1))
        except broken:
            raise IntegrityError(f"{listed.key!r} did not match its size or checksum in the bucket, {DOWNLOADS} {end}") from None
        except cut:
            raise StorageError(f"{listed.key!r} was truncated, {REQUESTS} {end}") from None

    def _read(self, listed: BucketObject, part: Path, on_bytes: Callable[[int], None]) -> tuple[str, str | None]:
        """Read once. boto3 verifies the checksum that the server sends, if any.

        The ETag is the bytes' MD5 if it looks like one and the object is not encrypted with a key of its owner
        (S3's API reference, "Object").
        """
        answer = self._get(listed)
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        with closing(answer["Body"]) as body, part.open("wb") as stream:
            for chunk in body.iter_chunks(CHUNK):
                on_bytes(len(chunk))
                stream.write(chunk)
                sha256.update(chunk)
                md5.update(chunk)
                size += len(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        own_key = "SSECustomerAlgorithm" in answer or answer.get("ServerSideEncryption", "").startswith("aws:kms")
        if size != listed.size or (MD5.fullmatch(listed.etag) and not own_key and md5.hexdigest() != listed.etag):
            raise _WrongBytes
        return sha256.hexdigest(), answer.get("VersionId")

    def _get(self, listed: BucketObject) -> Any:
        from botocore.exceptions import ClientError

        condition = {"IfMatch": f'"{listed.etag}"'} if listed.etag else {}
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=listed.key, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in GONE:
                raise ObjectChanged from None
            raise
        if not listed.etag and answer["LastModified"] != listed.modified.replace(microsecond=0):
            raise ObjectChanged
        return answer


def parse(where: str, url: str) -> tuple[str, str]:
    """Return bucket and prefix of s3://bucket/prefix. Raises DataError, which does not repeat ``url``: it may hold a password."""
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not NAME.fullmatch(bucket):
        raise DataError(f"{where}: expected s3://bucket/prefix without credentials (put those into ~/.aws or the environment)")
    return bucket, prefix


def path_of(name: str) -> str:
    """Return ``name``, a key below the prefix. Raises DataError if it cannot be a file below a folder."""
    parts = name.split("/")
    unfit = any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts)
    if unfit or "\\" in name or "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(
            f"the key {name!r} cannot be a file below a folder (refused: parts that are empty, '.', '..' or longer than "
            "255 bytes, backslashes, NUL): rename the object or use another prefix"
        )
    return name


def _listed(name: str, entry: Mapping[str, Any]) -> BucketObject:
    return BucketObject(name, entry["Key"], entry["Size"], entry.get("ETag", "").strip('"'), entry["LastModified"])


def answers(where: str, url: str) -> str:
    """Check, with one request, that these credentials may list an address. Return the header Date. Raises as ``door`` does."""
    with door(f"{where}: {url}"):
        asked = Bucket(*parse(where, url), requests=1)
        answer = asked.s3.list_objects_v2(Bucket=asked.bucket, Prefix=asked.prefix, MaxKeys=1)
        return str(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))


def fingerprint(where: str, url: str) -> str:
    """Return the SHA-256 of an address's listing: names, sizes and ETags (times without one). Raises as ``door`` does.

    A request lists 1,000 objects, and no object is read.
    """
    with door(f"{where}: {url}"):
        listed = Bucket(*parse(where, url)).objects()
    facts = ([each.name, each.size, each.etag or each.modified.isoformat()] for each in listed.values())
    return hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()


def _client(requests: int) -> Any:
    import boto3.session
    from botocore.config import Config

    os.environ.update(loopback_without_proxy())  # for a server on this machine
    config = Config(
        retries={"mode": "standard", "total_max_attempts": requests},
        response_checksum_validation="when_supported",  # not from the environment: when_required would accept flipped bytes
        max_pool_connections=CONNECTIONS,
        connect_timeout=10,
        read_timeout=READ_TIMEOUT,
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
    except ValueError:
        raise StorageError("the endpoint is not a valid address: correct AWS_ENDPOINT_URL (https://host:port)") from None
    client.meta.events.register_first("needs-retry.s3", _give_up)
    return client


def _give_up(caught_exception: Exception | None = None, **_: object) -> None:
    """Stop boto3's retries (it calls this before each) if the certificate is not trusted: that will not change."""
    if caught_exception is not None and s3_distrusted(str(caught_exception)):
        raise caught_exception


@contextmanager
def door(where: str) -> Iterator[None]:
    """Turn errors of boto3 and of local files into remint's, which begin with ``where``.

    ``from None``: boto3's message may hold an endpoint with a password, and Prefect logs the cause of an error.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except RemintError as error:
        raise type(error)(f"{where}: {error}") from None
    except ClientError as error:
        raise _answered(where, error.response) from None
    except BotoCoreError as error:
        raise StorageError(f"{where}: {_unanswered(error)}") from None
    except OSError as error:
        remedy = "free space and run again" if error.errno in NO_ROOM else "check that folder's permissions"
        raise StorageError(f"{where}: {error.strerror}: {error.filename}: earlier files are intact; {remedy}") from None


def _answered(where: str, response: Mapping[str, Any]) -> RemintError:
    """Return the error for an answer of S3, with its remedy."""
    code, status = response["Error"].get("Code", "?"), response["ResponseMetadata"]["HTTPStatusCode"]
    if code in ("NoSuchBucket", "InvalidBucketName"):
        return DataError(f"{where}: this bucket does not exist at this endpoint: correct the source, or AWS_ENDPOINT_URL")
    if code == "InvalidObjectState":
        return StorageError(f"{where}: some objects are archived (Glacier): restore them first")
    if status in (401, 403) or code in STALE:
        return StorageError(
            f"{where}: S3 refuses ({code}): check the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) and their permission to list and read this"
        )
    if status >= 500 or status == 429:
        return StorageError(f"{where}: S3 failed {REQUESTS} times (last: {status} {code}): run again later")
    return StorageError(f"{where}: S3 answered {status} {code}: check AWS_REGION and AWS_ENDPOINT_URL")


def _unanswered(error: Exception) -> str:
    """Return the reason for a missing answer, without boto3's message."""
    from botocore import exceptions as vendor

    kind = type(error).__name__
    if s3_distrusted(str(error)):
        return TRUST_S3
    if isinstance(error, vendor.HTTPClientError | vendor.ConnectionError):
        address = urlsplit(getattr(error, "kwargs", {}).get("endpoint_url") or "")
        host = f" at {address.hostname}{f':{address.port}' if address.port else ''}" if address.hostname else ""
        return f"S3 is out of reach{host} ({kind}): check the network and AWS_ENDPOINT_URL, or run again later"
    known = (vendor.NoCredentialsError, vendor.PartialCredentialsError, vendor.CredentialRetrievalError, vendor.SSOError)
    if isinstance(error, (*known, vendor.ProfileNotFound, vendor.TokenRetrievalError)):
        return (
            f"no credentials for S3 ({kind}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or write ~/.aws/credentials"
        )
    return f"boto3 could not read it ({kind}): check the AWS settings (aws configure list)"
