"""A bucket as S3 shows it: listed, read object by object with every byte verified, and its errors made ours."""

from __future__ import annotations

import errno
import hashlib
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
from remint.runtime.addresses import TRUST_S3, s3_distrusted
from remint.runtime.retry import doubling, retry

SCHEME = "s3://"
REQUESTS = 8  # times that a request is sent which gets no answer, or one that the server blames itself for: for half a minute
PAUSE = 0.05  # seconds before an object that came cut off is asked for again, twice as many each time
READ_TIMEOUT = 60  # seconds that an answer may stand still
DOWNLOADS = 3  # times that an object is fetched whose bytes come broken; one that comes cut off: REQUESTS times
PAGE = 1000  # objects in one listing, the most that S3 gives
CONNECTIONS = 16  # at the same time
CHUNK = 2**20  # bytes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")  # of a bucket
MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag that is one: that of an object which was not uploaded in parts
GONE = ("PreconditionFailed", "NoSuchKey", "412", "404")  # S3's codes for an object that is not the one that was listed
STALE = ("ExpiredToken", "InvalidToken", "RequestTimeTooSkewed")  # refusals that come with other statuses than 403


@dataclass(frozen=True)
class Listed:
    """An object as the bucket lists it. ``name``: its path in the folder."""

    name: str
    key: str
    size: int
    etag: str  # "" where the server gives none
    modified: datetime


class Changed(Exception):
    """The object is not the one that was listed."""


class _Broken(Exception):
    """The bytes that came are not those of the object."""


class Bucket:
    """What lies below ``prefix``. One for all threads of a fetch."""

    def __init__(self, bucket: str, prefix: str, requests: int | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.s3 = _client(requests or REQUESTS)

    def objects(self) -> dict[str, Listed]:
        """Everything below the prefix, by its path in the folder; or the one object that the prefix itself names.

        Raises DataError where that is nothing, or something that cannot be laid down as files below a folder.
        """
        prefix = self.prefix
        if prefix and not prefix.endswith("/"):
            first = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
            if first and first[0]["Key"] == prefix and first[0]["Size"]:
                name = path_of(prefix.rpartition("/")[2])
                return {name: _listed(name, first[0])}
            prefix += "/"
        found = {}
        listing = self.s3.get_paginator("list_objects_v2")
        for page in listing.paginate(Bucket=self.bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE}):
            for entry in page.get("Contents", []):
                if entry["Size"] or not entry["Key"].endswith("/"):  # the others are what a console makes to show a folder
                    name = path_of(entry["Key"].removeprefix(prefix))
                    found[name] = _listed(name, entry)
        if not found:
            raise DataError("nothing lies there: correct bucket and prefix, or upload the data")
        folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
        if both := sorted(folders & set(found)):
            raise DataError(f"the key {both[0]!r} is an object and the folder of others: rename one of them")
        return found

    def read(self, listed: Listed, part: Path, on_bytes: Callable[[int], None]) -> tuple[str, str | None]:
        """Writes an object's bytes, verified, to ``part``; their SHA-256 and the object's version (None: it has none).

        ``on_bytes`` is told of each chunk; what it raises ends the read. Raises Changed; IntegrityError where the bytes are
        DOWNLOADS times not what the bucket says of them; StorageError where they come cut off REQUESTS times.
        """
        from botocore.exceptions import FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        cut, broken = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError), (_Broken, FlexibleChecksumError)
        pauses = doubling(PAUSE, REQUESTS)  # boto3 waits before it sends a request again, not where an answer broke off

        def download() -> tuple[str, str | None]:
            return retry(lambda: self._read(listed, part, on_bytes), passes=lambda error: isinstance(error, cut), pauses=pauses)

        end = "times: nothing of it was kept; run again"
        try:
            return retry(download, passes=lambda error: isinstance(error, broken), pauses=[0.0] * (DOWNLOADS - 1))
        except broken:
            raise IntegrityError(f"{listed.key!r} came with other bytes than the bucket says, {DOWNLOADS} {end}") from None
        except cut:
            raise StorageError(f"{listed.key!r} came cut off, {REQUESTS} {end}") from None

    def _read(self, listed: Listed, part: Path, on_bytes: Callable[[int], None]) -> tuple[str, str | None]:
        """boto3 verifies the checksum that the server sends, if any.

        The ETag is the bytes' MD5 where it looks like one and the object is not encrypted with a key of its owner
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
            raise _Broken
        return sha256.hexdigest(), answer.get("VersionId")

    def _get(self, listed: Listed) -> Any:
        from botocore.exceptions import ClientError

        condition = {"IfMatch": f'"{listed.etag}"'} if listed.etag else {}
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=listed.key, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in GONE:
                raise Changed from None
            raise
        if not listed.etag and answer["LastModified"] != listed.modified.replace(microsecond=0):
            raise Changed
        return answer


def parse(where: str, url: str) -> tuple[str, str]:
    """Bucket and prefix of s3://bucket/prefix. Raises DataError, which does not repeat what may be a password."""
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not NAME.fullmatch(bucket):
        raise DataError(
            f"{where}: expected s3://bucket/prefix, without credentials (those belong into ~/.aws or the environment)"
        )
    return bucket, prefix


