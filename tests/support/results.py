"""Results of a retraining: values that must not change after a kill, and leftovers that must not exist."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from remint.maintenance import audit
from remint.maintenance.audit import places
from remint.maintenance.gc import collect_garbage
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores.open import open_ledger, open_tracking
from tests.support.prefect_server import request_json
from tests.support.team import Team

RUN_KEYS = {"trained", "unchanged", "seconds", "report"}  # keys of an outcome that describe this run: they may differ
TIME_TAGS = {"flow_run", "ledger_hash", "package_sha256"}  # tags that contain a time or a run, or a digest of one
CHAIN_KEYS = {"at", "previous", "hash"}  # of a ledger's row
END_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def retraining_results(team: Team, pipeline: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a retraining, without values that depend on time."""
    home = Home(team.folder, team.folder / ".remint")
    store, book = open_tracking(home), open_ledger(home)
    versions = {}
    for version in store.versions(pipeline):
        run = store._client.get_run(version.run_id)
        kept = Path(run.info.artifact_uri)
        versions[str(version.version)] = {
            "key": version.key,
            "aliases": sorted(version.aliases),
            "tags": {key: value for key, value in version.tags.to_json().items() if key not in TIME_TAGS},
            "run": run.info.status,
            "params": run.data.params,
            "curves": _curves(store._client, run),
            "files": sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()),
            "report": sorted(path.name for path in home.report(pipeline, version.version).iterdir()),
        }
    rows = [{key: value for key, value in row.to_json().items() if key not in CHAIN_KEYS} for row in book.rows(pipeline)]
    return {
        "outcome": {key: value for key, value in outcome.items() if key not in RUN_KEYS},
        "versions": versions,
        "rows": rows,
        "aliases": store.aliases(pipeline),
    }


def _curves(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Return a run's curves, sorted by step, without system metrics: points that a killed run lacked are logged late."""
    names = sorted(name for name in run.data.metrics if not name.startswith("system/"))
    history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return {name: sorted((point.step, point.value) for point in points) for name, points in history.items()}


def differences(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Return the differences between two results, one line for each place."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [line for key in keys for line in differences(found.get(key), wanted.get(key), f"{place}/{key}")]
    return [] if found == wanted else [f"{place}: {found} instead of {wanted}"]


def leftovers(team: Team) -> list[str]:
    """Return the leftovers of killed jobs. After a completed run of the same pipeline the list must be empty."""
    home = Home(team.folder, team.folder / ".remint")
    found = [f"{each.kind} {each.thing}: {each.what}" for each in audit.findings(home)]
    found += [f"{job.id} is dead" for job in jobs.dead(home)]
    patterns = ("workspaces/*", "checkpoints/*", *places.PATTERNS)
    found += [f"{path.relative_to(home.path)} is left" for pattern in patterns for path in home.path.glob(pattern)]
    found += [f"MLflow's run {run} is RUNNING" for run in _running(open_tracking(home)._client)]
    return found + [f"Prefect's run {run} is {state}" for run, state in _flow_runs(team, home).items() if state not in END_STATES]


def leftovers_after_gc(team: Team) -> list[str]:
    """Run gc and return the problems: garbage that a second run finds, and leftovers. Both must be empty."""
    home = Home(team.folder, team.folder / ".remint")
    gc = partial(collect_garbage, home, older_than=0.0, window=3, say=lambda _text: None)
    gc(remove=True)
    return [str(each) for each in gc(remove=False).garbage] + leftovers(team)


def _running(client: Any) -> list[str]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [run.info.run_id for run in client.search_runs(experiments, "attributes.status = 'RUNNING'")]


def _flow_runs(team: Team, home: Home) -> dict[str, str]:
    """Return the state of each flow run without a deployment: runs that other tests leave on the server have one."""
    if team.api is None:
        with closing(sqlite3.connect(home.prefect / "prefect.db")) as database:
            return dict(database.execute("SELECT name || ' ' || id, state_type FROM flow_run WHERE deployment_id IS NULL"))
    asked = {"sort": "START_TIME_DESC", "flow_runs": {"deployment_id": {"is_null_": True}}}
    return {f"{run['name']} {run['id']}": run["state_type"] for run in request_json(f"{team.api}/flow_runs/filter", asked)}
