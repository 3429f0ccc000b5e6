"""Check names and phrases against the two tables below: ``python docs/plain_english.py`` (part of ``make check``).

The tables hold exact identifiers and exact phrases that were replaced, so that they do not come back. The rules behind
them are in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Old identifier -> (new identifier, files in which the old one is refused).
IDENTIFIERS: dict[str, tuple[str, str]] = {
    "but_seed": ("without_seed", "*"),
    "unknown": ("did_you_mean", "src/remint/settings/*"),
    "values": ("load_safe_yaml", "src/remint/runtime/yaml.py"),
    "lineage": ("ancestor_pids", "src/remint/runtime/*"),
    "last_words": ("last_error_line", "*"),
    "project": ("sync_mlflow_to_ledger", "src/remint/promotion/projection.py"),
    "words": ("describe", "src/remint/stores/ledger/*"),
    "withdrawn": ("veto", "*"),
    "spoken_against": ("vetoed_by", "*"),
    "Before": ("StepSnapshot", "src/remint/training/*"),
    "take": ("StepSnapshot.save", "src/remint/training/divergence.py"),
    "put_back": ("restore", "*"),
    "taken": ("steps_in_interval", "src/remint/training/*"),
    "in_a_row": ("consecutive_skips", "*"),
    "breaks": ("nonfinite_steps", "src/remint/training/*"),
    "sound": ("rollback_steps", "src/remint/training/*"),
    "look_through": ("reference_frozen", "*"),
    "Shelf": ("ArrayCache or MlflowInventory", "*"),
    "Bench": ("EvaluationContext", "*"),
    "_Patient": ("RetryingClient", "*"),
    "once": ("create_once", "src/remint/stores/mlflow/*"),
    "Rival": ("ChampionEvidence", "*"),
    "why_not": ("unavailable_reason", "*"),
    "Discretion": ("RedactingFilter", "*"),
    "together": ("run", "src/remint/maintenance/*"),
    "again": ("rebuild", "src/remint/maintenance/rebuild/__init__.py"),
    "care": ("maintenance", "src/remint/cli/*"),
    "undone": ("pending", "*"),
}

# Old phrase -> new phrase.
PHRASES = {
    "How a flow's process leaves off what is not its own to end": "Graceful shutdown of a flow run.",
    "held still, buries nobody": "A paused worker does not reap its children.",
    "has them not either": "and the local cache lacks them too",
    "nobody has looked for held-out examples in the training split": "overlap of training and held-out data was not checked",
    "by the luck of a seed": "not better than seed-to-seed variation explains",
    "samples that reach less of what real ones do end it": "stop when sample coverage relative to real data falls below this",
    "which has learnt nothing": "independent-pixel baseline",
    "Which jobs are alive": "Registry of live jobs.",
    "What a person sees of a decision": "Prefect artifacts for a decision.",
    "proven better": "shown to be better",
    "undone.json": "pending_decision.json",
}


def main() -> int:
    """Print each finding with its place and the replacement. Return the exit status."""
    found = [finding for path in _files() for finding in _findings(path)]
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


def _files() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".yaml", ".toml", ".html")
            and path.exists()
            and path != Path(__file__)
            and name != "CHANGELOG.md"
        ):
            yield path


def _findings(path: Path) -> Iterator[str]:
    text, name = path.read_text(), str(path.relative_to(ROOT))
    for number, line in enumerate(text.splitlines(), start=1):
        for old, new in PHRASES.items():
            if old in line:
                yield f"{name}:{number}: '{old}': write '{new}'"
    if path.suffix == ".py":
        refused = {old: new for old, (new, where) in IDENTIFIERS.items() if fnmatch(name, where)}
        for number, identifier in _identifiers(ast.parse(text)):
            if identifier in refused:
                yield f"{name}:{number}: {identifier}: call it {refused[identifier]}"


def _identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The names that a file defines: functions, classes, arguments, variables, fields and imports under a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.asname or node.name


if __name__ == "__main__":
    sys.exit(main())
