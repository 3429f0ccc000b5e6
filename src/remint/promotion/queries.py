"""What people ask of the registry and the ledger: what is there, why, what happened, and draw from it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, LedgerError, NotFoundError, SettingsError, VersioningError
from remint.promotion import kept_decisions
from remint.promotion.projection import current_version, sync_mlflow_to_ledger
from remint.records import Decision, LedgerRow, MetricValue, ModelVersion
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.settings.recipe import did_you_mean
from remint.stores import git
from remint.stores.ledger.chain import CHAMPION_ACTIONS
from remint.stores.open import fetch_bundle, open_ledger, open_tracking

Section = tuple[str, list[str]]


def models(home: Home, name: str | None, newest: int | None = None) -> list[dict[str, Any]]:
    """One entry a version, newest first: all, or of each model the ``newest`` ones and those that have an alias.

    Raises NotFoundError for a name that nothing is registered under.
    """
    store = open_tracking(home)
    names = store.names()
    if name is not None:
        if name not in names:
            raise NotFoundError(
                did_you_mean(f"model '{name}'", name, names)
                if names
                else f"unknown model '{name}': nothing is registered yet; remint run {name}"
            )
        names = [name]
    for each in names:
        sync_mlflow_to_ledger(home, each)
    return [_entry(version) for each in names for version in store.versions(each, newest)]


def _entry(version: ModelVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "weights_sha256": version.weights_sha256,
        "dataset_version": version.dataset,
        "commit": version.commit,
        "dirty": version.dirty,
        "created": version.created,
        "verdict": version.tags.get("verdict", ""),
        "metrics": json.loads(version.tags.get("metrics", "{}")),
    }


def history(home: Home, name: str, *, verify: bool = False) -> dict[str, Any]:
    """The ledger's rows of one model, oldest first, and what is wrong with the chain (nothing, as it should be).

    ``verify``: the hashes that MLflow keeps of rows (remint.promotion.projection) are held against it, too, so that a ledger
    that was cut short or written anew shows; and so are the decisions that are kept with the versions.
    """
    book = open_ledger(home)
    rows, known = book.raw(name), _kept_hashes(home, name) if verify else {}
    if not rows and not known:
        others = book.models()
        raise NotFoundError(
            did_you_mean(f"model '{name}'", name, others)
            if others
            else f"the ledger is empty: remint run {name} writes its first row"
        )
    findings = book.verify(name, known) + (kept_decisions.differences(home, name, rows) if verify else [])
    with suppress(LedgerError):  # a damaged row: the findings name it
        sync_mlflow_to_ledger(home, name)
    return {"model": name, "rows": rows, "findings": findings, "kept_hashes": len(known)}


def _kept_hashes(home: Home, name: str) -> dict[str, str]:
    """Each hash of a ledger row that MLflow keeps of a model, and what carries it."""
    store = open_tracking(home)
    sequence, _, head = store.standing(name)[1].get("ledger_head", "").partition(" ")
    known = {head: f"row {sequence}, the newest that the aliases of {name} followed,"} if head else {}
    for version in reversed(store.versions(name)):
        kept = version.tags.get("ledger_hash")
        if kept:
            known[kept] = f"row {version.tags.get('ledger_row', '?')}, which {version.ref} carries the hash of,"
    return known


def why(home: Home, ref: str) -> dict[str, Any]:
    """The lineage of a version beside that of the champion before it, and every decision about it."""
    version, store = current_version(home, ref), open_tracking(home)
    rows = open_ledger(home).about(version.name, version.version)
    before = _champion_before(rows, version.version)
    former = None
    if before is not None:
        with suppress(NotFoundError):  # somebody deleted it: what it was is no longer known
            former = store.version(f"{version.name}/{before}")
    page = home.report(version.name, version.version) / "report.html"
    drift, judged = _kept(home, version, "drift.json"), decision(home, version)
    return {
        **_entry(version),
        "report": str(page) if page.exists() else f"report.html of MLflow's run {version.run_id}",
        "lineage": version.tags,
        "serving_sha256": version.tags.get("manifest_sha256", ""),
        "former": {**_entry(former), "lineage": former.tags} if former else None,
        "code": _code_change(home, former, version),
        "drift": drift["summary"] if drift and before is not None else None,
        "compared": [rule.to_json() for rule in judged.rules if rule.metric] if judged else [],
        "approver": _approver(rows, version.version),
        "decisions": [row.to_json() for row in rows],
    }


def decision(home: Home, version: ModelVersion) -> Decision | None:
    """What the gate said last of a version, with every number; None where nothing is kept."""
    kept = _kept(home, version, "decision.json")
    return Decision.model_validate(kept) if kept else None


def _champion_before(rows: list[LedgerRow], version: int) -> int | None:
    """The champion that stood when the version was judged for the first time."""
    earlier = [row.champion_before for row in rows if row.version == version and row.champion_before not in (None, version)]
    return earlier[0] if earlier else None


def _approver(rows: list[LedgerRow], version: int) -> dict[str, str] | None:
    """Who made the version champion the last time, when and why; None where nobody ever did."""
    made = [row for row in rows if row.action in CHAMPION_ACTIONS and row.champion_after == version]
    return {key: getattr(made[-1], key) for key in ("who", "action", "at", "why")} if made else None


def _kept(home: Home, version: ModelVersion, name: str) -> dict[str, Any] | None:
    """What a file of a version's decision says, from this machine or from MLflow; None where there is none."""
    path = home.report(version.name, version.version) / name
    with scratch.folder() as folder, suppress(IntegrityError):
        if not path.exists():
            path = open_tracking(home).attachment(version, name, folder)
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return None


