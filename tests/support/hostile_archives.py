"""Malicious archives and folders, by name. Each is made at a path; no test may find a new file next to it."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

MIB = 1 << 20
Make = Callable[[Path], None]


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


GOOD = _png()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=form) as out:
        for member, content in [(tar_member("good.png"), GOOD), *members]:
            if member.isreg():
                member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def raw_tar(path: Path, *blocks: bytes) -> None:
    """Write raw headers that tarfile would not write."""
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as out:
        for block in blocks:
            out.write(block)


def header(member: tarfile.TarInfo, **fields: bytes) -> bytes:
    """Return a header with some fields overwritten and a correct checksum."""
    place = {"size": (124, 12), "prefix": (345, 155), "magic": (257, 8)}
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[-512:])
    for name, value in fields.items():
        at, length = place[name]
        block[at : at + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes) -> bytes:
    return header(tar_member("x", tarfile.XHDTYPE, size=len(records))) + records + bytes(-len(records) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def write_zip(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", packing, compresslevel=1) as out:
        warnings.simplefilter("ignore")  # about duplicate names
        for name, data in [("good.png", GOOD), *members]:
            out.writestr(name, data)


def zip_member(name: str, kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


def many_in_tar(path: Path, count: int = 300_000) -> None:
    """Write many different headers without content: a few megabytes packed."""
    block = header(tar_member("0000000.png"))
    base, rest = sum(block[:148]) + 256 + sum(block[156:]) - sum(block[:7]), block[7:148]
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as out:
        for at in range(0, count, 10_000):
            names = [b"%07d" % index for index in range(at, at + 10_000)]
            out.write(b"".join(name + rest + b"%06o\0 " % (base + sum(name)) + block[156:] for name in names))
        out.write(bytes(1024))


def many_in_zip(path: Path, count: int = 300_000) -> None:
    """Write a zip whose directory has many entries for one member."""
    write_zip(path)
    whole = path.read_bytes()
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    entry = whole[start:end]
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entry) * count, start, 0)
    path.write_bytes(whole[:start] + entry * count + tail)


def bomb_zip(path: Path) -> None:
    write_zip(path, ("zeros.png", bytes(300 * MIB)))


def overlapping_zip(path: Path) -> None:
    """Write many entries that share one body (Fifield, A better zip bomb, 2019)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.png", bytes(MIB))
        (first,) = out.filelist
        for index in range(2_000):
            member = zipfile.ZipInfo(f"{index}.png")
            for key in ("compress_type", "compress_size", "file_size", "CRC", "header_offset", "flag_bits"):
                setattr(member, key, getattr(first, key))
            out.filelist.append(member)


def lying_zip(path: Path) -> None:
    """Write a member that claims to be small and unpacks to 300 MiB."""
    write_zip(path, ("zeros.png", bytes(300 * MIB)))
    whole = bytearray(path.read_bytes())
    at = whole.rindex(b"PK\x01\x02")
    whole[at + 24 : at + 28] = struct.pack("<I", 100)
    path.write_bytes(whole)


def bomb_tar(path: Path) -> None:
    raw_tar(path, header(tar_member("zeros.png", size=300 * MIB)), *[bytes(MIB)] * 300, bytes(1024))


def nested_zip(path: Path) -> None:
    """Write a bomb inside a member: the reader must not open nested archives."""
    inner = zlib.compress(bytes(64 * MIB), 9)
    write_zip(path, ("inner.tar.gz", gzip.compress(inner)), ("inner.zip", inner))


def encrypted_zip(path: Path) -> None:
    write_zip(path, ("x.png", GOOD))
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(whole)


def bombs_of_pixels(path: Path) -> None:
    """Write images that are small in the archive and large when decoded."""
    write_zip(path, *((f"{index}.png", png_of(8_000, 8_000)) for index in range(10)))


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG that claims width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(bytes(MIB), 9)) + chunk(b"IEND", b"")


def broken_images(path: Path) -> None:
    write_zip(path, *((f"{index}.png", b"") for index in range(100_000)), packing=zipfile.ZIP_STORED)


def make_folder(path: Path, spoil: Callable[[Path], None]) -> None:
    path.mkdir()
    (path / "good.png").write_bytes(GOOD)
    spoil(path)


def idx_pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "train-images-idx3-ubyte")


def only_a_pipe(name: str, path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / name)


def only_a_link(path: Path) -> None:
    path.mkdir()
    (path / "x.npy").symlink_to("/proc/self/mem")


