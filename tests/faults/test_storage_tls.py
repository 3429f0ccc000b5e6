"""S3 with a certificate of a private authority: AWS_CA_BUNDLE is enough for our own reading, dvc's remote and MLflow's files."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow.store.artifact import s3_artifact_repo

from remint.errors import RunError, StorageError
from remint.runtime.addresses import TRUST_S3
from remint.runtime.home import Home
from remint.stores import s3 as storage
from remint.stores.dvc import last_error_line, presence
from remint.stores.s3 import bucket as door
from tests.faults.test_storage_flaky import configure_remote, write_dvc_folder
from tests.support import access
from tests.support import registry_cases as cases
from tests.support.s3 import Server

pytestmark = pytest.mark.usefixtures("forked")


def _pump(here: socket.socket, there: socket.socket) -> None:
    with suppress(OSError):
        while content := here.recv(65536):
            there.sendall(content)
    with suppress(OSError):
        there.shutdown(socket.SHUT_WR)


def _serve(listening: socket.socket, context: ssl.SSLContext, upstream: tuple[str, int]) -> None:
    while True:
        try:
            raw, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_speak, args=(raw, context, upstream), daemon=True).start()


def _speak(raw: socket.socket, context: ssl.SSLContext, upstream: tuple[str, int]) -> None:
    with suppress(OSError), context.wrap_socket(raw, server_side=True) as client, socket.create_connection(upstream) as server:
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()


@pytest.fixture
def authority(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Certificate of a private authority. S3 is behind a TLS proxy whose certificate the authority signed."""
    (tmp_path / "tls").mkdir()
    ca, certificate, key = access.make_certificates(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    address = urlsplit(s3.address)
    assert address.hostname and address.port
    with socket.create_server(("127.0.0.1", 0)) as listening:
        arguments = (listening, context, (address.hostname, address.port))
        threading.Thread(target=_serve, args=arguments, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{listening.getsockname()[1]}")
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        s3_artifact_repo._cached_get_s3_client.cache_clear()
        yield ca
    s3_artifact_repo._cached_get_s3_client.cache_clear()


@pytest.mark.parametrize("client_kind", ["our own reading", "dvc's remote", "mlflow's files"])
def test_one_variable_names_a_private_authority_to_all_clients(
    client_kind: str, authority: Path, s3: Server, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the variable each client's error names it."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # otherwise dvc and MLflow retry for half a minute; our own reading does not
    bucket, home = s3.bucket({"p/a": b"a"}), Home(tmp_path, tmp_path / ".remint").ensure()
    configure_remote(home, bucket)
    output, files = write_dvc_folder(home.dvc / "cache/files/md5", {"a": b"a"})
    shutil.copytree(empty, tmp_path / "home")
    store = cases.tracking(tmp_path / "home")
    store.artifacts = f"s3://{bucket}/mlflow"
    cases.make_bundle(tmp_path / "bundle")

    def use_s3() -> None:
        if client_kind == "our own reading":
            storage.fetch(home, "x", f"s3://{bucket}/p", lambda _event: None)
        elif client_kind == "dvc's remote":
            assert presence.complete(home, [output], tmp_path, tmp_path / "log") == len(files)
        else:
            store.fetch(cases.register(store, tmp_path / "bundle"), tmp_path / "got")

    with pytest.raises(RunError, match="S3's certificate is not trusted here: .* AWS_CA_BUNDLE$"):
        use_s3()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    # Over TLS boto3 sends checksums after the body, which this server does not accept (docs/how-to/use-s3.md).
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    use_s3()


@pytest.mark.usefixtures("authority")
def test_an_untrusted_certificate_is_not_retried() -> None:
    requests: list[str] = []
    bucket = door.Bucket("any", "")
    bucket.s3.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.url))
    with pytest.raises(StorageError, match="AWS_CA_BUNDLE$"), door.door("here"):
        bucket.objects()
    assert len(requests) == 1


@pytest.mark.usefixtures("authority")
def test_the_certificate_error_of_dvc_gets_our_message(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dvc's own last line only says that some files could not be fetched."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    home = Home(tmp_path, tmp_path / ".remint").ensure()
    configure_remote(home, s3.bucket({}))
    output, _ = write_dvc_folder(home.dvc / "cache/files/md5", {"a": b"a"})
    shutil.rmtree(home.dvc / "cache")
    (tmp_path / "x.dvc").write_text(json.dumps({"outs": [{"md5": output, "path": "x"}]}))
    with (tmp_path / "log").open("wb") as log:
        status = subprocess.run([sys.executable, "-m", "dvc", "pull"], cwd=tmp_path, stdout=log, stderr=log, check=False)
    print((tmp_path / "log").read_text())
    assert status.returncode and last_error_line(tmp_path / "log") == TRUST_S3