def path_of(name: str) -> str:
    """``name``, a key below the prefix, where it can be a file below a folder. Raises DataError where it cannot."""
    parts = name.split("/")
    unfit = any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts)
    if unfit or "\\" in name or "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(
            f"the key {name!r} cannot be a file below a folder (parts that are empty, '.', '..' or longer than 255 bytes, "
            "backslashes and NUL are refused): rename the object or take another prefix"
        )
    return name


def _listed(name: str, entry: Mapping[str, Any]) -> Listed:
    return Listed(name, entry["Key"], entry["Size"], entry.get("ETag", "").strip('"'), entry["LastModified"])


def answers(where: str, url: str) -> None:
    """Asks once whether these credentials may list what lies at an address. Raises as ``door`` does."""
    with door(f"{where}: {url}"):
        asked = Bucket(*parse(where, url), requests=1)
        asked.s3.list_objects_v2(Bucket=asked.bucket, Prefix=asked.prefix, MaxKeys=1)


def _client(requests: int) -> Any:
    import boto3.session
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": requests},
        response_checksum_validation="when_supported",  # whatever the environment says: with when_required flipped bytes pass
        max_pool_connections=CONNECTIONS,
        connect_timeout=10,
        read_timeout=READ_TIMEOUT,
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
    except ValueError:
        raise StorageError("the endpoint is not an address: correct AWS_ENDPOINT_URL (https://host:port)") from None
    client.meta.events.register_first("needs-retry.s3", _give_up)
    return client


def _give_up(caught_exception: Exception | None = None, **_: object) -> None:
    """boto3 asks before each retry: a certificate that is not trusted will not be trusted later."""
    if caught_exception is not None and s3_distrusted(str(caught_exception)):
        raise caught_exception


@contextmanager
def door(where: str) -> Iterator[None]:
    """Turns boto3's errors, and those of this machine's files, into ours, which begin with ``where``.

    ``from None``: the vendor's own words may hold an endpoint with a password in it, and Prefect logs what an error came from.
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
        remedy = "free space and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "look at that folder's rights"
        raise StorageError(f"{where}: {error.strerror}: {error.filename}: what was there is intact; {remedy}") from None


def _answered(where: str, response: Mapping[str, Any]) -> RemintError:
    """What S3 answered, with what to do about it."""
    code, status = response["Error"].get("Code", "?"), response["ResponseMetadata"]["HTTPStatusCode"]
    if code in ("NoSuchBucket", "InvalidBucketName"):
        return DataError(f"{where}: there is no such bucket at this endpoint: correct the source, or AWS_ENDPOINT_URL")
    if code == "InvalidObjectState":
        return StorageError(f"{where}: objects of it are archived (Glacier): restore them first")
    if status in (401, 403) or code in STALE:
        return StorageError(
            f"{where}: S3 refuses ({code}): check the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) and that they may list and read this"
        )
    if status >= 500 or status == 429:
        return StorageError(f"{where}: S3 failed {REQUESTS} times (the last time: {status} {code}): run again later")
    return StorageError(f"{where}: S3 answered {status} {code}: check AWS_REGION and AWS_ENDPOINT_URL")


def _unanswered(error: Exception) -> str:
    """Why no answer came, without the vendor's words."""
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
