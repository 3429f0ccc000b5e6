"""Image containers: keep only the parts that pixels depend on, before Pillow reads the file.

Pillow reads each part of a file in Python, keeps all text, and copies every EXIF entry, even if entries share the same
bytes. A file of a few megabytes can therefore cost minutes or gigabytes. This module counts parts and scans, reads only
the orientation from EXIF, and removes the other metadata of PNG, JPEG and TIFF. WebP stays unchanged: its own library, in C,
reads it. BMP has no metadata; Pillow unpacks a compressed one in Python, so it is refused.

    PNG     signature, then parts: length, kind, content, CRC-32 (W3C, PNG, third edition, 2025)
    JPEG    markers FF xx, each with its length; after SOS the coded data, in which FF is followed by 00 or D0 .. D7 (ITU-T T.81)
    TIFF    a directory of entries of 12 bytes, each a number or the place of several; more directories may follow (TIFF 6.0)
    WebP    RIFF: kind, length, content padded to an even number of bytes
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

MOST_PARTS = 100_000  # of one file: enough for a PNG of the largest allowed size in parts of a kilobyte
MOST_SCANS = 100  # of a JPEG; a progressive one has about ten
MOST_WORK = 1 << 30  # pixels times scans: each scan visits all pixels

PNG = b"\x89PNG\r\n\x1a\n"
SPREAD = b"remint:levels\0"  # begins a tEXt part with the number of levels
PNG_PARTS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
MARKER = re.compile(rb"\xff([^\x00\xff])")  # the next marker, after any bytes
AFTER_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # the same in coded data; restart markers do not end it
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # markers without a length
START, END, SCAN, APP0, APP1, APP14, LAST_APP, COMMENT = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
EXIF = b"Exif\0\0"
ORIENTATION, SHORT = 0x0112, 3  # an EXIF tag and the type of its value


BMP_OF_OS2 = struct.pack("<I", 12)  # size of a header without compression
BMP_PLAIN = {struct.pack("<I", kind) for kind in (0, 3, 6)}  # in colours of a fixed number of bits
TIFF = {b"II*\0": "<", b"MM\0*": ">"}
WIDTH, HEIGHT, COMPRESSION, COLOURS, STRIP_SIZES, TILE_WIDTH, TILE_HEIGHT, TILE_SIZES = 256, 257, 259, 262, 279, 322, 323, 325
SUBFILE, BITS = 254, 258
BIG_TIFF = (b"II+\0", b"MM\0+")
TIFF_ENTRIES = {  # on which pixels depend
    *(WIDTH, HEIGHT, BITS, COMPRESSION, COLOURS, 266, 273, 277, 278, STRIP_SIZES, 284, 317, 320),
    *(TILE_WIDTH, TILE_HEIGHT, 324, TILE_SIZES, 332, 338, 339),
}
TIFF_COMPRESSIONS = {
    1,
    2,
    3,
    4,
    5,
    8,
    32773,
    32946,
}  # none, fax, LZW, deflate, PackBits. Others, as JPEG, are containers themselves
TIFF_SIZES = {1: "B", 3: "H", 4: "I"}  # type of an entry -> its numbers
MOST_ENTRIES = 1_000  # of a directory; cameras and maps write about fifty
MOST_DIRECTORIES = 20
MOST_TILE = 1 << 20  # pixels of a tile beyond twice those of the image
SMALLER, MASK = 1, 4  # bits of a TIFF directory: a reduced image, a mask. Neither is a page


class HostileImage(ValueError):
    """File that no camera or program writes, or in a form that is not read. The message is the rest of a sentence."""


def strip_metadata(content: bytes) -> tuple[bytes, int]:
    """Return the file without the parts that no pixel depends on, and its EXIF orientation, 1 to 8.

    Damaged parts stay: the decoder judges them. Raises HostileImage for too many parts or scans.
    """
    if content.startswith(PNG):
        return _png(content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    if content[:4] in TIFF:
        return _tiff(content, TIFF[content[:4]]), read_orientation(content)
    if content.startswith((b"II", b"MM")):  # Pillow reads more such files, with all their entries
        raise HostileImage("is a BigTIFF: save it as TIFF or PNG" if content[:4] in BIG_TIFF else "is not an image")
    if content.startswith(b"BM"):
        if content[14:18] != BMP_OF_OS2 and content[30:34] not in BMP_PLAIN:
            raise HostileImage("is a compressed BMP: save it without compression, or as PNG")
        return content, 1
    return content, _webp_orientation(content)


def spread_levels(content: bytes) -> int | None:
    """Return the number of levels whose values a PNG has spread over 0 .. 255, as its text SPREAD says; None for other files."""
    for kind, start, end in _png_parts(content) if content.startswith(PNG) else ():
        if kind == b"tEXt" and content.startswith(SPREAD, start + 8):
            number = content[start + 8 + len(SPREAD) : end - 4]
            return int(number) if re.fullmatch(rb"[0-9]{1,3}", number) else None
    return None


def _png(content: bytes) -> tuple[bytes, int]:
    kept, orientation = [PNG], 1
    for kind, start, end in _png_parts(content):
        if kind in PNG_PARTS:
            kept.append(content[start:end])
        elif kind == b"eXIf":
            orientation = read_orientation(content[start + 8 : end - 4])
    return b"".join(kept), orientation


def _png_parts(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind, start and end of each part of a PNG. Raises HostileImage for too many."""
    at = len(PNG)
    for _ in range(MOST_PARTS):
        if len(content) < at + 8:
            return
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
    raise HostileImage(f"has more than {MOST_PARTS:,} parts")


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


