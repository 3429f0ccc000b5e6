"""Pages that are written from the code are those that the code writes now, and the README's commands leave the tree as it was."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_page_is_fresh(page: str) -> None:
    assert (DOCS / page).read_text() == PAGES[page](), "stale: run python docs/generate.py"


def test_what_the_readme_has_written_is_no_uncommitted_work() -> None:
    """An unknown file in the tree would have the next version trained and not promoted."""
    written = re.findall(r"remint .* -o (\S+)", (REPOSITORY / "README.md").read_text())
    assert "grid.png" in written
    for name in written:
        if not name.startswith("/"):
            subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], cwd=REPOSITORY, check=True)
