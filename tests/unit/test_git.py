"""Workspaces, on real git: the commit of a job has the files on disk; the tree and index of the user do not change."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from remint.errors import RepositoryError, SettingsError, VersioningError
from remint.maintenance.gc import places
from remint.promotion.retraining import raw_data
from remint.runtime.home import Home
from remint.settings.params import write_params
from remint.stores import git, uncommitted


def run(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "team"
    folder.mkdir()
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "config", "user.email", "a@example.org")
    run(folder, "git", "config", "user.name", "A")
    (folder / "params.yaml").write_text("a: 1\n")
    (folder / ".gitignore").write_text("/outs/\n")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "first")
    return folder


def state(repository: Path) -> tuple[str, bytes, str]:
    """Return all state of the user that a job could change."""
    files = run(repository, "sh", "-c", "find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum")
    return files, (repository / ".git/index").read_bytes(), run(repository, "git", "for-each-ref", "refs/heads", "HEAD")


def test_the_commit_of_a_clean_tree_is_its_head(repository: Path) -> None:
    commit = uncommitted.commit_of_tree(repository)
    assert commit == git.Commit(run(repository, "git", "rev-parse", "HEAD").strip(), dirty=False)
    assert commit.reason_dirty is None


def test_uncommitted_work_becomes_a_commit_and_the_users_files_index_and_branches_stay(repository: Path, tmp_path: Path) -> None:
    (repository / "params.yaml").write_text("a: 2\n")
    run(repository, "git", "add", "params.yaml")
    (repository / "params.yaml").write_text("a: 3\n")  # staged 2, on disk 3
    (repository / "new file.py").write_text("x = 1\n")
    (repository / "outs").mkdir()
    (repository / "outs" / "ignored").write_text("data")
    before = state(repository)
    commit = uncommitted.commit_of_tree(repository)
    assert state(repository) == before
    assert commit.dirty
    assert commit.changed == ("new file.py", "params.yaml")
    assert commit.reason_dirty == "uncommitted changes in new file.py, params.yaml"
    folder = git.check_out(repository, commit, tmp_path / "job")
    assert (folder / "params.yaml").read_text() == "a: 3\n"
    assert (folder / "new file.py").exists()
    assert not (folder / "outs").exists()
    assert uncommitted.commit_of_tree(repository) == commit, "the same content is the same commit"


def test_a_bundle_of_uncommitted_work_can_be_built_elsewhere(repository: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    run(tmp_path, "git", "clone", "-q", str(repository), str(elsewhere))
    (repository / "params.yaml").write_text("a: 4\n")
    commit = uncommitted.commit_of_tree(repository)
    file = uncommitted.bundle(repository, commit, tmp_path / "work.bundle")
    run(elsewhere, "git", "fetch", "-q", str(file), f"refs/remint/{commit.sha}")
    assert run(elsewhere, "git", "show", f"{commit.sha}:params.yaml") == "a: 4\n"


def test_a_commit_that_is_pinned_outlives_its_branch(repository: Path) -> None:
    shas = []
    for text in ("a: 5\n", "a: 6\n"):
        (repository / "params.yaml").write_text(text)
        run(repository, "git", "commit", "-qam", text)
        shas.append(run(repository, "git", "rev-parse", "HEAD").strip())
        run(repository, "git", "reset", "-q", "--hard", "HEAD~1")
    git.pin(repository, shas[0])
    run(repository, "git", "reflog", "expire", "--expire=now", "--all")
    run(repository, "git", "gc", "-q", "--prune=now")
    assert [git.holds(repository, sha) for sha in shas] == [True, False]


def test_renames_and_deletions_are_named(repository: Path) -> None:
    run(repository, "git", "mv", "params.yaml", "settings.yaml")
    assert uncommitted.commit_of_tree(repository).changed == ("params.yaml", "settings.yaml")


def test_a_changed_dvc_lock_is_not_uncommitted_work(repository: Path) -> None:
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    assert not uncommitted.commit_of_tree(repository).dirty


def test_files_that_the_tools_of_the_stack_leave_are_not_uncommitted_work(repository: Path) -> None:
    for name in ("mlflow.db", "mlruns/0/meta.yaml", "mlartifacts/x", ".prefect/prefect.db"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("left")
    assert not uncommitted.commit_of_tree(repository).dirty
    (repository / "src").mkdir()
    (repository / "src/mlflow.db").write_text("not at the root")
    assert uncommitted.commit_of_tree(repository).changed == ("src/mlflow.db",)


def test_a_touched_but_equal_file_is_not_uncommitted_work(repository: Path) -> None:
    (repository / "params.yaml").touch()
    assert not uncommitted.commit_of_tree(repository).dirty


@pytest.mark.parametrize("name", [".env", "server.pem", "id_rsa", "aws-credentials.json"])
def test_a_file_that_looks_like_a_secret_is_refused_by_name(repository: Path, name: str) -> None:
    (repository / name).write_text("secret")
    with pytest.raises(RepositoryError, match=name):
        uncommitted.commit_of_tree(repository)
    assert not run(repository, "git", "for-each-ref", "refs/remint")


def test_a_large_file_is_refused_by_name(repository: Path) -> None:
    with (repository / "faces.npy").open("wb") as stream:
        stream.truncate(uncommitted.LARGEST_FILE + 1)
    with pytest.raises(RepositoryError, match=r"faces.npy is 10 MiB, too large for git"):
        uncommitted.commit_of_tree(repository)


def test_a_missing_repository_and_a_missing_commit_have_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no git repository at"):
        git.repository_of(tmp_path)
    run(tmp_path, "git", "init", "-q")
    with pytest.raises(RepositoryError, match="has no commit yet"):
        git.repository_of(tmp_path)


def test_a_branch_that_does_not_exist_is_refused(repository: Path) -> None:
    with pytest.raises(RepositoryError, match="no branch, tag or commit 'nightly'"):
        git.commit_of(repository, "nightly")
    run(repository, "git", "checkout", "-q", "--detach")
    with pytest.raises(RepositoryError, match="has no branch checked out"):
        git.branch_of(repository)


def test_a_commit_is_fetched_from_the_origin_without_a_trace(repository: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", str(repository), "clone")
    clone = tmp_path / "clone"
    (repository / "params.yaml").write_text("a: 2\n")
    run(repository, "git", "commit", "-qam", "second")
    run(repository, "git", "reset", "-q", "--hard", "HEAD^")  # no longer on a branch
    lost = run(repository, "git", "rev-parse", "HEAD@{1}").strip()
    before = state(clone), run(clone, "git", "for-each-ref"), sorted(path.name for path in (clone / ".git").iterdir())
    assert not git.holds(clone, lost) and git.obtain(clone, lost) and git.holds(clone, lost)
    assert before == (
        state(clone),
        run(clone, "git", "for-each-ref"),
        sorted(path.name for path in (clone / ".git").iterdir()),
    )
    assert not git.obtain(clone, "0" * 40) and not git.obtain(repository, "0" * 40)


def test_uncommitted_work_is_built_in_a_fresh_clone_from_its_bundle(repository: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", str(repository), "clone")
    (repository / "params.yaml").write_text("a: 2\n")
    commit = uncommitted.commit_of_tree(repository)
    file = uncommitted.bundle(repository, commit, tmp_path / "work.bundle")
    assert uncommitted.prerequisites(file) == [commit.base]
    folder = git.check_out(tmp_path / "clone", commit, tmp_path / "job", bundled=file)
    assert (folder / "params.yaml").read_text() == "a: 2\n"
    assert not git.holds(tmp_path / "clone", commit.sha), "the clone has no part in it"


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://ann:SECRET@example.org/team/models.git", "https://example.org/team/models.git"),
        ("https://SECRET@example.org:8443/models.git?token=SECRET#SECRET", "https://example.org:8443/models.git"),
        ("ssh://git:SE@CRET@example.org/models.git", "ssh://example.org/models.git"),
        ("git@example.org:team/models.git", "git@example.org:team/models.git"),
        ("file:///srv/models.git", "file:///srv/models.git"),
        ("../models.git", "../models.git"),
    ],
)
def test_the_address_of_the_origin_is_reported_without_secrets(repository: Path, address: str, kept: str) -> None:
    assert git.origin(repository) == ""
    run(repository, "git", "remote", "add", "origin", address)
    assert git.origin(repository) == kept


def test_uncommitted_work_beside_data_that_git_ignores_becomes_a_commit(repository: Path) -> None:
    for name in ("data/people.csv", "kept/a.csv", "kept/b.csv", "dvc_plots/p.html"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("name,born\n")
    (repository / ".gitignore").write_text("/data/\n/kept/\n/dvc_plots/\n")
    run(repository, "git", "add", "--force", ".gitignore", "kept/a.csv")
    run(repository, "git", "commit", "-qm", "one of the ignored files is tracked")
    (repository / "params.yaml").write_text("a: 2\n")
    for data in ("data", "data/people.csv", "kept", "kept/a.csv", "kept/b.csv"):
        assert uncommitted.commit_of_tree(repository, [Path(data)]).changed == ("params.yaml",)


def test_a_commit_of_uncommitted_work_has_the_files_of_git_add(repository: Path) -> None:
    (repository / "folder").mkdir()
    for name in ("gone", "moved", "becomes_a_folder", "folder/becomes_a_file", "same", "staged", "ünï\nx"):
        (repository / name).write_text(name)
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-qm", "before")
    (repository / "gone").unlink()
    run(repository, "git", "mv", "moved", "moved_to")
    (repository / "becomes_a_folder").unlink()
    (repository / "becomes_a_folder").mkdir()
    (repository / "becomes_a_folder/x").write_text("new")
    shutil.rmtree(repository / "folder")
    (repository / "folder").write_text("a file")
    for name in ("staged", "new then gone"):
        (repository / name).write_text("1")
    run(repository, "git", "add", "staged", "new then gone")
    (repository / "staged").write_text("2")
    (repository / "new then gone").unlink()
    (repository / "ünï\nx").write_text("2")
    (repository / "same").chmod(0o755)
    (repository / "link").symlink_to("same")
    run(repository, "git", "init", "-q", "nested")
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    run(repository / "nested", "git", *author, "commit", "-q", "--allow-empty", "-m", "a repository inside")
    sha = uncommitted.commit_of_tree(repository).sha
    run(repository, "git", "add", "--all")
    assert run(repository, "git", "rev-parse", f"{sha}^{{tree}}") == run(repository, "git", "write-tree")


@pytest.mark.parametrize("staged", [False, True])
def test_raw_data_never_enter_the_commit_and_are_no_uncommitted_work(repository: Path, *, staged: bool) -> None:
    secret = "ann,1979-02-03,\n"
    (repository / "people.csv").write_text("name,born\n")
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-qm", "a table that git tracks already")
    for name in ("people.csv", "data/customers.csv", "data/deep/er.csv", "*[x].csv"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(secret)
    data = [Path("people.csv"), Path("data"), repository / "*[x].csv", Path("/elsewhere"), Path("absent"), Path(), Path("..")]
    if staged:
        run(repository, "git", "add", "-A")
    before = state(repository)
    assert not uncommitted.commit_of_tree(repository, data).dirty
    assert state(repository) == before
    (repository / "params.yaml").write_text("a: 2\n")
    (repository / "x.csv").write_text("not data")
    commit = uncommitted.commit_of_tree(repository, data)
    assert (commit.dirty, commit.changed) == (True, ("params.yaml", "x.csv"))
    assert set(run(repository, "git", "ls-tree", "-r", "--name-only", commit.sha).split()) == {
        *(".gitignore", "params.yaml", "people.csv", "x.csv")
    }
    blobs = run(repository, "git", "rev-list", "--objects", "--all").split("\n")
    contents = [run(repository, "git", "cat-file", "-p", blob.split()[0]) for blob in blobs if blob]
    assert not any(secret in content for content in contents)


def test_a_source_that_is_a_link_does_not_commit_the_data_that_it_leads_to(repository: Path) -> None:
    for name in ("raw/customers.csv", "people.csv"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("ann,1979-02-03,\n")
    (repository / "folder").symlink_to("raw")
    (repository / "link.csv").symlink_to(repository / "people.csv")
    data = [Path("folder/customers.csv"), Path("link.csv")]
    commit = uncommitted.commit_of_tree(repository, data)
    assert set(commit.changed) == {"folder"}, "a link to a folder is no data"
    listed = run(repository, "git", "ls-tree", "-r", "--name-only", commit.sha).split()
    assert "people.csv" not in listed and "raw/customers.csv" not in listed


def test_raw_data_are_the_local_sources_and_what_dvc_tracks(repository: Path) -> None:
    sources = {"a": "data/a.csv", "b": "idx:data/b/", "c": "/srv/c.npz", "d": "s3://bucket/d", "e": "sklearn:digits"}
    held_out = {"a": "data/test.csv", "b": "t10k", "c": 0.2, "d": "s3://bucket/test", "e": None}
    blocks = {name: {"source": source, "split": {"held_out": held_out[name]}} for name, source in sources.items()}
    write_params({"datasets": blocks, "pipelines": {}}, repository)
    (repository / "deep").mkdir()
    (repository / "deep/x.dvc").write_text("outs:\n- {md5: 0, path: x.bin}\n")
    (repository / "broken.dvc").write_text("outs: 1")
    stages = "stages:\n  a: {foreach: [1], do: {outs: ['outs/a/${key}', {'outs/b.json': {cache: false}}]}}\n  b: {wdir: sub, outs: [c]}\n"
    (repository / "dvc.yaml").write_text(stages)
    found = {str(path.relative_to(repository) if path.is_relative_to(repository) else path) for path in raw_data(repository)}
    assert found == {"data/a.csv", "data/test.csv", "data/b", "/srv/c.npz", "deep/x.bin", "outs/a", "outs/b.json", "sub/c"}


@pytest.mark.parametrize("source", [".", "./", "data/.."])
def test_a_source_that_is_the_repository_itself_is_refused(repository: Path, source: str) -> None:
    write_params({"datasets": {"a": {"source": source}}, "pipelines": {}}, repository)
    with pytest.raises(SettingsError, match=r"datasets\.a\.source: '.*' is the repository itself: move the data into a folder"):
        raw_data(repository)


def test_gc_does_not_take_a_damaged_commit_for_one_without_settings(repository: Path) -> None:
    run(repository, "git", "switch", "-q", "-c", "without")
    run(repository, "git", "rm", "-q", "params.yaml")
    run(repository, "git", "commit", "-qm", "no settings")
    home = Home.of(repository)
    (home.fetched / "a: 1").mkdir(parents=True)
    assert ("home", "fetched/a: 1") in places.roots(home), "a branch names it"
    blob = run(repository, "git", "rev-parse", "main:params.yaml").strip()
    (repository / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(VersioningError, match="git show"):
        places.roots(home)
