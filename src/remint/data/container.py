"""Image containers: keep only the parts that pixels depend on, before Pillow reads the file.

Pillow reads each part of a file in Python, keeps all text, and copies every EXIF entry, even if entries share the same
bytes. A file of a few megabytes can therefore cost minutes or gigabytes. This module counts parts and scans, reads only
the orientation from EXIF, and removes the other metadata of PNG and JPEG. WebP stays unchanged: its own library, in C,
reads it.

    PNG     signature, then parts: length, kind, content, CRC-32 (W3C, PNG, third edition, 2025)
    JPEG    markers FF xx, each with its length; after SOS the coded data, in which FF is followed by 00 or D0 .. D7 (ITU-T T.81)
    WebP    RIFF: kind, length, content padded to an even number of bytes
"""

from __future__ import annotations

import re
import struct

MOST_PARTS = 100_000  # of one file: enough for a PNG of the largest allowed size in parts of a kilobyte
MOST_SCANS = 100  # of a JPEG; a progressive one has about ten
MOST_WORK = 1 << 30  # pixels times scans: each scan visits all pixels

PNG = b"\x89PNG\r\n\x1a\n"
PNG_PARTS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
MARKER = re.compile(rb"\xff([^\x00\xff])")  # the next marker, after any bytes
AFTER_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # the same in coded data; restart markers do not end it
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # markers without a length
START, END, SCAN, APP0, APP1, APP14, LAST_APP, COMMENT = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
EXIF = b"Exif\0\0"
ORIENTATION, SHORT = 0x0112, 3  # an EXIF tag and the type of its value


class HostileImage(ValueError):
    """File that no camera or program writes. The message is the rest of a sentence."""


def strip_metadata(content: bytes) -> tuple[bytes, int]:
    """Return the file without the parts that no pixel depends on, and its EXIF orientation, 1 to 8.

    Damaged parts stay: the decoder judges them. Raises HostileImage for too many parts or scans.
    """
    if content.startswith(PNG):
        return _png(content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    return content, _webp_orientation(content)


def _png(content: bytes) -> tuple[bytes, int]:
    kept, orientation, at = [PNG], 1, len(PNG)
    for _ in range(MOST_PARTS):
        if len(content) < at + 8:
            break
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if kind in PNG_PARTS:
            kept.append(content[at:end])
        elif kind == b"eXIf":
            orientation = read_orientation(content[at + 8 : end - 4])
        if kind == b"IEND":
            break
        at = end
    else:
        raise HostileImage(f"has more than {MOST_PARTS:,} parts")
    return b"".join(kept), orientation


def _jpeg(content: bytes) -> tuple[bytes, int]:
    """Keep the markers up to the first scan, without comments and application data, and all scans unchanged."""
    kept, orientation, at, scans, pixels = [b"\xff\xd8"], None, 2, 0, 0
    for _ in range(MOST_PARTS):
        found = (AFTER_SCAN if scans else MARKER).search(content, at)
        if found is None:
            kept += [content[at:]] if scans else []
            break
        marker, start = found[1][0], found.start()
        if scans:
            kept.append(content[at:start])
        at = found.end()
        if marker == END:
            kept.append(b"\xff\xd9")
            break
        if marker not in WITHOUT_LENGTH:
            at += max(2, int.from_bytes(content[at : at + 2], "big"))
        part = content[start:at]
        if marker in FRAMES:
            height, width = struct.unpack(">HH", part[5:9].ljust(4, b"\0"))
            pixels = max(pixels, height * width)
        scans += marker == SCAN
        if scans > MOST_SCANS or scans * pixels > MOST_WORK:
            raise HostileImage(f"has {scans} scans of {pixels:,} pixels")
        if marker == APP1 and orientation is None and part[4:].startswith(EXIF):
            orientation = read_orientation(part[4:])
        if marker not in (START, COMMENT) and (not APP0 <= marker <= LAST_APP or marker in (APP0, APP14)):
            kept.append(part)
    else:
        raise HostileImage(f"has more than {MOST_PARTS:,} parts")
    return b"".join(kept), orientation or 1


def _webp_orientation(content: bytes) -> int:
    at = 12
    for _ in range(MOST_PARTS):
        if len(content) < at + 8:
            return 1
        kind, length = struct.unpack_from("<4sI", content, at)
        if kind == b"EXIF":
            return read_orientation(content[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    raise HostileImage(f"has more than {MOST_PARTS:,} parts")


def read_orientation(exif: bytes) -> int:
    """Return EXIF's orientation (JEITA CP-3451, table 4), 1 to 8. Without one: 1, upright."""
    exif = exif.removeprefix(EXIF)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for index in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, directory + 2 + 12 * index)
            if tag == ORIENTATION:
                return int(value) if kind == SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass  # EXIF is cut off
    return 1
