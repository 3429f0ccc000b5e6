"""Homes with a few small registered versions, made once and copied, and one call for the gate's part of a decision."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from remint.promotion.projection import sync_mlflow_to_ledger
from remint.records import canonical
from remint.runtime.home import Home
from remint.stores.ledger.chain import Action
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion, VersionTags
from remint.stores.open import open_ledger, open_tracking
from tests.support import registry_cases

MODEL = "digits-flow"
TAGS = registry_cases.TAGS.updated(
    VersionTags(
        data=canonical({"name": "digits", "source": "sklearn:digits", "raw_sha256": "0" * 64}),
        metrics=canonical({}),
    )
)


def make_home(empty: Path, to: Path, versions: int) -> Home:
    """Make a home with that many undecided versions of one model, and their bundles in ``bundles``."""
    home = copy_home(Home(to, empty), to)
    for seed in range(versions):
        register_model(home, seed)
    return home


def copy_home(template: Home, to: Path) -> Home:
    """Copy a home, and change the absolute addresses in MLflow's database to the copy."""
    shutil.copytree(template.path, to, dirs_exist_ok=True)
    columns = {
        "experiments": ("artifact_location",),
        "runs": ("artifact_uri",),
        "model_versions": ("source", "storage_location"),
    }
    with sqlite3.connect(to / "mlflow/mlflow.db") as database:
        for table, names in columns.items():
            for name in names:
                database.execute(f"UPDATE {table} SET {name} = replace({name}, ?, ?)", (str(template.path), str(to)))
    database.close()
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # keyed by run: it would still write into the original home
    return Home(to, to)


def register_model(home: Home, seed: int, **tags: str) -> ModelVersion:
    """Register the model of one seed, unless it is registered."""
    bundle = home.path / "bundles" / str(seed)
    if not bundle.exists():
        registry_cases.make_bundle(bundle, seed)
    return registry_cases.register(open_tracking(home), bundle, tags=TAGS.model_copy(update=tags))


def append_row(home: Home, action: Action, version: int, *, evidence: str = "e", who: str = "gate") -> LedgerRow:
    """Append the ledger row of a decision and nothing else, like a process that dies right after it."""
    book = open_ledger(home)
    champion = book.champion(MODEL)
    after = version if action == "promoted" else champion
    return book.append(
        MODEL, action, version, champion_after=after, who=who, why="as it is", evidence=evidence, expected_champion=champion
    )


def record_decision(home: Home, action: Action, version: int) -> LedgerRow:
    """Record a decision as the gate does: append the row and update MLflow."""
    row = append_row(home, action, version)
    sync_mlflow_to_ledger(home, MODEL)
    return row


def model_folder(home: Home, version: int) -> Path:
    """Return the folder of a version's files in the store."""
    run = open_tracking(home).version(f"{MODEL}/{version}").run_id
    (found,) = (home.path / "mlflow/artifacts").glob(f"*/{run}/artifacts/model")
    return found


def flip_bit(home: Home, version: int) -> None:
    """Flip one bit of the weights in the store."""
    weights = model_folder(home, version) / "data/bundle/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def execute_sql(home: Home, *statements: str) -> None:
    """Execute statements on the ledger's database without remint."""
    with sqlite3.connect(home.path / "ledger.db") as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def remove_verified_tag(home: Home, version: int) -> None:
    """Make a version look like one of an older remint, which did not load models at registration."""
    store: Any = open_tracking(home)
    store._client.delete_model_version_tag(MODEL, str(version), "remint.verified")


def delete_version(home: Home, version: int) -> None:
    """Delete a version from MLflow without remint."""
    store: Any = open_tracking(home)
    store._client.delete_model_version(MODEL, str(version))


def mlflow_gc(home: Home) -> None:
    """Run `mlflow gc` as on the command line."""
    import mlflow
    from click.testing import CliRunner
    from mlflow.cli import gc

    uri = home.tracking_uri
    try:
        done = CliRunner().invoke(gc, ["--backend-store-uri", uri, "--tracking-uri", uri], catch_exceptions=False)
    finally:
        mlflow.set_tracking_uri(None)  # the command leaves the address in the environment
    assert done.exit_code == 0, done.output
