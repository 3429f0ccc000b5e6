"""Search for secrets in everything that a run leaves behind: files, archives in them, git, S3, PostgreSQL.

Each secret is searched in plain text, percent-encoded as in addresses, and base64-encoded as in headers.
"""

from __future__ import annotations

import base64
import gzip
import io
import subprocess
import threading
import time
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

MAX_DEPTH = 3  # levels of nested archives


class Search:
    """Search for words. ``found``: the places of each."""

    def __init__(self, words: Collection[str]) -> None:
        self.forms = {form: word for word in words for form in _forms(word)}
        self.found: dict[str, list[str]] = {word: [] for word in words}
        self.places = 0

    def bytes(self, place: str, content: bytes, deep: int = MAX_DEPTH) -> None:
        self.places += 1
        for form, word in self.forms.items():
            if form in content:
                self.found[word].append(place)
        for name, member in _members(content) if deep else ():
            self.bytes(f"{place}!{name}", member, deep - 1)

    def tree(self, folder: Path, skip: Collection[Path] = ()) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path not in skip:
                self.bytes(str(path), path.read_bytes())
                self.bytes(f"the name of {path}", path.name.encode(), 0)

    def git(self, repository: Path) -> None:
        """Search every git object, reachable or not."""
        everything = ["git", "cat-file", "--batch-all-objects", "--batch"]
        self.bytes(f"git of {repository}", subprocess.run(everything, cwd=repository, check=True, capture_output=True).stdout)

    def bucket(self, client: Any, name: str) -> None:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for each in page.get("Contents", []):
                body = client.get_object(Bucket=name, Key=each["Key"])["Body"].read()
                self.bytes(f"s3://{name}/{each['Key']}", each["Key"].encode() + b"\n" + body)

    def postgres(self, url: str) -> None:
        """Search every row of every table."""
        import psycopg

        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
            for (table,) in tables.fetchall():
                with connection.cursor().copy(f"COPY {table} TO STDOUT") as rows:
                    self.bytes(f"table {table}", b"".join(rows))

    def texts(self, place: str, *texts: str) -> None:
        for text in texts:
            self.bytes(place, text.encode())


def _forms(word: str) -> set[bytes]:
    """Return the word in plain text, percent-encoded, and in each base64 form it can have inside a longer text."""
    encoded = {base64.b64encode(b"u" * lead + word.encode())[lead + 2 : -4] for lead in range(3)}
    return {word.encode(), quote(word, safe="").encode(), *(each for each in encoded if len(each) >= 8)}


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content.startswith(b"\x1f\x8b"):
        try:
            yield "gz", gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return
    elif content.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                yield from ((each, archive.read(each)) for each in archive.namelist())
        except zipfile.BadZipFile:
            return


@contextmanager
def record_command_lines(lines: set[str]) -> Iterator[None]:
    """Record the command lines of all processes of this machine repeatedly while the block runs."""
    over = threading.Event()

    def record() -> None:
        while not over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    lines.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue
            time.sleep(0.05)

    thread = threading.Thread(target=record, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def make_secrets(random: Any, names: Collection[str]) -> dict[str, str]:
    """Return a unique random secret for each name."""
    return {name: f"planted-{random.randrange(16**12):012x}/x+y" for name in names}


def summary(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {word: places for word, places in found.items() if places}
