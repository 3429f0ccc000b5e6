"""Cache of datasets on a machine of a cluster, and the archives that travel to it: damaged, too large, hostile."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import remint
from pipelines import fetch
from remint.distributed.ranks import pack, unpack
from remint.errors import ResourceError
from remint.runtime.home import Home
from remint.stores import git, uncommitted
from remint.stores.dvc import Workspace, workspace, workspace_environment

PREPARE = "import pathlib, sys\nfolder = pathlib.Path('outs/prepared', sys.argv[1])\nfolder.mkdir(parents=True)\n"
PREPARE += "(folder / 'x.npy').write_bytes(sys.argv[1].encode() * 1000)\n"
FILES = {
    "prepare.py": PREPARE,
    "dvc.yaml": """
stages:
  prepare:
    foreach: {aaa: {}, bbb: {}}
    do: {cmd: "python prepare.py ${key}", deps: [prepare.py], outs: ["outs/prepared/${key}"]}
""",
    "params.yaml": "datasets: {}\n",
    ".dvc/config": "[core]\n    remote = local\n[cache]\n    dir = ../.remint/dvc/cache\n['remote \"local\"']\n    url = ../.remint/dvc/remote\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n",
    ".gitignore": "/outs/\n/.remint/\n",
}
pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.slow]


@pytest.fixture
def fetched(
    make_repository: Callable[[dict[str, str]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], bytes]:
    """Function that fetches a dataset to a new run on the machine, as node.py does, and returns its bytes. The job has pushed."""
    real, source = workspace_environment, str(Path(remint.__file__).parents[1])
    monkeypatch.setattr(workspace, "workspace_environment", lambda folder, home: {**real(folder, home), "PYTHONPATH": source})
    monkeypatch.setenv("REMINT_DVC_REMOTE", str(tmp_path / "remote"))
    repository = make_repository(FILES)
    home = Home.of(repository).ensure()
    checkout = git.check_out(repository, uncommitted.commit_of_tree(repository), home.workspaces / "job")
    job = Workspace(checkout, home, logs=home.path / "logs")
    for name in ("aaa", "bbb"):
        job.reproduce("prepare", name, lambda _: None)
    job.push("prepare@aaa", "prepare@bbb")
    archive = git.pack(checkout)
    monkeypatch.setenv("REMINT_NODE_CACHE", str(tmp_path / "cache"))
    runs = iter(range(100))

    def fetched(name: str) -> bytes:
        run = tmp_path / f"run{next(runs)}"
        unpack(archive, run / "code")
        monkeypatch.setenv("REMINT_HOME", str(run))
        monkeypatch.chdir(run / "code")
        fetch.main(name)
        return (run / "code/outs/prepared" / name / "x.npy").read_bytes()

    return fetched


def kept(folder: Path) -> list[Path]:
    """Return the files of datasets in the machine's cache, the longest unused first."""
    return sorted((folder / "cache/data").glob("*/x.npy"), key=lambda path: path.parent.stat().st_mtime)


def test_damaged_bytes_in_the_cache_are_fetched_again(fetched: Callable[[str], bytes], tmp_path: Path) -> None:
    whole = fetched("aaa")
    (path,) = kept(tmp_path)
    inode = path.stat().st_ino
    assert fetched("aaa") == whole and path.stat().st_ino == inode, "intact bytes are not fetched again"
    path.chmod(0o600)
    path.write_bytes(b"b" + whole[1:])  # same size
    assert fetched("aaa") == whole and kept(tmp_path)[0].read_bytes() == whole
    path.unlink()
    assert fetched("aaa") == whole


def test_the_cache_keeps_its_limit(fetched: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_NODE_CACHE_LIMIT", "6K")
    first, second = fetched("aaa"), fetched("bbb")
    assert [path.read_bytes() for path in kept(tmp_path)] == [first, second], "both have room"
    monkeypatch.setenv("REMINT_NODE_CACHE_LIMIT", "5K")
    shutil.rmtree(kept(tmp_path)[0].parent)
    fetched("aaa")
    assert [path.read_bytes() for path in kept(tmp_path)] == [first], "the longest unused was removed"
    monkeypatch.setenv("REMINT_NODE_CACHE_LIMIT", "2K")
    with pytest.raises(ResourceError, match=r"REMINT_NODE_CACHE_LIMIT: the dataset has .*: set it to more"):
        fetched("bbb")


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("../outside", tarfile.REGTYPE, ""),
        ("a/../../outside", tarfile.REGTYPE, ""),
        ("/{outside}", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "../outside"),
        ("link", tarfile.SYMTYPE, "/{outside}"),
        ("link", tarfile.LNKTYPE, "../outside"),
        ("device", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str, kind: bytes, target: str) -> None:
    """Nothing is written outside of its folder. An absolute name loses its first slash, and stays inside."""
    outside = tmp_path / "outside"
    member = tarfile.TarInfo(name.format(outside=outside))
    member.type, member.linkname = kind, target.format(outside=outside)
    member.size = 4 if kind == tarfile.REGTYPE else 0
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(member, io.BytesIO(b"evil"))
    folder = tmp_path / "a/folder"
    if name.startswith("/"):
        unpack(content.getvalue(), folder)
        assert (folder / str(outside).lstrip("/")).read_bytes() == b"evil"
    else:
        with pytest.raises(tarfile.FilterError):
            unpack(content.getvalue(), folder)
        assert not list(folder.iterdir())
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a"] and list((tmp_path / "a").iterdir()) == [folder]


def test_an_honest_archive_comes_whole(tmp_path: Path) -> None:
    (tmp_path / "made/deep").mkdir(parents=True)
    (tmp_path / "made/deep/file").write_bytes(b"content")
    unpack(pack(tmp_path / "made", "other"), tmp_path / "there")
    assert (tmp_path / "there/other/deep/file").read_bytes() == b"content"
