"""Forward-only reader of tar headers (POSIX.1-2024, pax; GNU tar's manual, "Basic Tar Format").

A member is a header of 512 bytes and its content, padded to a multiple of 512; a block of zeros ends the archive. Headers of
type x (pax: records "LENGTH KEY=VALUE") and L (GNU: a name) describe the next member. The limits below bound every value of
a header. One reader handles all headers, so they cannot disagree about the position of the next one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512
ZEROS = bytes(BLOCK)
LONGEST_HEADER = 1 << 20  # bytes of content of a header of type x or L
MOST_HEADERS = 8  # headers of type x or L before one member
BASE_RECORDS = 1_000  # pax records of the whole archive, plus RECORDS_PER_MEMBER for each member
RECORDS_PER_MEMBER = 32

FILES, FOLDER = (b"0", b"\0"), b"5"
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"


class Stream(Protocol):
    """Bytes of an archive. ``read`` and ``skip`` raise EOFError if it ends too early."""

    def tell(self) -> int: ...
    def read(self, size: int) -> bytes: ...
    def skip(self, to: int) -> None: ...


@dataclass(frozen=True)
class Member:
    """One member of any type. Its content begins at the stream's position."""

    name: str
    size: int  # bytes of the content
    kind: bytes
    sparse: bool

    @property
    def is_folder(self) -> bool:
        return self.kind == FOLDER or (self.kind == b"\0" and self.name.endswith("/"))

    @property
    def is_file(self) -> bool:
        return self.kind in FILES and not self.sparse and not self.is_folder


def members(stream: Stream, *, verify_checksums: bool = True) -> Iterator[Member]:
    """Yield each member before its content, up to the block that ends the archive.

    ``verify_checksums``: not needed to count members. Raises EOFError if the archive is cut off, ValueError if a header is
    damaged or exceeds the limits.
    """
    count = records = 0
    while (block := stream.read(BLOCK)) != ZEROS:
        values: dict[bytes, bytes] = {}
        for _ in range(MOST_HEADERS):
            kind = block[156:157]
            size = _number(block[124:136])
            if verify_checksums:
                _verify_checksum(block)
            if kind not in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
                break
            if size > LONGEST_HEADER:
                raise ValueError(f"a header claims {size:,} bytes")
            new_values, new_records = _parse_header(kind, _padded(stream, size))
            records += new_records
            if records > BASE_RECORDS + RECORDS_PER_MEMBER * count:
                raise ValueError(f"the headers contain {records:,} records")
            values |= new_values
            block = stream.read(BLOCK)
        else:
            raise ValueError(f"more than {MOST_HEADERS} headers before one member")
        if b"size" in values:
            size = int(values[b"size"])
        if size < 0:
            raise ValueError("a size below 0")
        count += 1
        start = stream.tell()
        name = values.get(b"path", _name(block)).decode(errors="surrogateescape")
        yield Member(name, size, kind, any(key.startswith(b"GNU.sparse") for key in values))
        stream.skip(start + size + -size % BLOCK)


def _padded(stream: Stream, size: int) -> bytes:
    return stream.read(size + -size % BLOCK)[:size]


def _number(field: bytes) -> int:
    """Parse octal digits, or a base-256 number if the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _verify_checksum(block: bytes) -> None:
    """Raise ValueError if a header's checksum is wrong: the sum of its bytes, with blanks in the checksum field."""
    stored = _number(block[148:156])
    if stored != 256 + sum(block[:148]) + sum(block[156:]) and stored != 256 + sum(struct.unpack("148b8x356b", block)):
        raise ValueError("the checksum of a header is wrong")


def _name(block: bytes) -> bytes:
    name, prefix = (field.split(b"\0", 1)[0] for field in (block[:100], block[345:500]))
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _parse_header(kind: bytes, content: bytes) -> tuple[dict[bytes, bytes], int]:
    """Return a header's values for the next member, and its number of records.

    Raises ValueError if a header for all following members (type g) gives them a name or size.
    """
    if kind == LONG_NAME:
        return {b"path": content.split(b"\0", 1)[0]}, 1
    if kind == LONG_LINK:
        return {}, 1
    found: dict[bytes, bytes] = {}
    at = records = 0
    while at < len(content):
        records += 1
        blank = content.index(b" ", at, at + 12)
        length = int(content[at:blank])
        key, equals, value = content[blank + 1 : at + length].removesuffix(b"\n").partition(b"=")
        if length <= blank - at or not equals or records > BASE_RECORDS:
            raise ValueError("a record of a header is damaged")
        found[key] = value
        at += length
    if kind == PAX_GLOBAL and not found.keys().isdisjoint({b"path", b"size"}):
        raise ValueError("a header gives all members one name or size")
    return {} if kind == PAX_GLOBAL else found, records
