"""Programs of the compose file that run without Docker: databases, the S3 server and its bucket, MLflow's user of the jobs.

Real PostgreSQL, JuiceFS and MLflow; only addresses, ports and folders are others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support import access
from tests.support.ports import free_port
from tests.support.postgres import Postgres, run_postgres
from tests.support.team import SOURCE

pytestmark = pytest.mark.soak
FOLDER = SOURCE / "deploy/compose"
NAMES = ("LEDGER_PASSWORD", "MLFLOW_PASSWORD", "PREFECT_PASSWORD", "S3_PASSWORD")
PASSWORDS = {name: f"planted{place}" for place, name in enumerate(NAMES)}


def script(service: str, **others: str) -> str:
    """Return the text that a service runs, with other addresses."""
    text = str(YAML(typ="safe").load(FOLDER / "compose.yaml")["services"][service]["command"][2]).replace("$$", "$")
    for old, new in others.items():
        text = text.replace(
            {"host": "@postgres/", "listen": "0.0.0.0:9000", "folder": "/work/", "mlflow": "http://mlflow:5000"}[old], new
        )
    return text


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(folder), **more}


def database_server(server: Postgres) -> None:
    """Let a server listen on 127.0.0.1 with passwords, and make the databases as the image does at its first start."""
    rules = server.folder / "data/pg_hba.conf"
    rules.write_text(f"host all all all scram-sha-256\n{rules.read_text()}")
    server.execute("CREATE ROLE postgres LOGIN SUPERUSER")
    server.stop()
    server.port, server.options = free_port(), "-c listen_addresses=127.0.0.1"
    server.start()
    own = environment(server.folder, PGHOST=str(server.folder), PGPORT=str(server.port), **PASSWORDS)
    own["PATH"] = f"{server.bin}{os.pathsep}{own['PATH']}"
    subprocess.run(["bash", str(FOLDER / "postgres.sh")], env=own, check=True)


def test_the_databases_have_their_owners_and_the_s3_server_runs_on_one_of_them(tmp_path: Path) -> None:
    import boto3
    import psycopg

    with run_postgres() as server:
        database_server(server)
        for role, password in (
            ("remint_ledger", "LEDGER"),
            ("mlflow", "MLFLOW"),
            ("mlflow_users", "MLFLOW"),
            ("prefect", "PREFECT"),
        ):
            given = {"user": role, "dbname": role, "host": "127.0.0.1", "port": server.port}
            with psycopg.connect(**given, password=PASSWORDS[f"{password}_PASSWORD"]) as connection:  # type: ignore[arg-type]
                connection.execute("CREATE TABLE t (x int)")
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(**given, password="another")  # type: ignore[arg-type]
        port = free_port()
        text = script("s3", host=f"@127.0.0.1:{server.port}/", listen=f"127.0.0.1:{port}", folder=f"{tmp_path}/")
        (tmp_path / "objects").mkdir()
        password = PASSWORDS["S3_PASSWORD"]
        own = environment(tmp_path, MINIO_ROOT_USER="remint", MINIO_ROOT_PASSWORD=password, META_PASSWORD=password)
        keys = {"AWS_ACCESS_KEY_ID": "remint", "AWS_SECRET_ACCESS_KEY": password, "AWS_REGION": "us-east-1"}
        client = environment(tmp_path, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", **keys)
        for content in (b"first", b"after a restart"):
            with (tmp_path / "log").open("ab") as log:
                process = subprocess.Popen(["sh", "-ec", text], env=own, stdout=log, stderr=log, start_new_session=True)
            try:
                wait(f"http://127.0.0.1:{port}/minio/health/live", tmp_path / "log")
                subprocess.run([sys.executable, "-c", script("bucket")], env=client, check=True)
                s3: Any = boto3.client(
                    "s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id="remint", aws_secret_access_key=password
                )
                if content == b"after a restart":
                    assert s3.get_object(Bucket="remint", Key="x")["Body"].read() == b"first"
                s3.put_object(Bucket="remint", Key="x", Body=content)
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=60)


def wait(address: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


def test_the_user_of_the_jobs_is_made_once(empty: Path, tmp_path: Path) -> None:
    with access.run_mlflow(empty / "mlflow/mlflow.db", tmp_path / "mlflow", "planted-admin") as server:
        admin = {
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": "planted-admin",
            "JOBS_PASSWORD": "planted-for-jobs",
        }
        for _ in range(2):
            program = [sys.executable, "-c", script("accounts", mlflow=server.address)]
            subprocess.run(program, env=environment(tmp_path, **admin), check=True, cwd=tmp_path)
        found = server.json("GET", "/api/2.0/mlflow/users/get?username=jobs", "jobs:planted-for-jobs")
        assert found["user"]["username"] == "jobs" and not found["user"]["is_admin"]
