"""Shell completion, through the protocol between bash or zsh and the installed command."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remint.stores.ledger.chain import Ledger

REPOSITORY = Path(__file__).parents[2]
REMINT = Path(sys.executable).parent / "remint"
pytestmark = pytest.mark.usefixtures("forked")
MakeRepository = Callable[[dict[str, str]], Path]


@pytest.fixture
def folder(make_repository: MakeRepository) -> Path:
    """Make a repository whose ledger has two models, one with two versions."""
    folder = make_repository({"params.yaml": (REPOSITORY / "params.yaml").read_text()})
    ledger = Ledger(f"sqlite:///{folder}/.remint/ledger.db")
    for model, version in (("digits-vae", 3), ("digits-vae", 12), ("old-gan", 1)):
        ledger.append(model, "refused", version, champion_after=None, who="gate", why="", evidence="", expected_champion=None)
    return folder


def forked_remint() -> Path:
    return Path(sys.executable).parent / "remint"


def completions(folder: Path, *words: str, **environment: str) -> list[str]:
    """Return the completions that bash gets for the last word of a line. Standard error must be empty."""
    line = {"COMP_WORDS": " ".join(["remint", *words]), "COMP_CWORD": str(len(words)), "_REMINT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [forked_remint()],
        cwd=folder,
        env={**os.environ, **line, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
def test_names_are_completed(folder: Path) -> None:
    assert completions(folder, "run", "digits-va") == ["digits-vae", "digits-vaegan"]
    assert completions(folder, "run", "digits-gan", "fashion-f") == ["fashion-flow"]
    assert completions(folder, "spread", "cancer") == ["cancer-flow", "cancer-vae"]
    assert completions(folder, "new", "pipeline", "x", "--dataset", "f") == ["fashion"]
    assert completions(folder, "new", "pipeline", "x", "--from", "cancer-f") == ["cancer-flow"]
    for command in ("why", "history", "models", "promote", "reject", "rollback", "rebuild", "sample", "compare"):
        assert completions(folder, command, "o") == ["old-gan"], command
    assert completions(folder, "why", "digits-vae/") == ["digits-vae/12", "digits-vae/3"]
    assert completions(folder, "why", "digits-vae/1") == ["digits-vae/12"]
    assert completions(folder, "why", "digits-vae@c") == ["digits-vae@champion", "digits-vae@challenger"]
    assert completions(folder, "ver") == []
    assert completions(folder, "rol") == ["rollback"]


def test_zsh_gets_the_answer_in_its_own_format(folder: Path) -> None:
    line = {"_TYPER_COMPLETE_ARGS": "remint run digits-va", "_REMINT_COMPLETE": "complete_zsh"}
    done = subprocess.run(
        [REMINT], cwd=folder, env={**os.environ, **line}, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == """_arguments '*: :(("digits-vae"\n"digits-vaegan"))'"""
    assert done.stderr == ""


def test_bash_itself_completes(folder: Path) -> None:
    script = """
    eval "$(_REMINT_COMPLETE=source_bash remint)"
    complete -p remint
    COMP_WORDS=(remint why old) COMP_CWORD=2
    "$(complete -p remint | sed 's/.* -F \\([^ ]*\\).*/\\1/')" remint
    echo "reply: ${COMPREPLY[*]}"
    """
    path = f"{REMINT.parent}{os.pathsep}{os.environ['PATH']}"
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "reply: old-gan"
    assert done.stderr == ""


def test_without_a_ledger_pipeline_names_complete_models_and_no_file_is_made(make_repository: MakeRepository) -> None:
    folder = make_repository({"params.yaml": (REPOSITORY / "params.yaml").read_text()})
    assert completions(folder, "why", "digits-f") == ["digits-flow"]
    assert completions(folder, "why", "digits-flow/") == []
    assert not (folder / ".remint").exists()


@pytest.mark.soak
def test_broken_settings_or_ledger_complete_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert completions(tmp_path / "elsewhere", "run", "d") == []
    (folder / ".remint/ledger.db").write_bytes(b"no database, but as long as one" * 100)
    assert completions(folder, "why", "digits-f") == ["digits-flow"]  # from params.yaml
    assert completions(folder, "why", "digits-vae/") == []
    for text in ("pipelines: [", "pipelines: 3", "- a", "pipelines: {'$(touch made)': {}}"):
        (folder / "params.yaml").write_text(text)
        assert completions(folder, "run", "") == []
    (folder / "params.yaml").unlink()
    assert completions(folder, "run", "") == []
    assert completions(folder, "why", "d", REMINT_LEDGER="postgresql://nobody@127.0.0.1:1/none") == []
    assert completions(folder, "why", "d", REMINT_LEDGER="no address") == []


def test_completion_imports_no_large_library() -> None:
    code = "import sys, remint.cli; print([name for name in ('torch', 'mlflow', 'prefect', 'dvc', 'boto3', 'sqlalchemy', 'scipy', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert ast.literal_eval(done.stdout) == []
