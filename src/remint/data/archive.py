"""The files of a .zip, .tar or .tar.gz, read one after the other from its start to its end, and never unpacked.

Nothing is written anywhere, so a member can do no harm by its name; one whose name would lead out of a folder is refused
all the same, since whoever packed it meant harm or made a mistake. Members are regular files: links, devices, sparse
files and encrypted ones are refused by name. (tarfile's own filter can be bypassed before Python 3.11.13, and reads a
header of any length that a header claims.) Memory is bounded by the limits below, whatever a header says.
"""

from __future__ import annotations

import errno
import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from remint.data.folder import File, hidden
from remint.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

MOST_MEMBERS = 250_000
MOST_BYTES = 8 << 30  # of all members together
MOST_RATIO = 100  # bytes unpacked for each byte packed ...
FREE_BYTES = 16 << 20  # ... beyond these
LONGEST_READ = 64 << 20  # bytes of one member or header
BLOCK = 1 << 20
ENTRY = b"PK\x01\x02"  # what an entry of a zip's directory begins with

# What zipfile, tarfile, gzip and struct raise for bytes that are not what they claim to be; RecursionError: a chain of headers.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    struct.error,
    ValueError,
    IndexError,
    OverflowError,
    NotImplementedError,
    RecursionError,
)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def files(path: Path) -> Iterator[File]:
    """The regular, not hidden members of an archive, each read before the next one is asked for.

    Raises DataError, which names archive and member, for one that is damaged, hostile or larger than the limits.
    """
    seen: set[str] = set()
    with _whole(path):
        for file in _zip(path) if path.name.lower().endswith(".zip") else _tar(path):
            if file.name in seen:
                raise DataError(f"{path}: member {file.name!r} is there twice: which one is meant is not clear")
            seen.add(file.name)
            if not hidden(file.name):
                yield replace(file, read=partial(_read, path, file.read))


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Damage, whoever finds it, as one error that names the archive."""
    try:
        yield
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: an offset before the start
            raise
        raise DataError(f"{path} is not an archive, or is damaged ({type(error).__name__}: {error}): pack it again") from error


def _read(path: Path, read: Callable[[], bytes]) -> bytes:
    with _whole(path):
        return read()


def _zip(path: Path) -> Iterator[File]:
    bounded(path, _entries(path), 0, None)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        bounded(path, len(members), total, path.stat().st_size)
        for place, member in enumerate(members):
            name = _inside(path, member.orig_filename)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{path}: member {name!r} is a link or a device, not a file: pack the files themselves")
            if member.flag_bits & 1:
                raise DataError(f"{path}: member {name!r} is encrypted: pack it without a password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{path}: member {name!r} is not packed by deflate: pack it again")
            if not member.is_dir():
                yield File(name, member.file_size, partial(archive.read, member), (place, len(members)))


def _entries(path: Path) -> int:
    """How many entries a zip's directory can have: zipfile makes an object of each, however many there are."""
    count, rest = 0, b""
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            block = rest + block
            count += block.count(ENTRY)
            rest = block[1 - len(ENTRY) :]
    return count


def _tar(path: Path) -> Iterator[File]:
    """Members of type regular file; headers are tarfile's to read, the bytes come through a meter."""
    with path.open("rb") as packed:
        meter = _Meter(path, packed)
        with tarfile.open(fileobj=meter, mode="r:") as archive:
            count = 0
            while (member := archive.next()) is not None:
                vars(archive)["members"] = []  # which grows by each member that was ever seen
                name, count = _inside(path, member.name), count + 1
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                    raise DataError(
                        f"{path}: member {name!r} is a link, a device or sparse, not a file: pack the files themselves"
                    )
                bounded(path, count, meter.tell() + max(member.size, 0), None)
                if member.size < 0:
                    raise DataError(f"{path}: member {name!r} has a size below 0: pack it again")
                if not member.isdir():
                    place = (packed.tell(), meter.size)
                    yield File(name, member.size, partial(meter.take, member.offset_data, member.size), place)
        meter.finish()


def bounded(path: Path, count: int, total: int, packed: int | None) -> None:
    """Raises DataError where ``count`` members or ``total`` unpacked bytes (of ``packed`` ones) are beyond the limits."""
    if count > MOST_MEMBERS:
        raise DataError(f"{path} holds more than {MOST_MEMBERS:,} files: give the folder that it was made of")
    if total > MOST_BYTES:
        raise DataError(f"{path} unpacks to more than {MOST_BYTES >> 20:,} MiB: give the folder that it was made of")
    if packed is not None and total > MOST_RATIO * packed + FREE_BYTES:
        raise DataError(f"{path} unpacks to more than {MOST_RATIO} times its size: that is a bomb, not a set of images")


def _inside(path: Path, name: str) -> str:
    """The member's name, its parts separated by /. Raises DataError for one that would lie outside of a folder."""
    parts = re.split(r"[\\/]", name)
    if "\0" in name or parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{path}: member {name!r} would be written outside of the folder it is unpacked in: pack it again")
    return "/".join(part for part in parts if part not in ("", "."))


class _Meter(io.RawIOBase):
    """The bytes of a tar, unpacked, forwards only, which stops where they are more than they may be.

    It stands between tarfile, which believes every header, and the file.
    """

    def __init__(self, path: Path, packed: BinaryIO) -> None:
        self.path, self.packed = path, packed
        self.size = path.stat().st_size
        zipped = path.name.lower().endswith("gz")
        self.unpacked: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=packed) if zipped else packed
        self.position = 0
        self.last = b""  # what was read last: the block that ended the archive
        self.empty = 0  # reads at the end, where tarfile may go on asking for ever

    def tell(self) -> int:
        return self.position

    def seek(self, position: int, whence: int = 0) -> int:
        while self.position < position and self.read(min(BLOCK, position - self.position)):
            pass
        if whence or self.position != position:
            raise EOFError("it ends in the middle of a member")
        return position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise ValueError(f"a header claims {size:,} bytes")
        self.last = self.unpacked.read(size)
        self.position += len(self.last)
        self.empty = 0 if self.last or not size else self.empty + 1
        if self.empty > 2:
            raise EOFError("it ends in the middle of a header")
        bounded(self.path, 0, self.position, self.packed.tell())
        return self.last

    def take(self, start: int, size: int) -> bytes:
        """The bytes of one member."""
        self.seek(start)
        content = self.read(size)
        if len(content) < size:
            raise EOFError("it ends in the middle of a member")
        return content

    def finish(self) -> None:
        """An archive ends with a block of zeros; tarfile also takes a damaged header, or no header at all, for its end."""
        if not self.last or any(self.last):
            raise ValueError(f"a header at byte {self.position - len(self.last):,} is damaged or missing")
        while self.empty == 0:  # to the end, where gzip compares its checksum
            self.read(BLOCK)
