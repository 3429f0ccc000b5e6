"""MLflow's model registry: what there is, what is kept with it, and its bytes, verified before anybody loads them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from remint.errors import IntegrityError, NotFoundError
from remint.runtime.home import is_name
from remint.settings.recipe import did_you_mean
from remint.stores.mlflow import package
from remint.stores.mlflow.door import PREFIX, door, pages
from remint.stores.mlflow.records import ModelVersion, VersionTags
from remint.stores.mlflow.runs import Runs

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

NUMBER = re.compile(r"[0-9]{1,9}")  # of a version
LEDGER_HEAD = PREFIX + "ledger_head"  # of a model: number and hash of the newest row that its aliases have followed


class Registry(Runs):
    """The models of one MLflow, their versions and aliases, on top of its runs."""

    def _find(self, name: str, key: str) -> MlflowVersion | None:
        """The version with this key; the first, were there ever two."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.`{PREFIX}key` = '{key}'")
        return min(found, key=lambda version: int(version.version), default=None)

    def _run(self, version: ModelVersion) -> Run | None:
        """The run of a version; None: MLflow has none of its id."""
        try:
            with door(f"look for the run of {version.ref}"):
                return self._client.get_run(version.run_id)
        except NotFoundError:
            return None

    def _by_key(self, name: str, key: str) -> ModelVersion | None:
        found = self._find(name, key)
        return self.version(f"{name}/{found.version}") if found else None  # a search leaves the aliases out

    def names(self) -> list[str]:
        """The registered models whose names a pipeline can have: another's name could mean something in a query or a path."""
        with door("list models"):
            return sorted(model.name for model in pages(self._client.search_registered_models) if is_name(model.name))

    def versions(self, name: str, newest: int | None = None) -> list[ModelVersion]:
        """The versions of one model, newest first: all, or the ``newest`` ones and those that have an alias."""
        if not is_name(name):
            return []
        with door(f"list versions of {name}"):
            ours, newest_first = f"name = '{name}'", ["version_number DESC"]
            if newest is None:
                found = list(pages(lambda **page: self._client.search_model_versions(ours, **page)))
            else:
                found = list(self._client.search_model_versions(ours, newest, newest_first))
            numbers = {version.version: version for version in (record_of(each) for each in found)}
        # MLflow's search leaves the aliases out.
        for alias, number in sorted(self.aliases(name).items()):
            holder = numbers.get(number)
            if holder is None:
                numbers[number] = self.version(f"{name}/{number}")
            else:
                numbers[number] = holder.model_copy(update={"aliases": (*holder.aliases, alias)})
        return [numbers[number] for number in sorted(numbers, reverse=True)]

    def version(self, ref: str) -> ModelVersion:
        """The version of NAME (its champion), NAME@alias or NAME/7. Raises NotFoundError, which says what there is."""
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
                pass  # the one below says what there is instead
        names = self.names()
        if name not in names:
            hint = did_you_mean(f"model '{name}'", name, names) if names else f"unknown model '{name}': nothing is registered yet"
            raise NotFoundError(f"{hint}; remint models lists what there is")
        if number:
            raise NotFoundError(f"{name} has no version {number}; remint models {name} lists what there is")
        others = f"no {alias}, only {' and '.join(sorted(aliases))}" if aliases else f"no {alias} yet, nor any other alias"
        raise NotFoundError(f"{name} has {others}; remint models {name} lists its versions")

    def aliases(self, name: str) -> dict[str, int]:
        """The version that each alias of a model stands for; none where there is no such model."""
        return self.standing(name)[0]

    def standing(self, name: str) -> tuple[dict[str, int], str]:
        """The version that each alias of a model stands for, and the model's tag ``ledger_head``, "" where it has none."""
        if not is_name(name):
            return {}, ""
        # get_registered_model would load every version of it, of 10,000 in 0.3 s.
        with door(f"read the aliases of {name}"):
            models = self._client.search_registered_models(f"name = '{name}'")
        if not models:
            return {}, ""
        (found,) = models
        return {alias: int(version) for alias, version in found.aliases.items()}, found.tags.get(LEDGER_HEAD, "")

    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Makes an alias stand for a version, or for nothing (None)."""
        with door(f"set {name}@{alias}"):
            if version is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, str(version))

    def set_tags(self, version: ModelVersion, tags: VersionTags) -> None:
        """Adds to the tags of a version."""
        with door(f"tag {version.ref}"):
            for key, value in tags.to_mlflow().items():
                self._client.set_model_version_tag(version.name, str(version.version), key, value)

    def set_ledger_head(self, name: str, head: str) -> None:
        """Sets the model's tag ``ledger_head``."""
        with door(f"tag {name}"):
            self._client.set_registered_model_tag(name, LEDGER_HEAD, head)

    def attach(self, version: ModelVersion, files: Mapping[str, Path]) -> None:
        """Keeps more files with the run of a version, by name."""
        for name, path in files.items():
            self.log_file(version.run_id, path, name)

    def attachment(self, version: ModelVersion, name: str, to: Path) -> Path:
        """A file that is kept with the run of a version, fetched into the folder ``to``.

        Raises IntegrityError where there is none, TrackingError where the store cannot be asked.
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

    def fetch(self, version: ModelVersion, to: Path) -> Path:
        """The bundle of a version at ``to``, whole and verified, or not there at all. One that is there already is verified.

        Raises IntegrityError where the bytes are gone, damaged, not those that were registered, or not ours to load;
        TrackingError where the store cannot be asked for them.
        """
        try:
            return package.check(to, version)
        except IntegrityError:
            shutil.rmtree(to, ignore_errors=True)
        to.parent.mkdir(parents=True, exist_ok=True)
        with door(f"fetch {version.ref}"), tempfile.TemporaryDirectory(prefix=".fetch-", dir=to.parent) as temporary:
            source = self._client.get_model_version_download_uri(version.name, str(version.version))
            try:
                back = self._download(source, Path(temporary))
            except FileNotFoundError as error:
                raise IntegrityError(f"{version.ref}: its files cannot be read: {error}") from error
            package.opened(back, version).rename(to)
        return to

    def _download(self, source: str, to: Path) -> Path:
        """What the store holds at an address, copied into ``to``. Raises FileNotFoundError where it holds nothing there.

        MLflow's client raises one error for what is missing and for a store that went away in the middle: so the store is
        asked what it lists. What it lists is asked for once more; where it does not give it then either that is an outage,
        which says nothing of the bytes.
        """
        import mlflow.artifacts

        for last in (False, True):
            try:
                if place := package.local(source):
                    package.only_files(place)
                return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(to), tracking_uri=self.uri))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise FileNotFoundError(f"nothing lies at {source}") from error
            except mlflow.MlflowException as error:
                above, _, name = source.rpartition("/")
                beside = mlflow.artifacts.list_artifacts(artifact_uri=above, tracking_uri=self.uri)
                if name not in {each.path.rpartition("/")[2] for each in beside}:
                    raise FileNotFoundError(f"nothing lies at {source}") from error
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
        tags=tags,
    )
