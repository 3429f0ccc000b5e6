"""Pages that are written from the code are those that the code writes now."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_page_is_fresh(page: str) -> None:
    assert (DOCS / page).read_text() == PAGES[page](), "stale: run python docs/generate.py"
