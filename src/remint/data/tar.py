"""The members of a tar, by their headers alone, forwards only (POSIX.1-2024, pax; GNU tar's manual, "Basic Tar Format").

A member is a header of 512 bytes, then its content, padded to a multiple of 512; a block of zeros ends the archive. Headers of
type x (pax: records "LENGTH KEY=VALUE") and L (GNU: a name) say more of the next member. Nothing that a header says is
believed further than the limits below, and two headers cannot disagree about where the next one lies: there is one reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512
ZEROS = bytes(BLOCK)
LONGEST_HEADER = 1 << 20  # bytes of what a header of type x or L says
CHAIN = 8  # such headers before one member
RECORDS = 1_000  # pax records of the whole archive ...
RECORDS_EACH = 32  # ... and for each member

FILES, FOLDER = (b"0", b"\0"), b"5"
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL = b"L", b"K", b"x", b"g"


class Stream(Protocol):
    """The bytes of an archive. ``take`` and ``skip`` raise EOFError where it ends before."""

    def tell(self) -> int: ...
    def take(self, size: int) -> bytes: ...
    def skip(self, to: int) -> None: ...


@dataclass(frozen=True)
class Member:
    """One member, of whatever type. Its content begins where the stream stands."""

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


def members(stream: Stream, *, trusting: bool = False) -> Iterator[Member]:
    """Each member before its content, down to the block that ends the archive.

    ``trusting``: without a look at checksums, for those who only count. Raises EOFError where it is cut off, ValueError for a
    header that is damaged or claims too much.
    """
    count = records = 0
    while (block := stream.take(BLOCK)) != ZEROS:
        said: dict[bytes, bytes] = {}
        for _ in range(CHAIN):
            kind = block[156:157]
            size = _number(block[124:136])
            if not trusting:
                _check(block)
            if kind not in (LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL):
                break
            if size > LONGEST_HEADER:
                raise ValueError(f"a header claims {size:,} bytes")
            more, read = _parse_header(kind, _padded(stream, size))
            records += read
            if records > RECORDS + RECORDS_EACH * count:
                raise ValueError(f"its headers hold {records:,} records")
            said |= more
            block = stream.take(BLOCK)
        else:
            raise ValueError(f"more than {CHAIN} headers before one member")
        if b"size" in said:
            size = int(said[b"size"])
        if size < 0:
            raise ValueError("a size below 0")
        count += 1
        start = stream.tell()
        name = said.get(b"path", _name(block)).decode(errors="surrogateescape")
        yield Member(name, size, kind, any(key.startswith(b"GNU.sparse") for key in said))
        stream.skip(start + size + -size % BLOCK)


def _padded(stream: Stream, size: int) -> bytes:
    return stream.take(size + -size % BLOCK)[:size]


def _number(field: bytes) -> int:
    """Octal digits; or, where the first bit is set, a number to the base of 256."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _check(block: bytes) -> None:
    """Raises ValueError where a header's checksum is not its own: the sum of its bytes, with blanks for the sum itself."""
    said = _number(block[148:156])
    if said != 256 + sum(block[:148]) + sum(block[156:]) and said != 256 + sum(struct.unpack("148b8x356b", block)):
        raise ValueError("the checksum of a header is wrong")


def _name(block: bytes) -> bytes:
    name, prefix = (field.split(b"\0", 1)[0] for field in (block[:100], block[345:500]))
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _parse_header(kind: bytes, content: bytes) -> tuple[dict[bytes, bytes], int]:
    """What a header says of the next member, and in how many records.

    What one says of all that follow must not name or measure them.
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
        if length <= blank - at or not equals or records > RECORDS:
            raise ValueError("a record of a header is damaged")
        found[key] = value
        at += length
    if kind == PAX_OF_ALL and not found.keys().isdisjoint({b"path", b"size"}):
        raise ValueError("a header gives all members one name or size")
    return {} if kind == PAX_OF_ALL else found, records
