"""Archives: a valid one gives the same as its folder; a hostile one is refused in one line, and nothing is written."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from remint.data import archive, sources
from remint.errors import DataError
from remint.settings.dataset import DatasetSettings
from tests.support import hostile_archives
from tests.unit.test_data_pictures import encode, picture, refusal, snapshot, tree

Image = pytest.importorskip("PIL.Image")
GOOD = encode(Image.fromarray(picture(0)))


def write_zip(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", packing) as out:
        for name, content in members:
            out.writestr(name, content)


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as out:
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "pets.tar.gz", "pets.TGZ"])
def test_an_archive_gives_the_same_as_the_folder_it_was_made_from(tmp_path: Path, name: str) -> None:
    tree(tmp_path / "pets")
    (tmp_path / "pets/README.md").write_text("ignored")
    (tmp_path / "pets/.hidden.png").write_text("ignored")
    expected, spec = snapshot(tmp_path)
    if name.endswith("zip"):
        subprocess.run([sys.executable, "-m", "zipfile", "-c", name, "pets"], cwd=tmp_path, check=True)
    else:
        with tarfile.open(tmp_path / name, "w" if name.endswith("tar") else "w:gz") as out:
            out.add(tmp_path / "pets", "./pets")
    arrays, found = snapshot(tmp_path, name)
    assert found == spec and list(arrays) == list(expected)
    for key in arrays:
        np.testing.assert_array_equal(arrays[key], expected[key])


NAMES = ["../out.png", "cat/../../out.png", "/tmp/out.png", "..\\out.png", "C:\\out.png", "\\out.png", "cat/.."]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write_zip(tmp_path / "a.zip", ("good.png", GOOD), (name, GOOD))
    write_tar(tmp_path / "a.tar", (member("good.png"), GOOD), (member(name), GOOD))
    before = sorted(tmp_path.rglob("*"))
    for path in ("a.zip", "a.tar"):
        message = refusal(tmp_path, path)
        assert f"{path}: member {name!r} has a path that leads out" in message
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent / "out.png").exists()


KINDS = {
    "symbolic link": member("x.png", tarfile.SYMTYPE, "/etc/passwd"),
    "link inside": member("x.png", tarfile.SYMTYPE, "good.png"),
    "hard link": member("x.png", tarfile.LNKTYPE, "good.png"),
    "character device": member("x.png", tarfile.CHRTYPE),
    "block device": member("x.png", tarfile.BLKTYPE),
    "pipe": member("x.png", tarfile.FIFOTYPE),
    "sparse": member("x.png", tarfile.GNUTYPE_SPARSE),
    "contiguous": member("x.png", tarfile.CONTTYPE),
    "unknown": member("x.png", b"Z"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_members_of_a_tar_that_are_not_files_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    write_tar(tmp_path / name, (member("good.png"), GOOD), (KINDS[kind], b""))
    assert f"{name}: member 'x.png' is a link, a device or sparse, not a file" in refusal(tmp_path, name)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_members_of_a_zip_that_are_not_files_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("x.png")
    info.external_attr = (kind | 0o777) << 16
    write_zip(tmp_path / "a.zip", ("good.png", GOOD), (info, b"/etc/passwd"))
    assert "a.zip: member 'x.png' is a link or a device, not a file" in refusal(tmp_path, "a.zip")


def test_encrypted_and_lzma_members_are_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", ("x.png", GOOD))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory of the zip
    (tmp_path / "a.zip").write_bytes(content)
    assert "member 'x.png' is encrypted" in refusal(tmp_path, "a.zip")
    write_zip(tmp_path / "b.zip", ("x.png", GOOD), packing=zipfile.ZIP_LZMA)
    assert "member 'x.png' is not compressed by deflate" in refusal(tmp_path, "b.zip")


def test_a_duplicate_name_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(tmp_path / "a.zip", ("x.png", GOOD), ("x.png", GOOD))
    write_tar(tmp_path / "a.tar", (member("x.png"), GOOD), (member("./x.png"), GOOD))
    for name in ("a.zip", "a.tar"):
        assert f"{name}: member 'x.png' occurs twice" in refusal(tmp_path, name)


def test_too_many_files_or_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).bytes(5_000)  # does not compress, so the limit of the ratio does not apply
    write_zip(tmp_path / "a.zip", *((f"{i}.txt", noise) for i in range(11)))
    write_tar(tmp_path / "a.tar", *((member(f"{i}.txt"), noise) for i in range(11)))
    write_tar(tmp_path / "a.tar.gz", *((member(f"{i}.txt"), noise) for i in range(11)))
    monkeypatch.setattr(archive, "MOST_MEMBERS", 10)
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        assert f"{name} holds more than 10 files" in refusal(tmp_path, name)
    monkeypatch.setattr(archive, "MOST_MEMBERS", 11)
    monkeypatch.setattr(archive, "MOST_BYTES", 50_000)
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        assert f"{name} unpacks to more than" in refusal(tmp_path, name)
    monkeypatch.setattr(archive, "MOST_BYTES", 80_000)
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        assert "contains no PNG, JPEG, WebP, TIFF or BMP files (11 other files)" in refusal(tmp_path, name)


def test_a_zip_with_too_many_entries_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zipfile makes an object for every entry of the directory: millions for a file of a few megabytes."""
    write_zip(tmp_path / "a.zip", *((f"{i}.txt", b"") for i in range(11)))
    monkeypatch.setattr(archive, "MOST_MEMBERS", 10)
    monkeypatch.setattr(archive, "BLOCK", 7)  # entries begin anywhere in a block, and some span two
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    assert "a.zip holds more than 10 files" in refusal(tmp_path, "a.zip")


