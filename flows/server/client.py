"""What a server answers, asked over plain HTTP: as nobody, or with this machine's credentials for Prefect."""

from __future__ import annotations

import base64
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from remint.runtime.addresses import DISTRUST, without_user

PATIENCE = 5  # seconds
REFUSED = (401, 403)
TRUST = "name the file of the authority that it is of in PREFECT_API_SSL_CERT_FILE"


@dataclass(frozen=True)
class Served:
    """A server that is in use. ``path``: what nobody may ask it without saying who they are."""

    name: str
    address: str
    path: str
    certificates: str | None  # file of those that it is trusted by


def prefect(address: str) -> Served:
    """Prefect's client reads these variables, too, and then certifi's file rather than the system's."""
    import certifi

    named = os.environ.get("PREFECT_API_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE")
    return Served("Prefect", address, "admin/version", named or certifi.where())


def mlflow(address: str) -> Served:
    path = "api/2.0/mlflow/experiments/search?max_results=1"
    return Served("MLflow", address, path, os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))


def credentials() -> dict[str, str]:
    """What Prefect's client says of itself."""
    word, key = os.environ.get("PREFECT_API_AUTH_STRING"), os.environ.get("PREFECT_API_KEY")
    if word:
        return {"Authorization": f"Basic {base64.b64encode(word.encode()).decode()}"}
    return {"Authorization": f"Bearer {key}"} if key else {}


def status(served: Served, headers: dict[str, str] | None = None) -> int | None:
    """What a server answers; None where it does not."""
    try:
        return ask(served, served.path, headers or {})[0]
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def distrusted(served: Served) -> bool:
    """Whether a server shows a certificate that is not believed here, also since there is no file to believe it by."""
    try:
        ask(served, served.path, {})
    except (OSError, ValueError) as error:
        return DISTRUST in str(error) or isinstance(error, FileNotFoundError)
    return False


def ask(served: Served, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(f"{without_user(served.address).rstrip('/')}/{path}", body, headers)  # noqa: S310
    context = ssl.create_default_context(cafile=served.certificates) if served.address.startswith("https") else None
    with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as answer:  # noqa: S310  of a person's settings
        return answer.status, answer.read()
