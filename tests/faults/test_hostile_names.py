"""Hostile names in settings, MLflow's tags and branches: none leaves its folder, is an option, or means anything to a shell."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remint.errors import DataError, IntegrityError, NotFoundError, RepositoryError, SettingsError, VersioningError
from remint.maintenance.rebuild import record
from remint.promotion import queries, why
from remint.records import canonical
from remint.runtime.home import Home, is_name
from remint.runtime.yaml import load_safe_yaml
from remint.serving import files
from remint.serving.load import load_version
from remint.settings import plugins
from remint.settings.params import apply_overrides, load_params, read_params, validate_params
from remint.stores import git, uncommitted
from remint.stores.dvc import locked
from remint.stores.mlflow import VersionTags
from remint.stores.open import fetch_bundle, open_tracking
from remint.stores.s3.bucket import path_of
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.trials import Trials

REPOSITORY = Path(__file__).parents[2]
PARTS = [
    *("a", "b7", "digits-vae", "A.b", "x_y"),
    *("..", ".", "/", "\\", "-", "--", "-n", "~", " ", "\t", "\n", "\r", "\0", "", "a" * 120, "a" * 300),
    *(
        "$(touch RAN)",
        "`touch RAN`",
        ";touch RAN",
        "|touch RAN",
        "&&touch RAN",
        "\ntouch RAN\n",
        ">RAN",
        "<RAN",
        "*",
        "?",
        "[a]",
        "{a,b}",
    ),
    *(
        "'",
        '"',
        "#",
        "!",
        "%s",
        "${key}",
        "${item.dataset}",
        "\\${x}",
        "é",
        "\u0430",
        "\uff41",
        "\u202e",
        "\u200b",
        "\ud800",
        "\u0661",
    ),
]


def random_name(choose: random.Random) -> str:
    """Return a name of one to four random parts, good and bad."""
    return "".join(choose.choice(PARTS[:5] if choose.random() < 0.5 else PARTS) for _ in range(choose.randint(1, 4)))


@pytest.mark.case(30)
def test_a_name_that_settings_may_have_means_nothing_to_a_shell(trials: Trials, tmp_path: Path) -> None:
    """dvc inserts ``${key}`` into a command unquoted. A shell must print each name unchanged, and do nothing else."""
    content = read_params(REPOSITORY)
    admitted = []
    for trial in trials(short=300, full=5_000):
        name = random_name(trial.random)
        block = trial.random.choice(("datasets", "pipelines"))
        changed = {**content, block: {**content[block], name: next(iter(content[block].values()))}}
        try:
            validate_params(changed)
        except SettingsError:
            trial.note(refused=1)
            continue
        admitted.append(name)
        assert name.isascii() and ".." not in Path(name).parts and not name.startswith("-") and Path(name).name == name
        trial.note(admitted=1, understood_by_a_shell=0)
    assert len(admitted) > 30
    command = "\n".join(f"printf '%s\\n' {name}" for name in admitted)
    printed = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == admitted and not list(tmp_path.iterdir())


def test_the_commands_in_dvc_yaml_contain_only_names() -> None:
    stages = load_safe_yaml((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert stages.pop("resolve")["cmd"] == "exec python -m pipelines.resolve params.yaml"
    for name, stage in stages.items():
        assert stage["foreach"] in ("${datasets}", "${pipelines}")
        assert stage["do"]["cmd"] == f"exec python -m pipelines.{name} ${{key}}"


@pytest.fixture
def clone(make_repository: Callable[..., Path], tmp_path: Path) -> Path:
    origin = make_repository({"a.txt": "a"}, "origin")
    subprocess.run(["git", "clone", "-q", str(origin), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


OPTIONS = [
    "--upload-pack=touch RAN;",
    "-cRAN",
    "--output=RAN",
    "--exec=touch RAN",
    "-",
    "HEAD",
    "HEAD~1",
    "main",
    "a" * 39,
    "..",
    "x\0y",
    "",
]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_invalid_commit_id_is_not_passed_to_git_as_an_option(clone: Path, name: str) -> None:
    assert not git.holds(clone, name) and not git.obtain(clone, name)
    if not (name and name.isalpha()) and name not in ("HEAD", ""):
        with pytest.raises(RepositoryError):
            git.commit_of(clone, name)
    assert not list(clone.parent.rglob("RAN"))


def test_an_option_among_the_prerequisites_of_a_bundle_is_not_passed_to_git(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"# v2 git bundle\n---upload-pack=touch\tRAN;\n\n")
    assert [git.obtain(clone, sha) for sha in uncommitted.prerequisites(tmp_path / "bundle")] == [False]
    assert not list(tmp_path.rglob("RAN"))


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    return cases.copy_home(registered, tmp_path / "home")


def with_tags(home: Home, **tags: str) -> Any:
    store = open_tracking(home)
    store.set_tags(store.version(f"{MODEL}/1"), VersionTags.model_validate(tags))
    return store.version(f"{MODEL}/1")


def test_a_key_in_mlflow_that_is_a_path_removes_nothing(home: Home, tmp_path: Path) -> None:
    """fetch_bundle removes an invalid copy at its target, which must not be another folder."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    for key in ("../../precious", str(tmp_path / "precious"), "", ".", "../" + "0" * 64):
        with pytest.raises(IntegrityError, match="is not a key: remint did not write it"):
            fetch_bundle(home, with_tags(home, key=key))
    assert (tmp_path / "precious/file").exists() and (home.path / "mlflow").is_dir()


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"commit": "--upload-pack=touch RAN;"}, "its tag commit is '--upload-pack=touch RAN;', not a commit"),
        ({"pipeline": "x; touch RAN"}, "'x; touch RAN', which is not a valid name"),
        ({"recipe": canonical({"dataset": "$(touch RAN)"})}, "which is not a valid name"),
        ({"recipe": canonical({"dataset": ["x"]})}, "which is not a valid name"),
        ({"recipe": "[]"}, "its tag recipe is invalid"),
        ({"recipe": "{"}, "its tag recipe is invalid"),
    ],
)
def test_a_rebuild_refuses_edited_tags(home: Home, tmp_path: Path, tags: dict[str, str], says: str) -> None:
    version = with_tags(home, **{"dvc_lock_sha256": "x", **tags})
    with pytest.raises(IntegrityError) as caught:
        record.fetch(open_tracking(home), version, tmp_path / "to")
    assert says in str(caught.value) and not list(tmp_path.rglob("RAN"))


