"""Fingerprint of a pipeline's sources, by which a trigger knows whether there is new data.

    HOME/triggers/NAME/done        fingerprint of the sources, as the newest retraining found them
    HOME/triggers/NAME/started     Started as JSON: the newest retraining that the trigger started

The fingerprint is cheap: the listing of a bucket's prefix, or names, sizes and times of files. A file that is only touched gives
another one. The retraining then finds the same data, trains nothing and ends as Unchanged.
"""

from __future__ import annotations

from uuid import UUID

from pydantic import ValidationError

from remint.data import folder, shipped, sources
from remint.errors import DataError
from remint.promotion.retraining import Retraining
from remint.records import Record, digest
from remint.runtime.home import Home
from remint.settings.params import PARAMS, Params, load_params, parse_params, validate_params
from remint.stores import git, s3
from remint.stores.files import Folder

DONE, STARTED = "done", "started"


class Started(Record):
    """A retraining that the trigger started."""

    fingerprint: str
    flow_run: UUID  # Prefect's id
    tries: int = 1  # starts for this fingerprint: a start gives way to a retraining that is under way


def params_of(home: Home, branch: str | None) -> Params:
    """Return the settings at the head of a branch; None: those on disk."""
    if branch is None:
        return load_params(home.repository)
    place = f"{git.commit_of(home.repository, branch).sha}:{PARAMS}"
    return validate_params(parse_params(git.run_git(home.repository, "show", place), f"{PARAMS} of {branch}"))


def fingerprint(home: Home, params: Params, pipeline: str) -> str:
    """Return the digest of all sources of a pipeline's dataset, and of their addresses. Raises DataError if one is missing."""
    name = params.pipeline(pipeline).dataset
    found = params.dataset(name).sources.items()
    return digest({source: _of(home, f"{PARAMS}: datasets.{name}.{key}", source) for key, source in found})


def _of(home: Home, key: str, source: str) -> str:
    if source in (*shipped.IMAGES, *shipped.TABLES):
        return ""  # part of an installed package: it never changes
    if source.startswith(sources.REMOTE):
        return s3.fingerprint(key, source)
    place = home.repository / sources.local_path(source)
    try:
        return folder.fingerprint(place)
    except FileNotFoundError:
        raise DataError(f"{key}: there is no file or folder {place}: put it there or correct the path") from None


def look(job: Retraining) -> str | None:
    """Return the fingerprint before a retraining reads its sources; None if it does not count for a trigger.

    A trial with other settings or uncommitted files leaves the data new: the deployed settings did not see them yet.
    """
    if job.settings.triggers.data_changed is None or job.overrides or job.commit.dirty:
        return None
    return fingerprint(job.home, job.params, job.pipeline)


def keep(job: Retraining, seen: str | None) -> None:
    """Keep the fingerprint of a retraining that ended with a verdict: its data are not new any more."""
    if seen is not None:
        _write(job.home, job.pipeline, DONE, seen)


def done(home: Home, pipeline: str) -> str | None:
    """Return the fingerprint of the newest retraining; None if none is kept."""
    return _read(home, pipeline, DONE)


def started(home: Home, pipeline: str) -> Started | None:
    """Return the newest retraining that the trigger started; None if none is kept."""
    text = _read(home, pipeline, STARTED)
    try:
        return Started.model_validate_json(text) if text else None
    except ValidationError:
        return None  # the file is damaged: an idempotency key keeps a start from being repeated


def keep_started(home: Home, pipeline: str, run: Started) -> None:
    _write(home, pipeline, STARTED, run.model_dump_json())


def _read(home: Home, pipeline: str, name: str) -> str | None:
    try:
        return (home.path / "triggers" / pipeline / name).read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None  # a damaged file is none


def _write(home: Home, pipeline: str, name: str, text: str) -> None:
    """Write a file atomically. Two processes may write it at once."""
    Folder(home.path / "triggers" / pipeline).write(name, text.encode())
