"""dvc in one checkout: its addresses, its steps, and what it holds of former ones."""

from __future__ import annotations

import configparser
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from remint import processes
from remint.errors import RemintError, RepositoryError, VersioningError, by_name
from remint.home import Home
from remint.step import EVENTS, RESTORE_ONLY

# dvc in a process of its own that dies with us: a flow killed by force leaves no trainer behind.
DVC = """
import sys
from remint.step import die_with_parent
die_with_parent()
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""

# What a remote's settings may name a file by (dvc's Config._map_dirs).
FILES = ("url", "credentialpath", "configpath", "keyfile", "cert_path", "key_path")

FORMER = "remint-former"  # folder of a workspace for what an older dvc.lock names

OnEvent = Callable[[dict[str, Any]], None]


class Workspace:
    """dvc in one checkout.

    Arguments: ``folder`` the checkout, ``home`` where cache, remote and checkpoints are, ``logs`` a folder for
    what dvc and the steps print, ``scratch`` a folder that stands for the home's in all but the remote: steps then find
    no cache and no checkpoint of anybody's, and leave none.
    """

    def __init__(self, folder: Path, home: Home, logs: Path, scratch: Path | None = None) -> None:
        self.folder, self.logs = folder, logs
        self.home = Home(home.repository, scratch) if scratch else home
        logs.mkdir(parents=True, exist_ok=True)
        addresses(home, folder, cache=self.home.dvc / "cache" if scratch else None)

    def restore(self, target: str) -> bool:
        """Restores ``target`` and all before it from the run cache. False where a step would have to run."""
        would_run = False

        def watch(event: dict[str, Any]) -> None:
            nonlocal would_run
            would_run = would_run or event["event"] == "would_run"

        try:
            self._dvc("ask", "repro", target, on_event=watch, env={RESTORE_ONLY: "1"})
        except VersioningError:
            if would_run:
                return False
            raise
        return True

    def reproduce(self, step: str, name: str, on_event: OnEvent) -> bool:
        """Runs one step, or restores it. True where it ran. Raises the error that ended the step."""
        ran = False

        def watch(event: dict[str, Any]) -> None:
            nonlocal ran
            ran = ran or event["event"] == "started"
            on_event(event)

        self._dvc(step, "repro", "--single-item", f"{step}@{name}", on_event=watch)
        return ran

    def renew(self, step: str, name: str, on_event: OnEvent) -> None:
        """Runs one step whatever dvc remembers; it remembers nothing of it. Raises the error that ended the step."""
        self._dvc(step, "repro", "--force", "--no-run-cache", "--no-commit", "--single-item", f"{step}@{name}", on_event=on_event)

    def pull(self, *targets: str) -> None:
        """Brings what the checkout's dvc.lock says that these steps made: cache, else remote. Raises VersioningError."""
        self._dvc("pull", "pull", "--force", *targets)

    def push(self, *targets: str) -> None:
        """Copies the outputs of these steps to the remote. Raises VersioningError where it is out of reach."""
        self._dvc("push", "push", *targets)

    def former(self, lock: Path, stage: str) -> Path:
        """What ``stage`` had made when ``lock`` (a dvc.lock) was written, in a folder of this workspace: cache, else remote.

        Raises VersioningError where the lock does not name it, or neither has it whole.
        """
        (self.folder / f"{FORMER}.dvc").write_text(json.dumps({"outs": [{**locked(lock, stage), "path": FORMER}]}))
        self._dvc("former", "pull", "--force", f"{FORMER}.dvc")
        return self.folder / FORMER

    def _dvc(self, label: str, *arguments: str, on_event: OnEvent | None = None, env: Mapping[str, str] | None = None) -> None:
        log, events = self.logs / f"{label}.log", self.logs / f"{label}.jsonl"
        events.unlink(missing_ok=True)
        errors: list[RemintError] = []

        def watch(event: dict[str, Any]) -> None:
            if event["event"] == "error":
                errors.append(by_name(event["kind"], event["message"]))
            elif on_event is not None:
                on_event(event)

        status = processes.run(
            [sys.executable, "-c", DVC, *arguments],
            cwd=self.folder,
            env={**os.environ, **environment(self.folder, self.home), EVENTS: str(events), **(env or {})},
            log=log,
            events=events,
            on_event=watch,
        )
        if errors:
            raise errors[0]
        if status:
            raise VersioningError(f"dvc {' '.join(arguments)} failed: {last_words(log)} (all of it: {log})")


def locked(lock: Path, stage: str) -> dict[str, Any]:
    """What a dvc.lock says of the one output of a stage: ``md5``, ``size``, ``nfiles``, ``hash``.

    Raises VersioningError where it names none.
    """
    try:
        (out,) = YAML(typ="safe", pure=True).load(lock.read_text())["stages"][stage]["outs"]
        return {key: out[key] for key in ("md5", "size", "nfiles", "hash")}
    except (OSError, YAMLError, KeyError, TypeError, ValueError) as error:
        raise VersioningError(f"{lock.name} names no output of {stage} ({type(error).__name__})") from error


def environment(folder: Path, home: Home) -> dict[str, str]:
    """A job runs its own commit's code with this environment's programs, and dvc calls nobody."""
    site = home.dvc / "site"
    site.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "PYTHONPATH": f"{folder}/src:{folder}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "REMINT_HOME": str(home.path),
        "REMINT_SOURCES": str(home.repository),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(site),
        "GIT_TERMINAL_PROMPT": "0",
        "PYTHONUNBUFFERED": "1",
    }


def addresses(home: Home, folder: Path, cache: Path | None = None) -> None:
    """Writes the workspace's ``.dvc/config.local``: the person's own settings, every local address absolute.

    In a checkout elsewhere a relative remote would be another folder, and a push would go there
    without a word. An address inside the repository's ``.remint/`` follows REMINT_HOME. REMINT_DVC_REMOTE goes before all.
    ``cache``: a folder in place of the cache that is set.
    """
    if not (folder / ".dvc" / "config").exists():
        raise RepositoryError(
            f"{home.repository} has no .dvc/config in its commit: run dvc init and commit, or clone a remint repository"
        )
    own = home.repository / ".dvc"
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([folder / ".dvc" / "config", own / "config.local"])
    for section in settings.sections():
        is_remote = section.strip("'").startswith("remote ")
        for key in FILES if is_remote else ("dir",) if section == "cache" else ():
            value = settings[section].get(key, "")
            if value and "://" not in value:
                settings[section][key] = str(_rooted((own / Path(value).expanduser()).resolve(), home))
        if is_remote:
            settings[section]["verify"] = "true"  # else a pull of a flipped bit ends well
    if home.dvc_remote:
        settings.read_dict({"core": {"remote": "jobs"}, "'remote \"jobs\"'": {"url": home.dvc_remote, "verify": "true"}})
    if cache:
        settings.read_dict({"cache": {"dir": str(cache)}})
    config = folder / ".dvc" / "config.local"
    config.touch(mode=0o600)  # it may hold the keys of a remote
    with config.open("w") as stream:
        settings.write(stream)


def _rooted(path: Path, home: Home) -> Path:
    default = home.repository.resolve() / ".remint"
    return home.path / path.relative_to(default) if path.is_relative_to(default) else path


def last_words(log: Path) -> str:
    """The last line of a log that says something, for an error of one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    telling = [line for line in lines if line.startswith("ERROR") or "Error" in line]
    return (telling or lines or ["it said nothing"])[-1].removeprefix("ERROR: ")
