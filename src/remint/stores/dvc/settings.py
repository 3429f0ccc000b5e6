"""What dvc is given in a checkout: absolute addresses, an environment of its own, and nothing secret that it could log."""

from __future__ import annotations

import configparser
import os
import sys
from pathlib import Path

from remint.errors import RepositoryError
from remint.runtime.addresses import without_user
from remint.runtime.home import S3_PATIENCE, Home

# What a remote's settings may name a file by (dvc's Config._map_dirs).
FILES = ("url", "credentialpath", "configpath", "keyfile", "cert_path", "key_path")

ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def workspace_environment(folder: Path, home: Home) -> dict[str, str]:
    """A job runs its own commit's code with this environment's programs, and dvc calls nobody."""
    return {
        "PYTHONPATH": f"{folder}/src:{folder}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "REMINT_HOME": str(home.path),
        "REMINT_SOURCES": str(home.repository),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(_site_cache(home)),
        "GIT_TERMINAL_PROMPT": "0",
        "PYTHONUNBUFFERED": "1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_supported",  # with when_required flipped bytes pass
        **{name: os.environ.get(name) or value for name, value in S3_PATIENCE.items()},
        # S3 takes no password from there, and dvc logs it.
        **{name: without_user(os.environ[name]) for name in ENDPOINTS if os.environ.get(name)},
    }


def _site_cache(home: Home) -> Path:
    """dvc's site cache, which dvc unpickles: nobody else may write there."""
    site = home.dvc / "site"
    site.mkdir(parents=True, exist_ok=True, mode=0o700)
    if site.is_symlink() or site.stat().st_uid != os.getuid():
        raise RepositoryError(
            f"{site} belongs to somebody else, and dvc would run what lies there: remove it, or set REMINT_HOME"
        )
    if site.stat().st_mode & 0o077:
        site.chmod(0o700)
    return site


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
            if "endpointurl" in settings[section]:
                settings[section]["endpointurl"] = without_user(settings[section]["endpointurl"])
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
