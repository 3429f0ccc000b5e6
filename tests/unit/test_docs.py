"""Pages against the code: generated pages are up to date; named files, modules, tests and settings exist."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from remint.settings.params import read_params, validate_params

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
GENERATED = runpy.run_path(str(DOCS / "generate.py"))
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")), *sorted(DOCS.rglob("*.svg"))]

# Names that begin like modules: tags, events, groups of entry points, and keys of params.yaml.
NOT_MODULES = {
    "remint.load",
    "remint.keep",
    "remint.verified",
    "remint.approval.awaited",
    "remint.model.digits",
    "remint.families",
    "remint.metrics",
    "pipelines.customers",
}
NOT_MODULES |= {"remint.ledger_hash", "remint.ledger_row", "remint.ledger_head", "remint.pipeline", "remint.job"}


def matches_in_pages(pattern: str) -> list[tuple[str, str]]:
    """Return (page, match) for each different match of a pattern."""
    return [
        (str(page.relative_to(REPOSITORY)), found)
        for page in PAGES
        for found in sorted(set(re.findall(pattern, page.read_text(), re.MULTILINE)))
    ]


def python_files() -> Iterator[Path]:
    for folder in ("src", "flows", "pipelines", "tests", "benchmarks", "examples", "docs"):
        yield from (REPOSITORY / folder).rglob("*.py")


@pytest.mark.parametrize("page", sorted(GENERATED["PAGES"]))
def test_generated_pages_are_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text() == GENERATED["PAGES"][page](), "stale: run python docs/generate.py"


def test_the_diagram_of_the_layers_is_complete() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = " ".join(next(contract["layers"] for contract in contracts if contract["type"] == "layers"))
    assert set(GENERATED["ROOMS"]) == set(re.findall(r"\w+", layers.replace("remint.", "")))


def test_files_that_pages_name_exist() -> None:
    """Paths from the root, such as src/remint/errors.py, and the ends of paths in backticks, such as `training/loop.py`."""
    whole = matches_in_pages(r"(?<![\w./-])(?:src|flows|pipelines|tests|benchmarks|examples)/[\w./-]*\w")
    assert len(whole) > 50
    assert not [(page, path) for page, path in whole if not (REPOSITORY / path).exists()]
    paths = [str(path) for path in python_files()]
    ends = matches_in_pages(r"`([\w/]+\.py)`")
    assert len(ends) > 30
    assert not [(page, end) for page, end in ends if not any(path.endswith(f"/{end}") for path in paths)]


def test_modules_that_pages_name_exist() -> None:
    found = [
        each for each in matches_in_pages(r"(?<![\w./-])(?:remint|flows|pipelines)(?:\.[a-z_]+)+") if each[1] not in NOT_MODULES
    ]
    assert len(found) > 20
    assert not [(page, module) for page, module in found if importlib.util.find_spec(module) is None]


def test_names_that_pages_import_exist() -> None:
    found = matches_in_pages(r"^from ((?:remint|examples)[\w.]* import [\w, ]+)$")
    assert len(found) > 5
    for page, statement in found:
        module, _, names = statement.partition(" import ")
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), (page, module, name)


def test_tests_that_pages_name_exist() -> None:
    sources = [path for path in python_files() if path.name.startswith("test_")]
    known = {path.stem for path in sources}
    known |= {name for path in sources for name in re.findall(r"def (test_\w+)", path.read_text())}
    found = matches_in_pages(r"\b(test_\w+)")
    assert len(found) > 60
    assert not [(page, test) for page, test in found if test not in known]


def test_commands_that_pages_name_exist() -> None:
    commands = set(re.findall(r"^## `remint ([a-z]+)", GENERATED["PAGES"]["commands.md"](), re.MULTILINE))
    found = matches_in_pages(r"(?:`|^ {4})remint ([a-z]+)(?=[ `\n])")
    assert len(found) > 30
    assert not [(page, command) for page, command in found if command not in commands]


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/add-a-pipeline.md"])
def test_a_pipeline_that_a_page_shows_is_valid(page: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    content = read_params(REPOSITORY)
    for name, added in YAML(typ="safe").load(block).items():
        content[name] |= added
    assert validate_params(content).pipeline("faces-flow").metrics() == ["nll", "fd_domain"]


def test_every_page_is_in_the_menu() -> None:
    menu = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert set(re.findall(r": (\S+\.md)$", menu, re.MULTILINE)) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_the_duration_of_the_fashion_pipelines_is_stated_in_the_results_only() -> None:
    table = (DOCS / "results.md").read_text().partition("## Fashion-MNIST")[2]
    rows = json.loads((DOCS / "results/fashion.json").read_text())
    assert len(rows) == 3 and all(f" | {row['cpu_seconds']:.0f} | " in table for row in rows)
    others = [
        *PAGES,
        *(REPOSITORY / name for name in ("params.yaml", "Makefile", "benchmarks/README.md", "benchmarks/fashion.py")),
    ]
    lines = [(path.name, line) for path in others for line in path.read_text().splitlines() if "fashion" in line.lower()]
    assert len(lines) > 10 and not [found for found in lines if re.search(r"\b(minutes?|hours?)\b", found[1])]


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) <= 700


def test_files_that_commands_on_pages_write_are_ignored_by_git() -> None:
    """Because of an untracked file, the next version would be trained but not promoted."""
    written = matches_in_pages(r"remint .* -o ([^\s`]+)")
    assert ("README.md", "grid.png") in written
    for _, name in written:
        if not name.startswith("/") and name.endswith((".png", "data/drawn.csv")):
            subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], cwd=REPOSITORY, check=True)
    by_default = ("samples.png", "samples.npy", "samples.csv", "samples.parquet", "compare.png", ".remint/mlflow/mlflow.db")
    inside = [f"docs/{name}" for name in by_default]  # a person may stand in any folder
    for name in inside:
        subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], cwd=REPOSITORY, check=True)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 35
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//|<link[^>]+(?:stylesheet|icon|preconnect)[^>]+href=\"(?:https?:)?//"
    )
    assert not [page.name for page in pages if fetched.search(page.read_text())]
