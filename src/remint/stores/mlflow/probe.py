"""Probe of MLflow's artifact store: it takes, returns and deletes a file, with the rights of this machine's user."""

from __future__ import annotations

import secrets

from remint.errors import TrackingError
from remint.runtime import scratch
from remint.stores.mlflow.door import door, first_line
from remint.stores.mlflow.inventory import artifact_repository
from remint.stores.mlflow.registration import Tracking


def probe(store: Tracking, pipeline: str) -> str:
    """Write a file beside the runs of a pipeline, read it back and delete it. Return why it could not be deleted, or "".

    An experiment that does not exist is made, as the first run makes it. Raises TrackingError if the file could not be written,
    or if other bytes came back.
    """
    place, content = store.artifact_place(pipeline), secrets.token_bytes(64)
    with scratch.folder() as folder, door(f"try the artifact store at {place}"):
        name = f"remint-probe-{secrets.token_hex(8)}"
        (folder / name).write_bytes(content)
        files = artifact_repository(store, place)
        files.log_artifact(str(folder / name))
        (folder / "back").mkdir()
        files.download_artifacts(name, str(folder / "back"))
        if (folder / "back" / name).read_bytes() != content:
            raise TrackingError(f"MLflow's artifact store at {place} returned other bytes than were written")
        try:
            files.delete_artifacts(name)
        except Exception as error:  # noqa: BLE001  each store has its own
            return f"{place}/{name}: {first_line(error)}"
    return ""
