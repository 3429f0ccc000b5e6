"""What people ask of the registry and the ledger: what is there, why, what happened, and draw from it."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any, Literal

from remint import stores, workspace
from remint.errors import NotFoundError, SettingsError, VersioningError
from remint.home import Home
from remint.recipe import unknown
from remint.records import LedgerRow, ModelVersion

Section = tuple[str, list[str]]


def models(home: Home, name: str | None, newest: int | None = None) -> list[dict[str, Any]]:
    """One entry a version, newest first: all, or of each model the ``newest`` ones and those that have an alias.

    Raises NotFoundError for a name that nothing is registered under.
    """
    store = stores.tracking(home)
    names = store.names()
    if name is not None:
        if name not in names:
            raise NotFoundError(
                unknown(f"model '{name}'", name, names)
                if names
                else f"unknown model '{name}': nothing is registered yet; remint run {name}"
            )
        names = [name]
    for each in names:
        stores.project(home, each)
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


def history(home: Home, name: str) -> dict[str, Any]:
    """The ledger's rows of one model, oldest first, and what is wrong with the chain (nothing, as it should be)."""
    book = stores.ledger(home)
    rows = book.rows(name)
    if not rows:
        known = sorted({row.model for row in book.rows()})
        raise NotFoundError(
            unknown(f"model '{name}'", name, known) if known else f"the ledger is empty: remint run {name} writes its first row"
        )
    return {"model": name, "rows": [row.to_json() for row in rows], "findings": book.verify(name)}


def decide(home: Home, ref: str, action: Literal["promoted", "rejected"], reason: str) -> dict[str, Any]:
    """A person's word on one version: a ledger row by compare-and-swap, which the aliases then follow.

    The bytes are fetched and verified before a promotion. Raises ChampionChanged where somebody else promoted meanwhile.
    """
    store, book = stores.tracking(home), stores.ledger(home)
    version = store.version(ref)
    champion = book.champion(version.name)
    if version.version == champion:
        raise SettingsError(
            f"{version.ref} is the champion already" + (": promote another in its stead" if action == "rejected" else "")
        )
    if action == "promoted":
        fetched(home, version)
    row = book.append(
        version.name,
        action,
        version.version,
        champion_after=version.version if action == "promoted" else champion,
        who=getpass.getuser(),
        why=reason,
        evidence="",
        expected_champion=champion,
    )
    store.set_tags(version, {"verdict": action, "ledger_hash": row.hash})
    stores.project(home, version.name)
    return row.to_json()


def why(home: Home, ref: str) -> dict[str, Any]:
    """The lineage of a version beside that of the champion before it, and every decision about it."""
    store = stores.tracking(home)
    version = store.version(ref)
    decisions = [row for row in stores.ledger(home).rows(version.name) if row.version == version.version]
    before = _champion_before(decisions, version.version)
    former = store.version(f"{version.name}/{before}") if before is not None else None
    page = home.report(version.name, version.version) / "report.html"
    return {
        **_entry(version),
        "report": str(page) if page.exists() else f"report.html of MLflow's run {version.run_id}",
        "lineage": version.tags,
        "former": {**_entry(former), "lineage": former.tags} if former else None,
        "code": _code_change(home, former, version),
        "decisions": [row.to_json() for row in decisions],
    }


def _champion_before(decisions: list[LedgerRow], version: int) -> int | None:
    """The champion that stood when the version was judged for the first time."""
    earlier = [row.champion_before for row in decisions if row.champion_before not in (None, version)]
    return earlier[0] if earlier else None


def _code_change(home: Home, former: ModelVersion | None, version: ModelVersion) -> str:
    """`git diff --stat` between the two commits; "" where they are one, or where this clone lacks one."""
    if former is None or former.commit == version.commit:
        return ""
    try:
        return workspace.git(home.repository, "diff", "--stat", former.commit, version.commit).rstrip()
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
                f"beside {beside}",
                f"report {answer['report']}",
            ],
        ),
        (
            "Data",
            _changes(
                {"version": answer["dataset_version"], **json.loads(lineage["data"])},
                {"version": former["dataset_version"], **json.loads(before["data"])} if former and before else None,
            ),
        ),
        ("Settings", _changes(_flat(json.loads(lineage["recipe"])), _flat(json.loads(before["recipe"])) if before else None)),
        *([("Set by hand", [f"{key}={value}" for key, value in overrides.items()])] if overrides else []),
        ("Code", [f"commit {answer['commit']}{state}", *(answer["code"].splitlines() or (["unchanged"] if former else []))]),
        ("Metrics", _metrics(answer["metrics"], former["metrics"] if former else {})),
        ("Decisions", [line for row in answer["decisions"] for line in _decision(row)]),
        ("Made on", [f"{key}: {value}" for key, value in json.loads(lineage["fingerprint"]).items()]),
    ]


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


def _metrics(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    def text(value: dict[str, Any] | None) -> str:
        return (
            f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}] {value['unit']}".rstrip()
            if value
            else "not measured"
        )

    return [
        f"{name}: {text(now.get(name))}" + (f"   champion then: {text(before.get(name))}" if before else "")
        for name in sorted({*now, *before})
    ]


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
    version = stores.tracking(home).version(ref)
    folder = fetched(home, version)

    import numpy as np

    from remint.evaluation import plots
    from remint.serving.model import load, write_csv

    model = load(folder)
    if model.spec.is_table != (output.suffix == ".csv"):
        kind, suffix = ("a table", ".csv") if model.spec.is_table else ("images", ".png or .npy")
        raise SettingsError(f"-o {output}: {version.ref} draws {kind}: give a name that ends in {suffix}")
    x_NX = model.sample(count, seed, None if of_class is None else model.class_named(of_class))
    if output.suffix == ".csv":
        write_csv(output, model.table(x_NX))
    elif output.suffix == ".npy":
        np.save(output, x_NX, allow_pickle=False)
    else:
        named = "" if of_class is None else f", class {of_class}"
        plots.sample_grid(output, x_NX, model.spec.levels, title=f"{version.ref}{named}, seed {seed}")
    return {
        "model": version.ref,
        "count": count,
        "seed": seed,
        "class": of_class,
        "path": str(output),
        "weights_sha256": version.weights_sha256,
    }


def fetched(home: Home, version: ModelVersion) -> Path:
    """The version's bundle on this machine, fetched once and verified each time."""
    return stores.tracking(home).fetch(version, home.path / "models" / version.key)