def test_commit_ids_that_are_options_are_not_compared(home: Home, clone: Path, tmp_path: Path) -> None:
    store = open_tracking(home)
    former, present = (store.version(f"{MODEL}/{number}") for number in (1, 2))
    message = why._code_change(Home(clone, home.path), former.model_copy(update={"commit": f"--output={tmp_path}/RAN"}), present)
    assert "not a valid commit id" in message and not (tmp_path / "RAN").exists()


def test_foreign_models_in_the_same_mlflow_are_ignored(home: Home) -> None:
    """Their names can contain quotes, or be a path."""
    store: Any = open_tracking(home)
    others = ["it's", "x' or name = 'digits-flow", 'a"b', "My model", "a" * 200]
    for name in others:
        store._client.create_registered_model(name)
    assert store.names() == [MODEL] and {entry.name for entry in queries.models(home, None)} == {MODEL}
    for name in others:
        for query in (lambda name=name: queries.models(home, name), lambda name=name: why.why(home, f"{name}/1")):
            with pytest.raises(NotFoundError) as caught:
                query()
            assert len(str(caught.value).splitlines()) == 1
        assert store.versions(name) == []
        with pytest.raises(NotFoundError):
            home.report(name, 1)
    for number in ("9" * 30, "1 or 1", "-1", "\u0661", "1e3"):
        with pytest.raises(NotFoundError):
            store.version(f"{MODEL}/{number}")


def test_a_dvc_lock_with_a_hostile_output_is_refused(tmp_path: Path) -> None:
    for out in ({"md5": "../../../etc/passwd"}, {"path": "../out"}, {"path": "/etc/out"}, {"md5": 5}, {"path": ["x"]}):
        whole = {"path": "outs/x", "md5": "0" * 32 + ".dir", "size": 1, "nfiles": 1, "hash": "md5", **out}
        (tmp_path / "dvc.lock").write_text(canonical({"stages": {"prepare@x": {"outs": [whole]}}}))
        with pytest.raises(VersioningError, match=r"dvc\.lock names no output of prepare@x"):
            locked(tmp_path / "dvc.lock", "prepare@x")
    (tmp_path / "dvc.lock").write_text(f"stages: !!python/object/apply:os.system ['touch {tmp_path}/RAN']")
    with pytest.raises(VersioningError):
        locked(tmp_path / "dvc.lock", "prepare@x")
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("key", ["a\0b", "\ud800", "../x", "/x", "a//b", "a/./b", "a\\b", "x" * 256])
def test_object_keys_that_are_not_valid_paths_are_refused(key: str) -> None:
    with pytest.raises(DataError, match="cannot be a file below a folder"):
        path_of(key)


@pytest.mark.parametrize("source", ["", " ", "a\0b", "a\nb", "x" * 300, "\x1b[2J", "a/" + "é" * 200])
def test_sources_that_are_not_valid_paths_are_refused(source: str) -> None:
    content = read_params(REPOSITORY)
    content["datasets"]["digits"]["source"] = source
    with pytest.raises(SettingsError, match=r"datasets\.digits\.source: expected a path or an address") as caught:
        validate_params(content)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("family", ["os:system", "os.system", "../evil", "remint.models.flow", "flow\n", "builtins.exec", ""])
def test_a_family_must_be_an_installed_name(family: str) -> None:
    with pytest.raises(SettingsError, match="unknown family"):
        plugins.settings_of(family)


def test_yaml_tags_are_refused_without_being_executed(tmp_path: Path) -> None:
    for text in (
        "datasets: !!python/object/apply:os.system ['touch {}']\npipelines: {}",
        "datasets: !!python/name:os.system\npipelines: {}",
        "datasets: {}\npipelines: !!python/object/new:os.system ['touch {}']",
        "datasets: !exec 'touch {}'\npipelines: {}",
    ):
        (tmp_path / "params.yaml").write_text(text.replace("{}", str(tmp_path / "RAN"), 1) if "touch" in text else text)
        with pytest.raises(SettingsError, match=r"params\.yaml"):
            load_params(tmp_path)
        with pytest.raises(SettingsError, match="--set"):
            apply_overrides(read_params(REPOSITORY), "digits-vae", ["training.steps=!!python/name:os.system"])
    assert not (tmp_path / "RAN").exists()


def test_a_sample_file_with_a_too_long_name_is_a_clear_error(home: Home, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be written: File name too long"):
        files.sample(load_version(home, f"{MODEL}/1"), 1, tmp_path / f"{'x' * 300}.npy")
    assert not is_name("x" * 101)
