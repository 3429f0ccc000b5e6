"""Settings of dvc in a checkout: absolute addresses, a separate environment, and no secrets that dvc could log."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from configobj import ConfigObj, ConfigObjError

from remint.errors import RepositoryError
from remint.runtime.addresses import IPV6, loopback_without_proxy, without_user
from remint.runtime.home import S3_PATIENCE, Home

# Keys of a remote's settings that may name a file (dvc's Config._map_dirs).
FILES = ("url", "credentialpath", "configpath", "keyfile", "cert_path", "key_path")

ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def workspace_environment(folder: Path, home: Home) -> dict[str, str]:
    """Return the environment of a job's dvc: the commit's code, this environment's programs, no analytics."""
    return {
        "PYTHONPATH": f"{folder}/src:{folder}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "REMINT_HOME": str(home.path),
        "REMINT_SOURCES": str(home.repository),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(_site_cache(home)),
        "GIT_TERMINAL_PROMPT": "0",
        "PYTHONUNBUFFERED": "1",
        **loopback_without_proxy(IPV6),  # a remote's endpoint is among dvc's settings; no step uses httpx
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_supported",  # with when_required flipped bytes pass
        **{name: os.environ.get(name) or value for name, value in S3_PATIENCE.items()},
        # dvc logs this address, and S3 ignores a password in it.
        **{name: without_user(os.environ[name]) for name in ENDPOINTS if os.environ.get(name)},
    }


def _site_cache(home: Home) -> Path:
    """Return the folder of dvc's site cache. dvc unpickles its files, so only this user may write there."""
    site = home.dvc / "site"
    site.mkdir(parents=True, exist_ok=True, mode=0o700)
    if site.is_symlink() or site.stat().st_uid != os.getuid():
        raise RepositoryError(f"{site} belongs to another user, and dvc would run code from there: remove it, or set REMINT_HOME")
    if site.stat().st_mode & 0o077:
        site.chmod(0o700)
    return site


def addresses(home: Home, folder: Path, cache: Path | None = None, git: bool = True) -> None:
    """Write the workspace's ``.dvc/config.local``: the person's settings, with every local address absolute.

    In a checkout elsewhere a relative remote would be another folder, and a push would silently go there. An address inside
    the repository's ``.remint/`` follows REMINT_HOME. REMINT_DVC_REMOTE takes precedence. ``cache``: a folder that replaces
    the cache of the settings. ``git``: the folder is in a repository of git.
    """
    if not (folder / ".dvc" / "config").exists():
        raise RepositoryError(
            f"{home.repository} has no .dvc/config in its commit: run dvc init and commit it, or clone a remint repository"
        )
    own = home.repository / ".dvc"
    settings = read_config(folder / ".dvc" / "config")
    settings.merge(read_config(own / "config.local"))
    for name in settings.sections:
        section, is_remote = settings[name], name.startswith("remote ")
        for key in FILES if is_remote else ("dir",) if name == "cache" else ():
            value = section.get(key, "")
            if isinstance(value, str) and value and "://" not in value:
                section[key] = str(_rooted((own / Path(value).expanduser()).resolve(), home))
        if is_remote:
            section["verify"] = "true"  # without it a pull accepts flipped bits
            if "endpointurl" in section:
                section["endpointurl"] = without_user(section["endpointurl"])
    if home.dvc_remote:
        settings.merge({"core": {"remote": "jobs"}, 'remote "jobs"': {"url": home.dvc_remote, "verify": "true"}})
    if not git:
        settings.merge({"core": {"no_scm": "true"}})
    if cache:
        settings.merge({"cache": {"dir": str(cache)}})
    write_config(settings, folder / ".dvc" / "config.local")


def read_config(path: Path) -> ConfigObj:
    """Read a file of dvc's settings, as dvc does; a missing file has none. Raises RepositoryError if it is not valid."""
    try:
        return ConfigObj(str(path), interpolation=False, encoding="utf-8", default_encoding="utf-8")
    except (ConfigObjError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def write_config(settings: ConfigObj, path: Path) -> None:
    """Write dvc's settings, every value quoted as dvc reads it."""
    path.touch(mode=0o600)  # it may contain the credentials of a remote
    with path.open("wb") as stream:
        settings.write(stream)


def _rooted(path: Path, home: Home) -> Path:
    default = home.repository.resolve() / ".remint"
    return home.path / path.relative_to(default) if path.is_relative_to(default) else path