def _code_change(home: Home, former: ModelVersion | None, version: ModelVersion) -> str:
    """`git diff --stat` between the two commits; "" where they are one, or where this clone lacks one."""
    if former is None or former.commit == version.commit:
        return ""
    if not (git.is_commit(former.commit) and git.is_commit(version.commit)):
        return "(what MLflow says of their commits names none)"
    try:
        return git.run_git(home.repository, "diff", "--stat", former.commit, version.commit).rstrip()
    except VersioningError:
        return f"(this clone does not hold both {former.commit[:10]} and {version.commit[:10]})"


def why_text(answer: dict[str, Any]) -> list[Section]:
    """The answer of ``why`` in words, section by section."""
    lineage, former = answer["lineage"], answer["former"]
    before = former["lineage"] if former else None
    overrides = json.loads(lineage.get("overrides", "{}"))
    state = " (uncommitted work)" if answer["dirty"] else ""
    aliases = f", {' and '.join(answer['aliases'])}" if answer["aliases"] else ""
    beside = f"{former['name']}/{former['version']}" if former else "no champion before it"
    return [
        (
            f"{answer['name']}/{answer['version']}{aliases}",
            [
                f"registered {answer['created'][:19]} UTC",
                f"weights SHA-256 {answer['weights_sha256']}",
                f"everything that is served, SHA-256 of its manifest {answer['serving_sha256']}",
                f"beside {beside}",
                f"report {answer['report']}",
                *([f"rebuilt {lineage['rebuilt']}"] if "rebuilt" in lineage else []),
            ],
        ),
        (
            "Data",
            _changes(
                {"version": answer["dataset_version"], **json.loads(lineage.get("data", "{}"))},
                {"version": former["dataset_version"], **json.loads(before.get("data", "{}"))} if former and before else None,
            )
            + ([answer["drift"]] if answer["drift"] else []),
        ),
        ("Settings", _changes(_recipe(lineage), _recipe(before) if before else None)),
        *([("Set by hand", [f"{key}={value}" for key, value in overrides.items()])] if overrides else []),
        ("Code", [f"commit {answer['commit']}{state}", *(answer["code"].splitlines() or (["unchanged"] if former else []))]),
        ("Metrics", _metrics(answer["metrics"], former["metrics"] if former else {}, answer["compared"])),
        ("Approved", _approval(answer)),
        ("Decisions", [line for row in answer["decisions"] for line in _decision(row)]),
        ("Made on", [f"{key}: {value}" for key, value in json.loads(lineage.get("fingerprint", "{}")).items()]),
    ]