TAR_NAMES = ["../out.png", "a/../../out.png", "/tmp/out.png", "..\\out.png", "C:\\out.png", "a\0/../../out.png"]
ARCHIVES: dict[str, Make] = {
    "dots.tar.gz": lambda path: write_tar(path, (tar_member("../out.png"), GOOD)),
    "many.tar.gz": many_in_tar,
    "link.tar": lambda path: write_tar(path, (tar_member("x.png", tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "pipe": partial(make_folder, spoil=lambda path: os.mkfifo(path / "x.png")),
    "link-out": partial(make_folder, spoil=lambda path: (path / "x.png").symlink_to("/etc/passwd")),
    "idx-pipe": idx_pipe,
    "lying.zip": lying_zip,
    "pixels.zip": bombs_of_pixels,
    "many.zip": many_in_zip,
    "bomb.zip": bomb_zip,
    "bomb.tar.gz": bomb_tar,
    "deep-dots.tar": lambda path: write_tar(path, (tar_member("a/b/../../../out.png"), GOOD)),
    "absolute.tar": lambda path: write_tar(path, (tar_member("/tmp/out.png"), GOOD)),
    "backslashes.zip": lambda path: write_zip(path, ("..\\..\\out.png", GOOD)),
    "drive.zip": lambda path: write_zip(path, ("C:\\out.png", GOOD)),
    "dots.zip": lambda path: write_zip(path, ("../../out.png", GOOD)),
    "pax-dots.tar": lambda path: write_tar(path, (tar_member("a" * 120 + "/../../" + "b" * 20), GOOD), form=tarfile.PAX_FORMAT),
    "gnu-dots.tar": lambda path: write_tar(path, (tar_member("../" * 50 + "x.png"), GOOD)),
    "prefix-dots.tar": lambda path: raw_tar(
        path, header(tar_member("x.png", size=len(GOOD)), magic=b"ustar\x0000", prefix=b"../.."), padded(GOOD), bytes(1024)
    ),
    "hard-link.tar": lambda path: write_tar(path, (tar_member("x.png", tarfile.LNKTYPE, "../../etc/passwd"), b"")),
    "device.tar": lambda path: write_tar(path, (tar_member("x.png", tarfile.CHRTYPE), b"")),
    "disk.tar.gz": lambda path: write_tar(path, (tar_member("x.png", tarfile.BLKTYPE), b"")),
    "pipe.tar": lambda path: write_tar(path, (tar_member("x.png", tarfile.FIFOTYPE), b"")),
    "sparse.tar": lambda path: raw_tar(path, header(tar_member("x.png", tarfile.GNUTYPE_SPARSE, size=8 << 30)), bytes(1024)),
    "pax-sparse.tar": lambda path: raw_tar(
        path,
        pax(pax_record(b"GNU.sparse.major", b"1") + pax_record(b"GNU.sparse.realsize", b"9" * 12)),
        header(tar_member("x.png")),
        bytes(1024),
    ),
    "link.zip": lambda path: write_zip(path, (zip_member("x.png", stat.S_IFLNK), b"/etc/passwd")),
    "device.zip": lambda path: write_zip(path, (zip_member("x.png", stat.S_IFCHR), b"")),
    "overlapping.zip": overlapping_zip,
    "encrypted.zip": encrypted_zip,
    "broken.zip": broken_images,
    "many.tar": many_in_tar,
    "pax-header.tar.gz": lambda path: raw_tar(
        path, header(tar_member("x", tarfile.XHDTYPE, size=200 * MIB)), *[b" " * MIB] * 200
    ),
    "pax-records.tar.gz": lambda path: raw_tar(
        path, *[pax(pax_record(b"a", b"b") * 100_000) + header(tar_member("x.png"))] * 20, bytes(1024)
    ),
    "pax-chain.tar.gz": lambda path: raw_tar(path, pax(pax_record(b"path", b"x.png")) * 100_000),
    "pax-size.tar": lambda path: raw_tar(path, pax(pax_record(b"size", b"9" * 30)), header(tar_member("x.png")), bytes(1024)),
    "negative.tar": lambda path: raw_tar(path, header(tar_member("x.png"), size=b"\xff" * 10 + b"\xfc\x00"), bytes(10_240)),
    "huge.tar": lambda path: raw_tar(path, header(tar_member("x.png"), size=b"\x80" + b"\xff" * 11), bytes(1024)),
    "pax-global.tar": lambda path: raw_tar(
        path,
        header(tar_member("x", tarfile.XGLTYPE, size=19)) + padded(pax_record(b"path", b"../out.png")),
        header(tar_member("x.png")),
        bytes(1024),
    ),
    "loop": partial(make_folder, spoil=lambda path: (path / "again").symlink_to(".")),
    "link-to-device": partial(make_folder, spoil=lambda path: (path / "x.png").symlink_to("/dev/zero")),
    "only-pipe-npy": partial(only_a_pipe, "x.npy"),
    "only-pipe-zip": partial(only_a_pipe, "x.zip"),
    "only-link": only_a_link,
    "twice.zip": lambda path: write_zip(path, ("x.png", GOOD), ("x.png", GOOD)),
    "nested.zip": nested_zip,
}
HARMLESS = {"nested.zip"}  # the inner archive is never opened
