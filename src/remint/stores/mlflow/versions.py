"""MLflow's model registry: versions, aliases, tags, attached files, and bundles that are verified before loading."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from remint.errors import IntegrityError, NotFoundError
from remint.redaction import redacted
from remint.runtime import manifest
from remint.runtime.addresses import local_path, without_user
from remint.runtime.home import is_name
from remint.runtime.locks import locked
from remint.settings.base import did_you_mean
from remint.stores.mlflow import package
from remint.stores.mlflow.door import PREFIX, door, pages
from remint.stores.mlflow.records import ModelVersion, VersionTags
from remint.stores.mlflow.runs import Runs

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

LONGEST_DESCRIPTION = 5000  # characters of a version's description in MLflow's databases
CALIBRATION = "calibration"  # folder among the files that are kept with a version
NUMBER = re.compile(r"[0-9]{1,9}")  # of a version
LEDGER_HEAD = PREFIX + "ledger_head"  # tag of a model: number and hash of the newest row that its aliases follow


class Registry(Runs):
    """Models of one MLflow, with their versions and aliases, in addition to its runs."""

    def _find(self, name: str, key: str) -> MlflowVersion | None:
        """Return the version with this key, the oldest if there are two; None if there is none."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.`{PREFIX}key` = '{key}'")
        return min(found, key=lambda version: int(version.version), default=None)

    def _run(self, version: ModelVersion) -> Run | None:
        """Return the run of a version; None if MLflow does not have it."""
        try:
            with door(f"look for the run of {version.ref}"):
                return self._client.get_run(version.run_id)
        except NotFoundError:
            return None

    def _by_key(self, name: str, key: str) -> ModelVersion | None:
        found = self._find(name, key)
        return self.version(f"{name}/{found.version}") if found else None  # a search does not return the aliases

    def names(self) -> list[str]:
        """Return the registered models with valid pipeline names: others could do harm in a query or a path."""
        with door("list models"):
            return sorted(model.name for model in pages(self._client.search_registered_models) if is_name(model.name))

    def versions(self, name: str, newest: int | None = None) -> list[ModelVersion]:
        """Return the versions of one model, newest first: all, or the ``newest`` ones and those with an alias."""
        if not is_name(name):
            return []
        with door(f"list versions of {name}"):
            ours, newest_first = f"name = '{name}'", ["version_number DESC"]
            if newest is None:
                found = list(pages(lambda **page: self._client.search_model_versions(ours, **page)))
            else:
                found = list(self._client.search_model_versions(ours, newest, newest_first))
            numbers = {version.version: version for version in (record_of(each) for each in found)}
        # MLflow's search does not return the aliases.
        for alias, number in sorted(self.aliases(name).items()):
            holder = numbers.get(number)
            if holder is None:
                numbers[number] = self.version(f"{name}/{number}")
            else:
                numbers[number] = holder.model_copy(update={"aliases": (*holder.aliases, alias)})
        return [numbers[number] for number in sorted(numbers, reverse=True)]

    def version(self, ref: str) -> ModelVersion:
        """Return the version of NAME (its champion), NAME@alias or NAME/7. Raises NotFoundError, which names alternatives."""
        name, _, number = ref.partition("/")
        name, _, alias = name.partition("@")
        alias = alias or "champion"
        aliases = {} if number else self.aliases(name)
        number = number or str(aliases.get(alias, ""))
        if NUMBER.fullmatch(number):
            try:
                with door(f"look for {ref}"):
                    return record_of(self._client.get_model_version(name, number))
            except NotFoundError:
                pass  # the errors below name the alternatives
        names = self.names()
        if name not in names:
            hint = did_you_mean(f"model '{name}'", name, names) if names else f"unknown model '{name}': nothing is registered yet"
            raise NotFoundError(f"{hint}; remint models lists the models")
        if number:
            raise NotFoundError(f"{name} has no version {number}; remint models {name} lists its versions")
        others = f"no {alias}, only {' and '.join(sorted(aliases))}" if aliases else f"no {alias} and no other alias yet"
        raise NotFoundError(f"{name} has {others}; remint models {name} lists its versions")

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version number of each alias of a model; {} if there is no such model."""
        return self.aliases_and_ledger_head(name)[0]

    def aliases_and_ledger_head(self, name: str) -> tuple[dict[str, int], str]:
        """Return the version number of each alias of a model, and the model's tag ``ledger_head`` ("" if it has none)."""
        if not is_name(name):
            return {}, ""
        # get_registered_model would load all versions of the model (0.3 s for 10,000).
        with door(f"read the aliases of {name}"):
            models = self._client.search_registered_models(f"name = '{name}'")
        if not models:
            return {}, ""
        (found,) = models
        return {alias: int(version) for alias, version in found.aliases.items()}, found.tags.get(LEDGER_HEAD, "")

    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Set an alias to a version, or delete it (None)."""
        with door(f"set {name}@{alias}"):
            if version is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, str(version))

    def set_tags(self, version: ModelVersion, tags: VersionTags) -> None:
        """Set tags of a version; its other tags stay."""
        with door(f"tag {version.ref}"):
            for key, value in tags.to_mlflow().items():
                self._client.set_model_version_tag(version.name, str(version.version), key, value)

    def set_description(self, version: ModelVersion, text: str) -> None:
        """Set the description of a version, without secrets and in the length that MLflow's databases hold."""
        with door(f"describe {version.ref}"):
            self._client.update_model_version(version.name, str(version.version), redacted(text)[:LONGEST_DESCRIPTION])

    def set_ledger_head(self, name: str, head: str) -> None:
        """Set the model's tag ``ledger_head``."""
        with door(f"tag {name}"):
            self._client.set_registered_model_tag(name, LEDGER_HEAD, head)

    def attach(self, version: ModelVersion, files: Mapping[str, Path]) -> None:
        """Store files with the run of a version, by name."""
        for name, path in files.items():
            self.log_file(version.run_id, path, name)

    def attachment(self, version: ModelVersion, name: str, to: Path) -> Path:
        """Fetch a file that was stored with the run of a version into the folder ``to``. Return its path.

        Raises IntegrityError if there is none, TrackingError if the store does not answer.
        """
        to.mkdir(parents=True, exist_ok=True)
        run = self._run(version)
        if run is None:
            raise IntegrityError(f"{version.ref}: {name} cannot be read: MLflow has no run {version.run_id}")
        with door(f"fetch {name} of {version.ref}"):
            try:
                return self._download(f"{run.info.artifact_uri}/{name}", to)
            except FileNotFoundError as error:
                raise IntegrityError(f"{version.ref}: {name} cannot be read: {error}") from error

    def fetch_calibration(self, version: ModelVersion, to: Path) -> Path:
        """Fetch the calibration that is kept with a version into the folder ``to``. Return its folder.

        Raises IntegrityError if it is lost, damaged, or not the one that the version's tag names.
        """
        folder = self.attachment(version, CALIBRATION, to)
        manifest.verify(folder)
        if manifest.sha256_file(folder / manifest.NAME) != version.tags.calibration:
            raise IntegrityError(f"{version.ref}: its calibration is not the one that its tag names")
        return folder

    def attachment_uri(self, version: ModelVersion, name: str) -> str:
        """Return the address of a file that was stored with the run of a version, without user and password."""
        run = self._run(version)
        return without_user(f"{run.info.artifact_uri}/{name}") if run else f"{name} of run {version.run_id}"

    def fetch(self, version: ModelVersion, to: Path) -> Path:
        """Fetch the bundle of a version to ``to``, atomically and verified. An existing folder is verified and reused.

        Raises IntegrityError if the bytes are gone, damaged, not the registered ones, or not in remint's format;
        TrackingError if the store does not answer.
        """
        with suppress(IntegrityError):
            return package.check(to, version)
        for folder in (to.parent, self.lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(self.lock.with_name("fetch")):  # servers of one host fetch a new champion at the same moment
            with suppress(IntegrityError):
                return package.check(to, version)
            shutil.rmtree(to, ignore_errors=True)
            self._fetch(version, to)
        return to

    def _fetch(self, version: ModelVersion, to: Path) -> None:
        with door(f"fetch {version.ref}"), tempfile.TemporaryDirectory(prefix=".fetch-", dir=to.parent) as temporary:
            source = self._client.get_model_version_download_uri(version.name, str(version.version))
            try:
                back = self._download(source, Path(temporary))
            except FileNotFoundError as error:
                raise IntegrityError(f"{version.ref}: its files cannot be read: {error}") from error
            package.verified_bundle(back, version).rename(to)

    def _download(self, source: str, to: Path) -> Path:
        """Copy the files at an address of the store into ``to``. Raises FileNotFoundError if there are none.

        MLflow's client raises the same error for missing files and for a store that went away. So the store is asked whether
        it lists the files. Listed files are requested once more; if that fails too, the store is out of order, and nothing
        is known about the bytes.
        """
        import mlflow.artifacts

        for last in (False, True):
            try:
                if place := local_path(source):
                    package.check_regular_files(place)
                return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(to), tracking_uri=self.uri))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise FileNotFoundError(f"there are no files at {source}") from error
            except mlflow.MlflowException as error:
                above, _, name = source.rpartition("/")
                beside = mlflow.artifacts.list_artifacts(artifact_uri=above, tracking_uri=self.uri)
                if name not in {each.path.rpartition("/")[2] for each in beside}:
                    raise FileNotFoundError(f"there are no files at {source}") from error
                if last:
                    raise
        raise AssertionError("the last attempt returns or raises")


def record_of(version: MlflowVersion) -> ModelVersion:
    tags = VersionTags.of(version.tags)
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        key=tags.key or "",
        run_id=version.run_id or "",
        weights_sha256=tags.weights_sha256 or "",
        dataset=tags.dataset or "",
        commit=tags.commit or "",
        dirty=tags.dirty != "false",
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(),
        aliases=tuple(sorted(version.aliases)),
        description=version.description or "",
        tags=tags,
    )
