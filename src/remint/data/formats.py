"""Formats of files, known by their first bytes: a file that is another format than its name says is named as what it is.

Signatures: PNG (W3C, 2025), JPEG (ITU-T T.81), TIFF 6.0, RIFF, zip (PKWARE APPNOTE), Parquet, NumPy NEP 1, POSIX tar, RFC 1952.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from remint.errors import DataError

HEAD = 512  # bytes that are looked at
WRITTEN = {  # formats of a source that is one file, by the end of its name
    ".csv": "a CSV table",
    ".parquet": "a Parquet table",
    ".npy": "a NumPy .npy file",
    ".npz": "a NumPy .npz file",
    ".zip": "a zip archive",
    ".tar": "a tar archive",
    ".tar.gz": "a gzipped file",
    ".tgz": "a gzipped file",
}
RENAME = "rename it to {stem}{suffix}"
EXPORT = "save it as CSV or Parquet"
PICTURES = "put the images into a folder, and name the folder"


@dataclass(frozen=True)
class Format:
    """One format of files."""

    name: str  # with its article, if it has one
    start: re.Pattern[bytes]  # of its first bytes
    suffixes: tuple[str, ...] = ()  # ends of the names of files that may hold it
    remedy: str = ""

    def remedy_for(self, name: str) -> str:
        """Return what to do with a source of this ``name``."""
        stem = name[: len(name) - len(suffix_of(name))] if suffix_of(name) else Path(name).stem
        return self.remedy.format(name=name, stem=stem, suffix=(*self.suffixes, "")[0])


def _format(name: str, start: bytes, *suffixes: str, remedy: str = RENAME) -> Format:
    return Format(name, re.compile(start, re.DOTALL), suffixes, remedy)


FORMATS = (
    _format("a tar archive", rb".{257}ustar", ".tar"),  # first: a tar begins with the name of a file
    _format("a PNG image", rb"\x89PNG\r\n\x1a\n", ".png", ".apng", remedy=PICTURES),
    _format("a JPEG image", rb"\xff\xd8\xff", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", remedy=PICTURES),
    _format("a WebP image", rb"RIFF....WEBP", ".webp", remedy=PICTURES),
    _format("a TIFF image", rb"II\*\0|MM\0\*|II\+\0|MM\0\+", ".tif", ".tiff", remedy=PICTURES),
    _format("a BMP image", rb"BM....\0\0\0\0", ".bmp", ".dib", remedy=PICTURES),
    _format("a GIF image", rb"GIF8[79]a", remedy="save it as PNG"),
    _format("an AVIF or HEIC image", rb"....ftyp(?:avi|hei|mif)", remedy="save it as PNG"),
    _format("a Parquet table", rb"PAR1[\0-\x1f]", ".parquet"),
    _format("an Arrow or Feather file", rb"ARROW1\0\0|FEA1\0", remedy=EXPORT),
    _format("a NumPy .npy file", rb"\x93NUMPY", ".npy"),
    _format("an Excel workbook", rb"PK\x03\x04.{26}(?:\[Content_Types\]|_rels/|xl/|docProps/)|\xd0\xcf\x11\xe0", remedy=EXPORT),
    _format("a NumPy .npz file", rb"PK\x03\x04.{26}[^/]{1,200}?\.npy", ".npz"),
    _format(
        "a PyTorch file",
        rb"PK\x03\x04.{26}[^/]{1,200}?/(?:data\.pkl|\.format_version|byteorder)",
        remedy="save its arrays with np.savez",
    ),
    _format("a zip archive", rb"PK(?:\x03\x04|\x05\x06)", ".zip", ".npz"),
    _format("a gzipped file", rb"\x1f\x8b", ".tar.gz", ".tgz", remedy="unpack it (gunzip), or if it is an archive, " + RENAME),
    _format(
        "a 7z, xz, bzip2, Zstandard or RAR archive",
        rb"7z\xbc\xaf|\xfd7zXZ|BZh[1-9]1AY|\x28\xb5\x2f\xfd|Rar!\x1a",
        remedy="unpack it",
    ),
    _format("an HDF5 file", rb"\x89HDF", remedy="save its arrays as .npz, or its table as Parquet"),
    _format("a PDF document", rb"%PDF-", remedy="save what it shows in another format"),
    _format("a pickle", rb"\x80[\x02-\x05][\x95cC}\](]", remedy="save it again with np.save, or as CSV or Parquet"),
    _format("an SQLite database", rb"SQLite format 3\0", remedy=EXPORT),
    _format(
        "a pointer of Git LFS",
        rb"version https://git-lfs\.github\.com",
        remedy="fetch the content (git lfs pull), then run again",
    ),
    _format(
        "a pointer of DVC",
        rb"(?:md5: \w+\n)?outs:\n- ",
        remedy="fetch the content (dvc pull {name}), and name that as the source",
    ),
    _format("JSON", rb"\s*(?:\{\s*\"|\[\s*[\[{])", remedy=EXPORT),
    _format(
        "an HTML page",
        rb"(?:\xef\xbb\xbf)?\s*(?i:<!doctype html|<html|<head|<\?xml[^>]*>\s*<!doctype html)",
        remedy="it may be an error page that was saved in place of the data: fetch the data again",
    ),
)
TEXT = Format("text", re.compile(b""), (".csv",), "if it is a table, " + RENAME)


def identify(head: bytes) -> Format | None:
    """Return the format that the first bytes of a file show; None if they show none."""
    return next((each for each in FORMATS if each.start.match(head)), None)


def suffix_of(name: str) -> str:
    """Return the end of a source's name that tells its kind, in lower case; nothing if there is none."""
    return next((suffix for suffix in (".tar.gz", *WRITTEN) if name.lower().endswith(suffix)), "")


def check_name(path: Path) -> None:
    """Raise DataError, which names both formats and the remedy, if a file holds another format than its name says."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    suffix = suffix_of(path.name)
    found = identify(head)
    if found is None and suffix != ".csv" and _is_text(head):
        found = TEXT
    if found is not None and suffix not in found.suffixes:
        claimed = f"not {WRITTEN[suffix]}, but " if suffix else ""
        raise DataError(f"{path} is {claimed}{found.name}: {found.remedy_for(path.name)}")


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes are lines of text with a separator, as those of a table are."""
    try:
        text = head[:-4].decode()  # the end may be a part of a character
    except UnicodeDecodeError:
        return False
    return bool(re.search("[,;\t|].*\n", text)) and all(each.isprintable() or each.isspace() for each in text)
