"""The files of a .zip, .tar or .tar.gz, read one after the other from its start to its end, and never unpacked.

Nothing is written anywhere, so a member can do no harm by its name; one whose name would lead out of a folder is refused
all the same, since whoever packed it meant harm or made a mistake. Members are regular files: links, devices, sparse
files and encrypted ones are refused by name. Memory is bounded by the limits below, whatever a header says, and members are
counted before the first of them is read. (tarfile reads a header of any length, and takes 25 microseconds for each; its own
filter can be bypassed before Python 3.11.13. So tars are read by tar.py.)
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
from remint.data.folder import File, hidden
from remint.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

MOST_MEMBERS = 250_000
MOST_BYTES = 8 << 30  # of all members together
MOST_RATIO = 100  # bytes unpacked for each byte packed ...
FREE_BYTES = 16 << 20  # ... beyond these
LONGEST_NAME = 4_096  # characters, folders and all
LONGEST_READ = 64 << 20  # bytes of one member
BLOCK = 1 << 20
ENTRY = b"PK\x01\x02"  # what an entry of a zip's directory begins with

# What zipfile, gzip, struct and tar.py raise for bytes that are not what they claim to be.
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
    """The regular, not hidden members of an archive, each read before the next one is asked for.

    Raises DataError, which names archive and member, for one that is damaged, hostile or larger than the limits.
    """
    seen: set[str] = set()
    with _damage_as_data_error(path):
        for file in _zip(path) if path.name.lower().endswith(".zip") else _tar(path):
            if file.name in seen:
                raise DataError(f"{path}: member {file.name!r} is there twice: which one is meant is not clear")
            seen.add(file.name)
            if not hidden(file.name):
                yield replace(file, read=partial(_read, path, file.read))


@contextmanager
def _damage_as_data_error(path: Path) -> Iterator[None]:
    """Damage, whoever finds it, as one error that names the archive."""
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
                raise DataError(f"{path}: member {name!r} is not packed by deflate: pack it again")
            if not member.is_dir():
                yield File(name, member.file_size, partial(_read_zip_member, archive, member), (place, len(members)))


def _read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The bytes of one member. ZipFile.read would unpack all that there is, however few it says there are."""
    if member.file_size > LONGEST_READ:
        raise ValueError(f"a member of {member.file_size:,} bytes")
    with archive.open(member) as stream:
        content = stream.read(member.file_size)
        if len(content) < member.file_size or stream.read(1):
            raise EOFError("a member has another size than the archive says")
    return content


def count_zip_entries(path: Path) -> int:
    """How many entries a zip's directory can have: zipfile makes an object of each, however many there are."""
    count, rest = 0, b""
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            block = rest + block
            count += block.count(ENTRY)
            rest = block[1 - len(ENTRY) :]
    return count


def _tar(path: Path) -> Iterator[File]:
    """Members of type regular file."""
    count = 0
    with path.open("rb") as packed:
        for _ in tar.members(_BoundedStream(path, packed), trusting=True):
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
                yield File(name, member.size, partial(meter.take, member.size), (place, count))
        meter.finish()


def check_limits(path: Path, count: int, total: int, packed: int | None) -> None:
    """Raises DataError where ``count`` members or ``total`` unpacked bytes (of ``packed`` ones) are beyond the limits."""
    if count > MOST_MEMBERS:
        raise DataError(f"{path} holds more than {MOST_MEMBERS:,} files: give the folder that it was made of")
    if total > MOST_BYTES:
        raise DataError(f"{path} unpacks to more than {MOST_BYTES >> 20:,} MiB: give the folder that it was made of")
    if packed is not None and total > MOST_RATIO * packed + FREE_BYTES:
        raise DataError(f"{path} unpacks to more than {MOST_RATIO} times its size: that is a bomb, not a set of images")


def _safe_name(path: Path, name: str) -> str:
    """The member's name, its parts separated by /. Raises DataError for one that would lie outside of a folder."""
    parts = re.split(r"[\\/]", name)
    if len(name) > LONGEST_NAME:
        raise DataError(f"{path}: member {name[:40]!r}.. has a name of {len(name):,} characters: pack it again")
    if "\0" in name or parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{path}: member {name!r} would be written outside of the folder it is unpacked in: pack it again")
    return "/".join(part for part in parts if part not in ("", "."))


class _BoundedStream:
    """The bytes of a tar, unpacked, forwards only, which stops where they are more than they may be."""

    def __init__(self, path: Path, packed: BinaryIO) -> None:
        self.path, self.packed = path, packed
        self.size = path.stat().st_size
        self.gzipped = path.name.lower().endswith("gz")
        self.unpacked: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=packed) if self.gzipped else packed
        self.position = 0

    def tell(self) -> int:
        return self.position

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises EOFError where there are fewer, ValueError for more than one member may have."""
        if size > LONGEST_READ:
            raise ValueError(f"a member of {size:,} bytes")
        content = self.unpacked.read(size)
        self._moved(len(content))
        if len(content) < size:
            raise EOFError("it ends in the middle of a member")
        return content

    def skip(self, to: int) -> None:
        """Goes on to a place. Raises EOFError where it ends before."""
        if not self.gzipped:
            self.unpacked.seek(to)
            self._moved(to - self.position)
            if to > self.size:
                raise EOFError("it ends in the middle of a member")
        while self.position < to:
            self.take(min(BLOCK, to - self.position))

    def finish(self) -> None:
        """To the end, where gzip compares its checksum."""
        while content := self.unpacked.read(BLOCK):
            self._moved(len(content))

    def _moved(self, by: int) -> None:
        self.position += by
        check_limits(self.path, 0, self.position, self.packed.tell())
