"""HTTP requests to a server, anonymous or with this machine's Prefect credentials.

This module imports neither prefect nor mlflow. Requests to a server on this machine bypass the proxy.
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
TRUST = "name the file of its certificate authority in PREFECT_API_SSL_CERT_FILE"


class NoAnswer(Exception):
    """No answer from a server; the message has the reason."""


@dataclass(frozen=True)
class Server:
    """A server in use. ``path``: a resource that needs credentials where authentication is on."""

    name: str
    address: str
    path: str
    certificates: str | None  # file of trusted certificate authorities


def prefect(address: str) -> Server:
    """Return Prefect's server. Prefect's client reads these variables too; else it trusts certifi's file, not the system's."""
    import certifi

    named = os.environ.get("PREFECT_API_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE")
    return Server("Prefect", address, "admin/version", named or certifi.where())


def mlflow(address: str) -> Server:
    path = "api/2.0/mlflow/experiments/search?max_results=1"
    return Server("MLflow", address, path, os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))


def credentials() -> dict[str, str]:
    """Return the headers with which Prefect's client authenticates."""
    login, key = os.environ.get("PREFECT_API_AUTH_STRING"), os.environ.get("PREFECT_API_KEY")
    if login:
        return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    return {"Authorization": f"Bearer {key}"} if key else {}


def status(served: Server, headers: dict[str, str] | None = None, path: str | None = None) -> int | None:
    """Return the status code of a server's answer, or None without an answer. ``path`` replaces that of ``served``."""
    try:
        return ask(served, path or served.path, headers or {}).status_code
    except NoAnswer:
        return None


def distrusted(served: Server) -> bool:
    """Return whether a server's certificate is not trusted here, or the file of trusted authorities is missing."""
    try:
        ask(served, served.path, {})
    except NoAnswer as error:
        return DISTRUST in str(error) or isinstance(error.__cause__, FileNotFoundError)
    return False


def ask(served: Server, path: str, headers: dict[str, str], body: bytes | None = None) -> httpx.Response:
    """Return the answer of a server, of any status, to a GET, or to a POST if there is a body. Raises NoAnswer."""
    import httpx  # takes 0.2 s, and most commands do not need it

    address = f"{without_user(served.address).rstrip('/')}/{path}"
    try:
        url = httpx.URL(address)
        trusted = ssl.create_default_context(cafile=served.certificates if url.scheme == "https" else None)
        is_local = is_loopback(url.host)  # for a proxy, 127.0.0.1 is another machine
        with httpx.Client(verify=trusted, timeout=PATIENCE, trust_env=not is_local, follow_redirects=True) as client:
            return client.request("GET" if body is None else "POST", url, headers=headers, content=body)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:  # ImportError: a SOCKS proxy is set
        raise NoAnswer(str(error)) from error
