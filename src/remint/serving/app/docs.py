"""Page of the OpenAPI document at /docs: Swagger UI, whose files come from the package fastapi-offline.

FastAPI's own page loads them from another host, into the origin of the console.
"""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

FILES = "/docs/files"
# Of scripts only Swagger UI's file and the line that starts it; Swagger UI styles its elements one by one.
POLICY = (
    "default-src 'none'; script-src 'self' '{start}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_docs(app: FastAPI) -> None:
    """Add the page, and the files that it needs."""
    page = get_swagger_ui_html(
        openapi_url=app.openapi_url or "",
        title=app.title,
        swagger_js_url=f"{FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{FILES}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    headers = {"content-security-policy": POLICY.format(start=_hash_of_script(bytes(page.body).decode()))}
    app.mount(FILES, StaticFiles(packages=[("fastapi_offline", "static")]))
    app.add_api_route("/docs", lambda: HTMLResponse(page.body, headers=headers), methods=["GET"], include_in_schema=False)


def _hash_of_script(page: str) -> str:
    """Return the source expression of the one script that stands in the page itself."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