def _tiff(content: bytes, order: str) -> bytes:
    """Return the file with the first directory only, and with the entries that determine its pixels."""
    try:
        (at,) = struct.unpack_from(f"{order}I", content, 4)
        entries, following = _directory(content, order, at)
        for _ in range(MOST_DIRECTORIES):
            if not following:
                break
            others, following = _directory(content, order, following)
            if not max(_numbers(content, order, others, SUBFILE), default=0) & (SMALLER | MASK):
                raise HostileImage("has more than one page: save each page as a file")
        one = {key: max(_numbers(content, order, entries, key), default=1) for key in entries.keys() & TIFF_ENTRIES}
        packed = sum(sum(_numbers(content, order, entries, key)) for key in (STRIP_SIZES, TILE_SIZES))
    except struct.error as error:
        raise HostileImage("is damaged or cut off") from error
    if one.get(COMPRESSION, 1) not in TIFF_COMPRESSIONS:
        raise HostileImage("is a TIFF whose compression is not read: save it with LZW or deflate, or as PNG")
    if one.get(COLOURS) == 0 and one.get(BITS, 1) > 8:
        raise HostileImage("is a TIFF in which 0 is white: save it as PNG")
    if (
        packed > len(content)
        or one.get(TILE_WIDTH, 1) * one.get(TILE_HEIGHT, 1) > 2 * one.get(WIDTH, 1) * one.get(HEIGHT, 1) + MOST_TILE
    ):
        raise HostileImage("is a TIFF whose parts are larger than the file")
    kept = b"".join(entries[key] for key in sorted(entries.keys() & TIFF_ENTRIES))
    directory = struct.pack(f"{order}H", len(kept) // 12) + kept + bytes(4)
    return content[:at] + directory + content[at + len(directory) :]


def _directory(content: bytes, order: str, at: int) -> tuple[dict[int, bytes], int]:
    """Return the entries of a TIFF's directory by their tag, and the place of the next directory; 0: there is none."""
    (count,) = struct.unpack_from(f"{order}H", content, at)
    (following,) = struct.unpack_from(f"{order}I", content, at + 2 + 12 * count)
    if count > MOST_ENTRIES:
        raise HostileImage(f"has a directory of {count:,} entries")
    entries: dict[int, bytes] = {}
    for start in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", content, start)
        entries.setdefault(tag, content[start : start + 12])
    return entries, following


def _numbers(content: bytes, order: str, entries: dict[int, bytes], tag: int) -> tuple[int, ...]:
    """Return the numbers of an entry; none if it is absent. Raises struct.error if they are outside of the file."""
    if tag not in entries:
        return ()
    _, kind, count = struct.unpack_from(f"{order}HHI", entries[tag])
    if kind not in TIFF_SIZES or count > MOST_PARTS:
        raise HostileImage(f"has an entry {tag} of {count:,} values of type {kind}")
    form = f"{order}{count}{TIFF_SIZES[kind]}"
    if struct.calcsize(form) <= 4:
        return struct.unpack_from(form, entries[tag], 8)
    return struct.unpack_from(form, content, *struct.unpack_from(f"{order}I", entries[tag], 8))


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
