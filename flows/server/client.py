"""HTTP requests to a server, anonymous or with this machine's Prefect credentials.

This module imports neither prefect nor mlflow. Requests to a server on this machine bypass the proxy, in Prefect's client too.
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from remint.errors import SettingsError
from remint.runtime.addresses import DISTRUST, is_loopback, loopback_without_proxy, without_user

if TYPE_CHECKING:
    import httpx

PATIENCE = 5  # seconds
REFUSED = (401, 403)
PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # in either case
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


def configure_proxy(address: str) -> None:
    """Prepare this process, its children and Prefect's client for a proxy in the environment. ``address``: of Prefect's API.

    Prefect's client is httpx. It makes a transport for each proxy in the environment, used or not, and fails if it cannot: for
    SOCKS without the package socksio, or for an entry of NO_PROXY that it cannot read. So it reads no proxies if the server is
    reached without one. Raises SettingsError if the server is elsewhere and httpx cannot use the proxy.
    """
    os.environ.update(loopback_without_proxy())
    import httpx

    direct = _is_direct(address)
    for make in (httpx.Client.__init__, httpx.AsyncClient.__init__):
        (make.__kwdefaults__ or {})["trust_env"] = not direct
    if direct:
        return
    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        names = sorted(name for name, value in os.environ.items() if value and name.lower() in PROXIES)
        names += ["NO_PROXY"] if isinstance(error, httpx.InvalidURL) else []
        raise SettingsError(
            f"{', '.join(names)}: Prefect's client cannot use it for {without_user(address)} ({str(error).rstrip('.')}): give "
            f"an http:// proxy, or exclude the server by NO_PROXY={urlsplit(address).hostname}"
        ) from None


def _is_direct(address: str) -> bool:
    """Return whether a server is reached without a proxy: it is on this machine, or NO_PROXY excludes its host."""
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or bool(proxy_bypass(host))


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
        proxied = not _is_direct(address)  # for a proxy, 127.0.0.1 is another machine
        with httpx.Client(verify=trusted, timeout=PATIENCE, trust_env=proxied, follow_redirects=True) as client:
            return client.request("GET" if body is None else "POST", url, headers=headers, content=body)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:  # ImportError: a SOCKS proxy is set
        raise NoAnswer(str(error)) from error
