"""Questions to a server over plain HTTP, anonymous or with this machine's credentials for Prefect.

Neither prefect nor mlflow is imported for it. A server on this machine is never asked through a proxy.
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remint.runtime.addresses import DISTRUST, is_loopback, without_user

if TYPE_CHECKING:
    import httpx

PATIENCE = 5  # seconds
REFUSED = (401, 403)
TRUST = "name the file of the authority that it is of in PREFECT_API_SSL_CERT_FILE"


class Unanswered(Exception):
    """A server that gave no answer, and why."""


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


def status(served: Served, headers: dict[str, str] | None = None, path: str | None = None) -> int | None:
    """The status that a server answers; None where it does not answer. ``path``: another one than that of ``served``."""
    try:
        return ask(served, path or served.path, headers or {}).status_code
    except Unanswered:
        return None


def distrusted(served: Served) -> bool:
    """Whether a server's certificate is not trusted here, or there is no file to trust it by."""
    try:
        ask(served, served.path, {})
    except Unanswered as error:
        return DISTRUST in str(error) or isinstance(error.__cause__, FileNotFoundError)
    return False


def ask(served: Served, path: str, headers: dict[str, str], body: bytes | None = None) -> httpx.Response:
    """The answer of a server, whatever its status: a POST where there is a body. Raises Unanswered."""
    import httpx  # 0.2 s that most commands do not need

    address = f"{without_user(served.address).rstrip('/')}/{path}"
    try:
        url = httpx.URL(address)
        trusted = ssl.create_default_context(cafile=served.certificates if url.scheme == "https" else None)
        own = is_loopback(url.host)  # a proxy has another machine for 127.0.0.1
        with httpx.Client(verify=trusted, timeout=PATIENCE, trust_env=not own, follow_redirects=True) as client:
            return client.request("GET" if body is None else "POST", url, headers=headers, content=body)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:  # the last: a SOCKS proxy is set
        raise Unanswered(str(error)) from error
