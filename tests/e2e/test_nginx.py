"""The nginx example of docs/how-to/console.md, run by nginx in front of the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from remint.runtime.home import Home
from remint.runtime.retry import wait_until
from remint.stores.open import open_ledger
from tests.conftest import Once
from tests.support import console_cases
from tests.support.console_cases import HEADER, NAME, TOKEN
from tests.support.ports import free_port
from tests.support.promotion_cases import copy_home

PAGE = Path(__file__).parents[2] / "docs/how-to/console.md"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(NGINX is None, reason="no nginx on this machine: apt-get install nginx-light"),
    pytest.mark.usefixtures("forked"),
]
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        auth_basic "people";
        auth_basic_user_file {folder}/people;
        {block}
    }}
}}
"""


@pytest.fixture
def home(empty: Path, once: Once, tmp_path: Path) -> Home:
    made = once("console", lambda folder: console_cases.make_home(empty, folder))
    return copy_home(Home(made, made), tmp_path / "home")


@pytest.fixture
def proxied(home: Home, tmp_path: Path) -> Iterator[str]:
    """Address of nginx with the page's own block, before a console."""
    page = PAGE.read_text()
    (block,) = re.findall(r"```\n(location / \{.*?\n\})\n```", page, re.DOTALL)
    port, folder = free_port(), tmp_path / "nginx"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "people").write_text("Ada:{PLAIN}byron\n")
    with console_cases.serving(home) as address:
        assert "http://127.0.0.1:8000" in block and "THE-TOKEN" in block
        block = block.replace("http://127.0.0.1:8000", address).replace("THE-TOKEN", TOKEN)
        (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, port=port, block=block))
        assert NGINX is not None
        nginx = subprocess.Popen(
            [NGINX, "-e", f"{folder}/log", "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE, text=True
        )
        try:
            found = f"http://127.0.0.1:{port}"
            assert wait_until(lambda: nginx.poll() is not None or _answers(found), 30, every=0.2) and nginx.poll() is None, (
                nginx.stderr
            )
            yield found
        finally:
            nginx.terminate()
            nginx.wait(30)


def _answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 401
    except httpx.TransportError:
        return False


def test_a_person_behind_nginx_approves_and_a_page_of_another_site_does_not(home: Home, proxied: str) -> None:
    newest = open_ledger(home).head(NAME)
    form = {"action": "promote", "reason": "looked at the samples", "newest": newest}
    path = f"/models/{NAME}/3"
    with httpx.Client(base_url=proxied, auth=("Ada", "byron")) as person:
        page = person.get(path)
        assert page.status_code == 200 and "<fieldset>" in page.text and "Ada" in page.text
        others = {"origin": "http://elsewhere.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "http://127.0.0.1:1"}
        for headers in others:
            assert person.post(path, data=form, headers=headers).status_code == 403, headers
        assert httpx.post(proxied + path, data=form, headers={HEADER: "Ada"}).status_code == 401, "nginx knows nobody"
        assert open_ledger(home).head(NAME) == newest
        done = person.post(path, data=form, headers={"origin": proxied, HEADER: "Eve"})
    assert done.status_code == 303, done.text
    row = open_ledger(home).last(NAME)
    assert row is not None and (row.action, row.version, row.who) == ("promoted", 3, "Ada via console")
