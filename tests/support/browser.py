"""Page rendering in headless Chromium, if installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")

# Added to a copy of the page: the page itself has no script.
COUNT = """<script>addEventListener("load", () => { const all = [...document.images];
document.body.dataset.images = all.length; document.body.dataset.broken = all.filter(i => !i.complete || !i.naturalWidth).length;
document.body.dataset.wide = document.documentElement.scrollWidth; document.body.dataset.fetched =
performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length; })</script></body>"""


@dataclass(frozen=True)
class Rendering:
    """Rendering of a page in a window 1280 pixels wide."""

    images: int
    broken: int
    width: int  # of the content: above 1280, the page scrolls sideways
    fetched: int  # number of requests beyond the page itself
    errors: list[str]
    screenshot: Path


def render_page(page: Path, folder: Path) -> Rendering:
    """Open a page, count its images and write FOLDER/NAME.png."""
    assert CHROMIUM is not None
    copy, screenshot = folder / f"counted-{page.name}", folder / f"{page.stem}.png"
    copy.write_text(page.read_text().replace("</body>", COUNT))
    dom = _run(folder, "--dump-dom", "--enable-logging=stderr", copy.as_uri())
    _run(folder, f"--screenshot={screenshot}", page.as_uri())
    found = {key: int(value) for key, value in re.findall(r'data-(\w+)="(\d+)"', dom.stdout)}
    errors = [line for line in dom.stderr.splitlines() if "CONSOLE" in line]
    return Rendering(found["images"], found["broken"], found["wide"], found["fetched"], errors, screenshot)


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
    window = ["--window-size=1280,6000", f"--user-data-dir={folder / 'profile'}"]
    assert CHROMIUM is not None
    return subprocess.run([CHROMIUM, *quiet, *window, *arguments], check=True, capture_output=True, text=True, timeout=120)
