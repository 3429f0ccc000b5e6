"""Reader of .zip, .tar and .tar.gz files: sequential, in memory, never unpacked to disk.

Nothing is written, so a member's name can do no harm. A name that leads out of the folder is still refused: it is an
attack or a mistake. Members must be regular files: links, devices, sparse files and encrypted files are refused by name.
The limits below bound the memory for any header, and members are counted before the first is read. (tarfile reads
headers of any length, takes 25 microseconds for each, and its filter can be bypassed before Python 3.11.13. Therefore
tar.py reads tars.)
"""

from __future__ import annotations

import errno
import gzip
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from remint.data import tar
from remint.data.folder import File, is_hidden
from remint.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

MOST_MEMBERS = 250_000
MOST_BYTES = 8 << 30  # of all members together
MOST_RATIO = 100  # unpacked bytes for each packed byte, after the first FREE_BYTES
FREE_BYTES = 16 << 20
LONGEST_NAME = 4_096  # characters, folders included
LONGEST_READ = 64 << 20  # bytes of one member
BLOCK = 1 << 20
ENTRY = b"PK\x01\x02"  # first bytes of an entry in a zip's directory

# Errors of zipfile, gzip, struct and tar.py for damaged or false content.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    ValueError,
    IndexError,
    OverflowError,
    NotImplementedError,
)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def files(path: Path) -> Iterator[File]:
    """Yield the regular, visible members of an archive. Read each one before you ask for the next.

    Raises DataError, which names archive and member, if one is damaged, hostile or larger than the limits.
    """
    seen: set[str] = set()
    with _damage_as_data_error(path):
        for file in _zip(path) if path.name.lower().endswith(".zip") else _tar(path):
            if file.name in seen:
                raise DataError(f"{path}: member {file.name!r} occurs twice: remove one of them and pack it again")
            seen.add(file.name)
            if not is_hidden(file.name):
                yield replace(file, read=partial(_read, path, file.read))


@contextmanager
def _damage_as_data_error(path: Path) -> Iterator[None]:
    """Turn every error about damaged content into a DataError that names the archive."""
    try:
        yield
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: an offset before the start
            raise
        raise DataError(f"{path} is not an archive, or is damaged ({type(error).__name__}: {error}): pack it again") from error


def _read(path: Path, read: Callable[[], bytes]) -> bytes:
    with _damage_as_data_error(path):
        return read()


def _zip(path: Path) -> Iterator[File]:
    check_limits(path, count_zip_entries(path), 0, None)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        check_limits(path, len(members), total, path.stat().st_size)
        for place, member in enumerate(members):
            name = _safe_name(path, member.orig_filename)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{path}: member {name!r} is a link or a device, not a file: pack the files themselves")
            if member.flag_bits & 1:
                raise DataError(f"{path}: member {name!r} is encrypted: pack it without a password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{path}: member {name!r} is not compressed by deflate: pack it again with deflate")
            if not member.is_dir():
                yield File(name, member.file_size, partial(_read_zip_member, archive, member), (place, len(members)))


def _read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return the bytes of one member. ZipFile.read would unpack all content, even beyond the size in the directory."""
    if member.file_size > LONGEST_READ:
        raise ValueError(f"a member has {member.file_size:,} bytes, more than {LONGEST_READ:,}")
    with archive.open(member) as stream:
        content = stream.read(member.file_size)
        if len(content) < member.file_size or stream.read(1):
            raise EOFError("the size of a member differs from the size in the archive's directory")
    return content


def count_zip_entries(path: Path) -> int:
    """Return an upper bound of the entries in a zip's directory: zipfile makes an object for each, without a limit."""
    count, rest = 0, b""
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            block = rest + block
            count += block.count(ENTRY)
            rest = block[1 - len(ENTRY) :]
    return count


def _tar(path: Path) -> Iterator[File]:
    """Yield the regular files of a tar."""
    count = 0
    with path.open("rb") as packed:
        for _ in tar.members(_BoundedStream(path, packed), verify_checksums=False):
            count += 1
            check_limits(path, count, 0, None)
    with path.open("rb") as packed:
        meter = _BoundedStream(path, packed)
        for place, member in enumerate(tar.members(meter)):
            name = _safe_name(path, member.name)
            if not (member.is_file or member.is_folder):
                raise DataError(f"{path}: member {name!r} is a link, a device or sparse, not a file: pack the files themselves")
            check_limits(path, place + 1, meter.tell() + member.size, None)
            if member.is_file:
                yield File(name, member.size, partial(meter.read, member.size), (place, count))
        meter.finish()


def check_limits(path: Path, count: int, total: int, packed: int | None) -> None:
    """Raise DataError if ``count`` members or ``total`` unpacked bytes (from ``packed`` bytes) exceed the limits."""
    if count > MOST_MEMBERS:
        raise DataError(f"{path} holds more than {MOST_MEMBERS:,} files: use the unpacked folder as the source")
    if total > MOST_BYTES:
        raise DataError(f"{path} unpacks to more than {MOST_BYTES >> 20:,} MiB: use the unpacked folder as the source")
    if packed is not None and total > MOST_RATIO * packed + FREE_BYTES:
        raise DataError(
            f"{path} unpacks to more than {MOST_RATIO} times its size, as a decompression bomb does: "
            "use the unpacked folder as the source"
        )


def _safe_name(path: Path, name: str) -> str:
    """Return the member's name, its parts separated by /. Raises DataError if the name leads out of the folder."""
    parts = re.split(r"[\\/]", name)
    if len(name) > LONGEST_NAME:
        raise DataError(
            f"{path}: member {name[:40]!r}.. has a name of {len(name):,} characters, more than {LONGEST_NAME:,}: pack it again"
        )
    if "\0" in name or parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{path}: member {name!r} has a path that leads out of the archive's folder: pack it again")
    return "/".join(part for part in parts if part not in ("", "."))


class _BoundedStream:
    """Forward-only stream of a tar's unpacked bytes that enforces the limits."""

    def __init__(self, path: Path, packed: BinaryIO) -> None:
        self.path, self.packed = path, packed
        self.size = path.stat().st_size
        self.gzipped = path.name.lower().endswith("gz")
        self.unpacked: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=packed) if self.gzipped else packed
        self.position = 0

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes. Raises EOFError if fewer remain, ValueError if ``size`` exceeds LONGEST_READ."""
        if size > LONGEST_READ:
            raise ValueError(f"a member has {size:,} bytes, more than {LONGEST_READ:,}")
        content = self.unpacked.read(size)
        self._advance(len(content))
        if len(content) < size:
            raise EOFError("the archive ends in the middle of a member")
        return content

    def skip(self, to: int) -> None:
        """Move forward to position ``to``. Raises EOFError if the stream ends before it."""
        if not self.gzipped:
            self.unpacked.seek(to)
            self._advance(to - self.position)
            if to > self.size:
                raise EOFError("the archive ends in the middle of a member")
        while self.position < to:
            self.read(min(BLOCK, to - self.position))

    def finish(self) -> None:
        """Read to the end, where gzip compares its checksum."""
        while content := self.unpacked.read(BLOCK):
            self._advance(len(content))

    def _advance(self, by: int) -> None:
        self.position += by
        check_limits(self.path, 0, self.position, self.packed.tell())
