"""MLflow's model registry: versions that exist once, verified before anybody sees them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from remint import manifest
from remint.errors import IntegrityError, NotFoundError, RemintError
from remint.recipe import unknown
from remint.records import ModelVersion, TrainedModel, canonical
from remint.tracking import package
from remint.tracking.door import PREFIX, door, exclusive, first_line, once, pages, prefixed
from remint.tracking.runs import Runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion


class Tracking(Runs):
    """The runs of one MLflow, and on top of them its models, versions and aliases."""

    def register(
        self,
        bundle: Path,  # sealed folder of the trained model
        trained: TrainedModel,
        name: str,  # of the registered model
        run_id: str | None,  # open run that trained it; None: it was restored, and a run is opened just for this
        tags: Mapping[str, str],  # lineage; commit and dirty ("true" or "false") at least
        attachments: Mapping[str, Path],  # files and folders to keep with the run, by name
    ) -> ModelVersion:
        """The version of ``trained.key``: the one that exists, or a new one. Closes the run as FINISHED.

        The bytes are in the store, read back and compared, before the version exists; where anything fails there is no
        version and the run stays open. A version that came from uncommitted work loses that mark, and takes the tags, when a
        clean commit gives the same key.

        Raises IntegrityError where the bundle or what the store gives back is damaged, StorageError where it is full.
        """
        sealed = manifest.verify(bundle)
        if sealed["files"].get(package.WEIGHTS) != trained.weights_sha256:
            raise IntegrityError(f"{bundle}/{package.WEIGHTS} is not what training.json was written with: train again")
        with door(f"register {name}"), exclusive(self.lock, f"model {name}", self.uri):
            version = self._by_key(name, trained.key)
            if version is None:
                lineage = {**_facts(trained, bundle), **tags}
                with self._run_of(run_id, trained) as open_run:
                    version = self._make(bundle, trained, name, open_run, lineage, attachments)
                run_id = open_run
            elif version.dirty and tags.get("dirty") == "false":
                self.attach(version, attachments)
                self.set_tags(version, tags)
                version = self.version(version.ref)
            if run_id:
                self._client.set_tag(run_id, "remint.version", version.ref)
                self.end_run(run_id, "FINISHED")
        return version

    @contextmanager
    def _run_of(self, run_id: str | None, trained: TrainedModel) -> Iterator[str]:
        """The run that trained the model, or one that is opened in its stead and closed where the block fails."""
        if run_id is not None:
            yield run_id
            return
        run_id = self.start_run(trained.pipeline, {"restored": "true"}, trained.recipe)
        try:
            yield run_id
        except BaseException as error:
            with suppress(RemintError):  # the first error is the one to tell
                self.end_run(run_id, "FAILED" if isinstance(error, RemintError) else "KILLED", str(error) or type(error).__name__)
            raise

    def _make(
        self,
        bundle: Path,
        trained: TrainedModel,
        name: str,
        run_id: str,
        lineage: Mapping[str, str],
        attachments: Mapping[str, Path],
    ) -> ModelVersion:
        """Uploads, reads back, compares, and then makes the version with all its tags in one request."""
        client = self._client
        with door(f"upload {name}"), tempfile.TemporaryDirectory(prefix="remint-") as temporary:
            packed = package.pack(bundle, trained.spec, Path(temporary) / package.FOLDER)
            client.log_artifacts(run_id, str(packed), package.FOLDER)
            (Path(temporary) / "back").mkdir()
            back = Path(client.download_artifacts(run_id, package.FOLDER, str(Path(temporary) / "back")))
            if manifest.sha256_tree(back) != manifest.sha256_tree(packed):
                raise IntegrityError(
                    f"{name}: the store gave back other bytes than were uploaded: nothing was registered; run again"
                )
            for attachment, path in attachments.items():
                self.log_file(run_id, path, attachment)
            source = f"{client.get_run(run_id).info.artifact_uri}/{package.FOLDER}"
        with door(f"register {name}"):
            self._ensure_model(name)
            made = once(
                lambda: client.create_model_version(name, source, run_id, tags=prefixed(lineage), await_creation_for=0),
                lambda: self._find(name, trained.key),
            )
            return _record(made)

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            once(lambda: self._client.create_registered_model(name), lambda: None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _find(self, name: str, key: str) -> MlflowVersion | None:
        """The version with this key; the first, were there ever two."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.`{PREFIX}key` = '{key}'")
        return min(found, key=lambda version: int(version.version), default=None)

    def _by_key(self, name: str, key: str) -> ModelVersion | None:
        found = self._find(name, key)
        return self.version(f"{name}/{found.version}") if found else None  # a search leaves the aliases out

    def names(self) -> list[str]:
        """The registered models."""
        with door("list models"):
            return sorted(model.name for model in pages(self._client.search_registered_models))

    def versions(self, name: str, newest: int | None = None) -> list[ModelVersion]:
        """The versions of one model, newest first: all, or the ``newest`` ones and those that have an alias."""
        with door(f"list versions of {name}"):
            ours, newest_first = f"name = '{name}'", ["version_number DESC"]
            if newest is None:
                found = list(pages(lambda **page: self._client.search_model_versions(ours, **page)))
            else:
                found = list(self._client.search_model_versions(ours, newest, newest_first))
            numbers = {version.version: version for version in (_record(each) for each in found)}
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
        if number.isdecimal():
            try:
                with door(f"look for {ref}"):
                    return _record(self._client.get_model_version(name, number))
            except NotFoundError:
                pass  # the one below says what there is instead
        names = self.names()
        if name not in names:
            hint = unknown(f"model '{name}'", name, names) if names else f"unknown model '{name}': nothing is registered yet"
            raise NotFoundError(f"{hint}; remint models lists what there is")
        if number:
            raise NotFoundError(f"{name} has no version {number}; remint models {name} lists what there is")
        others = f"it has {', '.join(sorted(aliases))}" if aliases else "it has no alias yet"
        raise NotFoundError(f"{name} has no {alias}: {others}; remint models {name} lists its versions")

    def aliases(self, name: str) -> dict[str, int]:
        """The version that each alias of a model stands for; none where there is no such model."""
        return self.standing(name)[0]

    def standing(self, name: str) -> tuple[dict[str, int], dict[str, str]]:
        """The version that each alias of a model stands for, and the model's own tags; nothing where there is no such model."""
        try:
            with door(f"read the aliases of {name}"):
                found = self._client.get_registered_model(name)
        except NotFoundError:
            return {}, {}
        tags = {key.removeprefix(PREFIX): value for key, value in found.tags.items() if key.startswith(PREFIX)}
        return {alias: int(version) for alias, version in found.aliases.items()}, tags

    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Makes an alias stand for a version, or for nothing (None)."""
        with door(f"set {name}@{alias}"):
            if version is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, str(version))

    def set_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Adds to the tags of a version."""
        with door(f"tag {version.ref}"):
            for key, value in prefixed(tags).items():
                self._client.set_model_version_tag(version.name, str(version.version), key, value)

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Sets one tag of a model itself."""
        with door(f"tag {name}"):
            self._client.set_registered_model_tag(name, PREFIX + key, value)

    def attach(self, version: ModelVersion, files: Mapping[str, Path]) -> None:
        """Keeps more files with the run of a version, by name."""
        for name, path in files.items():
            self.log_file(version.run_id, path, name)

    def attachment(self, version: ModelVersion, name: str, to: Path) -> Path:
        """A file that is kept with the run of a version, fetched into the folder ``to``.

        Raises IntegrityError where it cannot be read.
        """
        to.mkdir(parents=True, exist_ok=True)
        with door(f"fetch {name} of {version.ref}"):
            from mlflow.exceptions import MlflowException

            try:
                return Path(self._client.download_artifacts(version.run_id, name, str(to)))
            except (OSError, MlflowException) as error:
                raise IntegrityError(f"{version.ref}: {name} cannot be read: {first_line(error)}") from error

    def fetch(self, version: ModelVersion, to: Path) -> Path:
        """The bundle of a version at ``to``, whole and verified, or not there at all. One that is there already is verified.

        Raises IntegrityError where the bytes are gone, damaged, not those that were registered, or not ours to load.
        """
        try:
            return package.check(to, version)
        except IntegrityError:
            shutil.rmtree(to, ignore_errors=True)
        to.parent.mkdir(parents=True, exist_ok=True)
        with door(f"fetch {version.ref}"), tempfile.TemporaryDirectory(prefix=".fetch-", dir=to.parent) as temporary:
            import mlflow.artifacts

            source = self._client.get_model_version_download_uri(version.name, str(version.version))
            try:
                back = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=temporary, tracking_uri=self.uri)
            except (FileNotFoundError, NotADirectoryError, mlflow.MlflowException) as error:
                raise IntegrityError(f"{version.ref}: its files cannot be read from {source}: {first_line(error)}") from error
            package.check(package.unpack(Path(back)), version).rename(to)
        return to


def _facts(trained: TrainedModel, bundle: Path) -> dict[str, str]:
    """The part of a version's lineage that the training itself knows."""
    return {
        "key": trained.key,
        "weights_sha256": trained.weights_sha256,
        "manifest_sha256": manifest.sha256_file(bundle / manifest.NAME),
        "dataset": trained.dataset,
        "pipeline": trained.pipeline,
        "recipe": canonical(trained.recipe),
        "seed": str(trained.recipe.get("training", {}).get("seed", "")),
        "world_size": str(trained.world_size),
        "best_step": str(trained.best_step),
        "fingerprint": canonical(trained.fingerprint),
    }


def _record(version: MlflowVersion) -> ModelVersion:
    tags = {key.removeprefix(PREFIX): value for key, value in version.tags.items() if key.startswith(PREFIX)}
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        key=tags.get("key", ""),
        run_id=version.run_id or "",
        weights_sha256=tags.get("weights_sha256", ""),
        dataset=tags.get("dataset", ""),
        commit=tags.get("commit", ""),
        dirty=tags.get("dirty", "true") != "false",
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(),
        aliases=tuple(sorted(version.aliases)),
        tags=tags,
    )