SIZE = 60 << 20  # size of a bomb; far less of it is unpacked


def bomb_of_one_member(path: Path) -> None:
    info = member("zeros.png")
    info.size = SIZE
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(info.tobuf(tarfile.USTAR_FORMAT))
        out.write(bytes(SIZE + 1024))


def bomb_in_a_header(path: Path) -> None:
    """Make a pax header of blanks, which tarfile would read into memory."""
    info = member("x", tarfile.XHDTYPE)
    info.size = SIZE
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(info.tobuf(tarfile.USTAR_FORMAT))
        out.write(b" " * SIZE)


def bomb_in_a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        out.writestr("zeros.png", bytes(SIZE))


BOMBS: dict[str, Callable[[Path], None]] = {
    "member.tar.gz": bomb_of_one_member,
    "header.tar.gz": bomb_in_a_header,
    "one.zip": bomb_in_a_zip,
    "overlapping.zip": hostile_archives.overlapping_zip,
}
MEASURED = """
import resource, sys
from pathlib import Path
from remint.data import archive, blocks
from remint.data import pictures
from remint.errors import DataError
from remint.settings.dataset import DatasetSettings
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    pictures.read("bomb", archive.files(Path(sys.argv[1])), DatasetSettings(source="x"), blocks.Spool())
except DataError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, str(error).splitlines()[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_fill_the_memory(tmp_path: Path, name: str) -> None:
    BOMBS[name](tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / name)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    grown, _, message = done.stdout.partition(" ")
    assert "times its size, as a decompression bomb does" in message or "a header claims" in message
    assert int(grown) < SIZE >> 11, f"grew by {int(grown)} KiB"  # half of it
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_negative_sizes_and_endless_headers_are_refused(tmp_path: Path) -> None:
    """With these, tarfile would seek backwards (CVE-2025-8194) or recurse."""
    negative = member("x.png")
    header = bytearray(negative.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1,024
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(10_240))
    assert "below 0" in refusal(tmp_path, "a.tar") or "damaged" in refusal(tmp_path, "a.tar")
    long = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    long.size = 4
    (tmp_path / "b.tar").write_bytes((long.tobuf(tarfile.GNU_FORMAT) + b"abc\0".ljust(512, b"\0")) * 5_000 + bytes(1024))
    assert "b.tar is not an archive, or is damaged" in refusal(tmp_path, "b.tar")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_every_truncation_is_found(tmp_path: Path, name: str) -> None:
    """Also between two members, where a tar looks complete. Only some of the blanks after its end may be missing."""
    images = [(f"{index}.png", encode(Image.fromarray(picture(index)))) for index in range(4)]
    if name.endswith("zip"):
        write_zip(tmp_path / name, *images)
    else:
        write_tar(tmp_path / name, *((member(n), content) for n, content in images))
    good = (tmp_path / name).read_bytes()
    expected = snapshot(tmp_path, name)[0]["x"]
    for length in sorted({*np.linspace(0, len(good) - 1, 40).astype(int), *range(0, len(good), 512)}):
        (tmp_path / name).write_bytes(good[:length])
        try:
            x_NCHW = snapshot(tmp_path, name)[0]["x"]
        except DataError:
            continue
        assert name != "a.zip", length
        np.testing.assert_array_equal(x_NCHW, expected)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_damaged_archives_are_refused_or_read(tmp_path: Path, name: str) -> None:
    images = [(f"{index}.png", GOOD) for index in range(4)]
    if name.endswith("zip"):
        write_zip(tmp_path / name, *images)
    else:
        write_tar(tmp_path / name, *((member(n), content) for n, content in images))
    good, generator, refused = (tmp_path / name).read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        bad = bytearray(good)
        for place in generator.integers(len(bad), size=generator.integers(1, 20)):
            bad[place] = generator.integers(256)
        (tmp_path / name).write_bytes(bad)
        try:
            sources.snapshot("pets", DatasetSettings(source=name, undecodable=1.0), tmp_path, tmp_path / "out")
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20
    assert {path.name for path in tmp_path.iterdir()} <= {name, "out"}


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        for content in (b"", b"nothing of the kind", os.urandom(2_000)):
            (tmp_path / name).write_bytes(content)
            refusal(tmp_path, name)
