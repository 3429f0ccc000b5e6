"""Publish the champion of a pipeline to the place of its setting publish:.

A publishing is repeated until the place agrees with the ledger: each retraining and each decision of a person publishes the
champion of the ledger, also one that an earlier process could not. It never undoes a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remint.errors import IntegrityError, NotFoundError, RemintError, SettingsError
from remint.records import Record
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.settings.params import Params, load_params
from remint.stores import s3
from remint.stores.open import fetch_bundle, open_ledger, open_tracking
from remint.stores.published import Publication, Published

Tell = Callable[[str], None]  # gets a line for a person


class PublishedChampion(Record):
    """Result of a publishing."""

    model: str  # NAME/7
    address: str
    written: bool  # False: it was there already


def publish(home: Home, name: str, place: str, *, check: bool = False) -> PublishedChampion | None:
    """Write the ledger's champion of a model to ``place``/``name``. Return None if there is no champion.

    ``place``: the setting publish:; a relative folder is one of the clone. ``check``: also read back files that the pointer
    names already. Raises the errors of the stores.
    """
    folder = place if place.startswith(s3.SCHEME) else str(home.repository / place)
    there = Published(f"params.yaml: pipelines.{name}.publish", f"{folder}/{name}")
    store, book = open_tracking(home), open_ledger(home)
    with store.exclusive_lock(f"publish {name}"):  # so the last of two publishers writes the last champion
        row = book.made_champion(name)
        if row is None or row.champion_after is None:
            return None
        version = store.version(f"{name}/{row.champion_after}")
        if version.tags.manifest_sha256 is None:
            raise IntegrityError(f"{version.ref} has no tag remint.manifest_sha256: remint did not register it")
        pointer = Publication(
            model=name,
            version=version.version,
            digest=version.key,
            manifest=version.tags.manifest_sha256,
            calibration=version.tags.calibration,
            metrics=version.tags.measurements,
            decision=row.hash,
        )
        known = there.pointer() == pointer
        if not known or check:
            with scratch.folder() as temporary:
                calibration = store.fetch_calibration(version, temporary) if pointer.calibration else None
                there.publish(pointer, fetch_bundle(home, version), calibration)
    return PublishedChampion(model=version.ref, address=there.address, written=not known)


def publish_or_tell(home: Home, name: str, place: str | None, tell: Tell) -> None:
    """Publish the champion, if the pipeline has a place. ``tell`` gets a line if it was published, or why not."""
    if place is None:
        return
    try:
        done = publish_after(home, name, place)
    except RemintError as error:
        tell(str(error))
        return
    if done is not None and done.written:
        tell(f"{done.model} is published at {done.address}")


def publish_after(home: Home, name: str, place: str) -> PublishedChampion | None:
    """Publish the champion after a decision. An error says that the decision stands."""
    try:
        return publish(home, name, place)
    except RemintError as error:
        again = f"The decision stands; the next run publishes it, or `remint publish {name}`"
        raise type(error)(f"the champion of {name} was not published: {error}. {again}") from error


def publish_decided(home: Home, name: str, tell: Tell) -> None:
    """Publish after a decision outside a retraining: to the place that the params.yaml of this clone names."""
    try:
        pipeline = load_params(home.repository).pipelines.get(name)
    except SettingsError as error:
        tell(f"the champion of {name} was not published: {error}")
        return
    publish_or_tell(home, name, pipeline.publish if pipeline else None, tell)


def publish_pipelines(home: Home, params: Params, names: Sequence[str]) -> list[PublishedChampion]:
    """Publish the champions of pipelines, by default of all that have a place, and check the files that are there.

    Raises SettingsError if a pipeline has no place, NotFoundError if one has no champion.
    """
    done = []
    for name in names or [name for name, pipeline in params.pipelines.items() if pipeline.publish]:
        place = params.pipeline(name).publish
        if place is None:
            raise SettingsError(f"params.yaml: pipelines.{name}.publish: missing: set it to s3://bucket/prefix or a folder")
        published = publish(home, name, place, check=True)
        if published is None:
            raise NotFoundError(f"{name} has no champion to publish: remint models {name} lists its versions")
        done.append(published)
    return done
