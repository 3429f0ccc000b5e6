"""Real PostgreSQL server for tests, from the installed binaries, with any number of databases."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ports import free_port


@dataclass
class Postgres:
    """Separate server on a Unix socket, run by an account other than root (it refuses to run as root)."""

    folder: Path
    bin: Path
    user: str | None  # None: the account that runs the tests
    port: int = 5432  # part of the socket's name; after listen() also the TCP port
    options: str = "-c listen_addresses="

    @property
    def url(self) -> str:
        return self._address("postgres")

    def _address(self, database: str) -> str:
        return f"postgresql://remint@/{database}?host={self.folder}&port={self.port}"

    def control(self, *arguments: str) -> None:
        log = str(self.folder / "log")
        command = [str(self.bin / "pg_ctl"), "-D", str(self.folder / "data"), "-l", log, "-w", *arguments]
        subprocess.run(command, check=True, capture_output=True, user=self.user, cwd="/")

    def start(self) -> None:
        self.control("-o", f"-k {self.folder} -p {self.port} -c fsync=off {self.options}", "start")

    def stop(self) -> None:
        self.control("-m", "immediate", "stop")

    def execute(self, command: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(command)

    def add_password_role(self, role: str, password: str) -> None:
        """Make a role that must give its password. ``password``: letters, digits and characters that need no quoting."""
        rules = self.folder / "data/pg_hba.conf"
        rules.write_text(f"local all {role} scram-sha-256\nhost all {role} all scram-sha-256\n{rules.read_text()}")
        self.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        self.execute("SELECT pg_reload_conf()")

    def database(self, name: str) -> str:
        """Make an empty database and return its address."""
        self.execute(f'CREATE DATABASE "{name}"')
        return self._address(name)

    def listen(self, certificate: Path, key: Path) -> None:
        """Restart the server, open to localhost over TLS with passwords."""
        data = self.folder / "data"
        for source, name in ((certificate, "server.crt"), (key, "server.key")):
            shutil.copy(source, data / name)
            (data / name).chmod(0o600)
            if self.user:
                shutil.chown(data / name, self.user)
        rules = data / "pg_hba.conf"
        rules.write_text(f"hostssl all all all scram-sha-256\nhost all all all reject\n{rules.read_text()}")
        self.stop()
        self.port, self.options = free_port(), "-c listen_addresses=localhost -c ssl=on"
        self.start()


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with run_postgres() as server:
        yield server


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """Run a separate server on a socket only. Skips the test if that is impossible."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed: pip install 'psycopg[binary]'")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed: apt-get install postgresql")
    user = None
    if os.geteuid() == 0:
        accounts = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in accounts), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no account postgres or nobody to run it as")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path can have at most 107 characters
    if user:
        shutil.chown(folder, user)
    server = Postgres(folder, binaries, user)
    try:
        initdb = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "remint", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, user=user, cwd="/")
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
