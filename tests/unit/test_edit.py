"""`remint new pipeline`: it adds a block to params.yaml and changes nothing else in the file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remint.errors import SettingsError
from remint.runtime.yaml import load_safe_yaml
from remint.settings.edit import add_pipeline
from remint.settings.params import load_params

REPOSITORY = Path(__file__).parents[2]

SMALL = """# A team's own file.
datasets:
    faces:  # four spaces
        source: data/faces
    "2024": {source: data/2024}

pipelines:
    # the only one
    faces-vae:
        family: vae   # before the dataset
        dataset: "faces"  # small ones
        model: {latent: 4}
        training:
            steps: 0x14

            batch_size: 8
        evaluation: {}
        promotion: {}   # decides nothing

# the end
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    return tmp_path


def write_params(folder: Path, text: str) -> Path:
    (folder / "params.yaml").write_bytes(text.encode())
    return folder / "params.yaml"


@pytest.mark.parametrize("template", sorted(load_params(REPOSITORY).pipelines))
def test_a_copy_of_each_pipeline_is_valid_and_no_existing_line_changes(folder: Path, template: str) -> None:
    before = (folder / "params.yaml").read_text()
    params = add_pipeline(folder, "mine", template, "")
    assert params == load_params(folder)
    assert params.pipelines["mine"] == params.pipelines[template]
    assert (folder / "params.yaml").read_text().startswith(before)
    (folder / "params.yaml").write_text(before)
    assert "mine" not in load_params(folder).pipelines


def test_comments_indentation_and_number_formats_are_kept(tmp_path: Path) -> None:
    path = write_params(tmp_path, SMALL)
    add_pipeline(tmp_path, "next", "faces-vae", "2024")
    block = """
    next:
        family: vae   # before the dataset
        dataset: "2024"  # small ones
        model: {latent: 4}
        training:
            steps: 0x14

            batch_size: 8
        evaluation: {}
        promotion: {}
"""
    head, end = SMALL.split("\n# the end")
    assert path.read_text() == f"{head}{block}\n# the end{end}"


def test_a_new_dataset_is_added_after_the_others(tmp_path: Path) -> None:
    path = write_params(tmp_path, SMALL)
    params = add_pipeline(tmp_path, "true", "faces-vae", "cats", {"source": "data/cats: all", "kind": "image"})
    text = path.read_text()
    assert "    \"2024\": {source: data/2024}\n\n    cats: {source: 'data/cats: all', kind: image}\n\npipelines:\n" in text
    assert '\n    "true":\n        family: vae   # before the dataset\n        dataset: cats  # small ones\n' in text
    assert params.pipelines["true"].dataset == "cats"
    assert params.datasets["cats"].source == "data/cats: all"


@pytest.mark.parametrize("text", [SMALL.replace("\n", "\r\n"), SMALL.rstrip(), SMALL.removesuffix("\n# the end\n")])
def test_line_endings_and_a_missing_final_newline_are_kept(tmp_path: Path, text: str) -> None:
    path = write_params(tmp_path, text)
    add_pipeline(tmp_path, "next", "faces-vae", "")
    content = path.read_bytes().decode()
    assert load_safe_yaml(content)["pipelines"]["next"] == load_safe_yaml(text)["pipelines"]["faces-vae"]
    assert content.count("\r\n") == (content.count("\n") if "\r\n" in text else 0)


def test_a_symbolic_link_and_the_file_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = write_params(tmp_path / "real", SMALL)
    path.chmod(0o640)
    (tmp_path / "params.yaml").symlink_to(path)
    add_pipeline(tmp_path, "next", "faces-vae", "")
    assert (tmp_path / "params.yaml").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert "next" in load_params(tmp_path).pipelines
    assert [each.name for each in path.parent.iterdir()] == ["params.yaml"]


FACES = "{dataset: faces, family: vae, model: {}, training: {steps: 9}, evaluation: {}, promotion: {}}"
IN_BRACES = f"datasets: {{faces: {{source: data/faces}}}}\npipelines: {{faces-vae: {FACES}}}\n"


@pytest.mark.parametrize(
    ("text", "name", "template", "dataset", "words"),
    [
        (SMALL, "faces-vae", "faces-vae", "faces", "pipelines.faces-vae already exists"),
        (SMALL, "x", "face-vae", "faces", "unknown pipeline 'face-vae': did you mean 'faces-vae'?"),
        (SMALL, "x", "faces-vae", "face", "unknown dataset 'face': did you mean 'faces'?"),
        (SMALL, "../x", "faces-vae", "faces", "'../x' is not a valid name in pipelines"),
        (SMALL, "x: 1", "faces-vae", "faces", "is not a valid name in pipelines"),
        (SMALL, "", "faces-vae", "faces", "is not a valid name in pipelines"),
        (IN_BRACES, "x", "faces-vae", "faces", "add pipelines.x by hand"),
        (SMALL.replace("latent", "latnet"), "x", "faces-vae", "faces", "did you mean 'latent'?"),
        (
            SMALL.replace('    "2024": {source: data/2024}', "    t: {source: t.csv, kind: table}"),
            "x",
            "faces-vae",
            "t",
            "of kind table",
        ),
    ],
)
def test_a_refused_edit_does_not_change_the_file(
    tmp_path: Path, text: str, name: str, template: str, dataset: str, words: str
) -> None:
    path = write_params(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        add_pipeline(tmp_path, name, template, dataset)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["params.yaml"]


def test_new_dataset_names_must_follow_the_same_rules(tmp_path: Path) -> None:
    path = write_params(tmp_path, SMALL)
    for name, words in {"faces": "datasets.faces already exists", "a b": "is not a valid name in datasets"}.items():
        with pytest.raises(SettingsError, match=words):
            add_pipeline(tmp_path, "x", "faces-vae", name, {"source": "data", "kind": "image"})
    with pytest.raises(SettingsError, match="datasets.y.source: expected a path"):
        add_pipeline(tmp_path, "x", "faces-vae", "y", {"source": " ", "kind": "image"})
    assert path.read_text() == SMALL


def remint(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "remint", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_says_what_to_do_next(make_repository: object) -> None:
    folder = make_repository({"params.yaml": (REPOSITORY / "params.yaml").read_text()})  # type: ignore[operator]
    done = remint(folder, "new", "pipeline", "wine-vae", "--from", "cancer-vae", "--dataset", "wine", "--source", "sklearn:wine")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Set pipelines.wine-vae.promotion.require for this data: iwae: max 30.0 comes from the old one." in done.stdout
    assert 'git commit -m "Add wine-vae" params.yaml' in done.stdout
    assert "remint run wine-vae" in done.stdout
    assert load_params(folder).datasets["wine"].kind == "table"
    for wrong, words in {
        ("--dataset", "cats", "--source", "data/cats"): "unknown source 'data/cats'",
        ("--dataset", "cats", "--source", "cats.csv"): "there is no file",
        ("--source", "data/cats"): "give its name with --dataset",
        ("--kind", "table"): "give its --source as well",
    }.items():
        before = (folder / "params.yaml").read_text()
        done = remint(folder, "new", "pipeline", "x", "--from", "digits-vae", *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert words in line
        assert (folder / "params.yaml").read_text() == before


def test_version_prints_the_version_of_the_package() -> None:
    from importlib.metadata import version

    assert remint(REPOSITORY, "--version").stdout == f"remint {version('remint')}\n"