def _recipe(lineage: dict[str, str]) -> dict[str, Any]:
    return _flat(json.loads(lineage.get("recipe", "{}")))


def _approval(answer: dict[str, Any]) -> list[str]:
    """Who made it champion, or that nobody did."""
    approver = answer["approver"]
    if approver is None:
        verdict = answer["decisions"][-1]["action"].replace("_", " ") if answer["decisions"] else "not judged yet"
        return [f"by nobody: {verdict}"]
    how = "promoted" if approver["action"] == "promoted" else "rolled back to"
    return [f"by {approver['who']}, {approver['at'][:19]} UTC ({how})", *(f"  {line}" for line in approver["why"].splitlines())]


def _flat(block: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _changes(now: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Each key with its value; where it differs from before, both."""
    if before is None:
        return [f"{key}: {value}" for key, value in now.items()]
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}" for key in sorted({*now, *before}) if now.get(key) != before.get(key)
    ]
    return changed or ["unchanged"]


def _metrics(now: dict[str, Any], before: dict[str, Any], compared: list[dict[str, Any]]) -> list[str]:
    """Each metric; beside it the champion's on the same data, where the gate measured it, else as it was registered."""

    def text(value: dict[str, Any] | None) -> str:
        return MetricValue.model_validate(value).text() if value else "not measured"

    lines = []
    for name in sorted({*now, *before}):
        rival = next((rule["champion"] for rule in compared if rule["metric"] == name and rule["champion"]), None)
        beside = f"   champion, same data: {text(rival)}" if rival else f"   champion then: {text(before.get(name))}"
        lines.append(f"{name}: {text(now.get(name))}" + (beside if rival or before else ""))
    return lines


def _decision(row: dict[str, Any]) -> list[str]:
    return [f"{row['at'][:19]} UTC, {row['who']}: {row['action']}", *(f"  {line}" for line in row["why"].splitlines())]


def sample(home: Home, ref: str, count: int, seed: int, of_class: str | None, output: Path) -> dict[str, Any]:
    """Draws ``count`` samples, of one class where it is named, and writes them.

    Raises SettingsError for a file that is none of .png and .npy (images) or .csv (a table), and for an unknown class.
    """
    if output.suffix not in (".png", ".npy", ".csv"):
        raise SettingsError(
            f"-o {output}: expected a name that ends in .png (a grid), .npy (uint8, N x C x H x W) or, for a table, .csv"
        )
    if not output.absolute().parent.is_dir():
        raise SettingsError(f"-o {output}: the folder {output.absolute().parent} does not exist")
    version = current_version(home, ref)
    folder = fetch_bundle(home, version)

    import numpy as np

    from remint.evaluation import plots
    from remint.serving.model import load, write_csv

    model = load(folder)
    if model.spec.is_table != (output.suffix == ".csv"):
        kind, suffix = ("a table", ".csv") if model.spec.is_table else ("images", ".png or .npy")
        raise SettingsError(f"-o {output}: {version.ref} draws {kind}: give a name that ends in {suffix}")
    x_NX = model.sample(count, seed, None if of_class is None else model.class_named(of_class))
    try:
        if output.suffix == ".csv":
            write_csv(output, model.table(x_NX))
        elif output.suffix == ".npy":
            np.save(output, x_NX, allow_pickle=False)
        else:
            named = "" if of_class is None else f", class {of_class}"
            plots.sample_grid(output, x_NX, model.spec.levels, title=f"{version.ref}{named}, seed {seed}")
    except OSError as error:
        raise SettingsError(f"-o {output}: it cannot be written: {error.strerror or error}") from error
    return {
        "model": version.ref,
        "count": count,
        "seed": seed,
        "class": of_class,
        "path": str(output),
        "weights_sha256": version.weights_sha256,
    }
