"""Lineage of a version, key by key, beside that of the champion."""

from __future__ import annotations

from typing import Any

from remint.promotion.page.story import Story
from remint.records import TrainedModel
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion

ALWAYS_DIFFERENT = ("registered", "weights, SHA-256", "dvc.lock, SHA-256", "reason given")  # so not marked as changed

SPLITS = ("train", "validation", "held_out", "calibration")

View = dict[str, Any]


def view(story: Story) -> View:
    """Return two tables, origin and settings. Each row has the challenger's value, the champion's, and whether they differ."""
    ours = _origin(story.challenger.version, story.challenger.trained)
    champion_version = story.champion_version
    theirs = _origin(champion_version, story.champion.trained if story.champion else None) if champion_version else {}
    settings = _settings(story.challenger.version)
    return {
        "origin": _rows(ours, theirs),
        "settings": _rows(settings, _settings(champion_version) if champion_version else {}),
        "made_on": {key: value for key, value in _flat(story.challenger.version.tags.made_on).items() if value},
        "ledger": _ledger(story.row, story),
        "champion_version": champion_version,
    }


def _rows(ours: dict[str, str], theirs: dict[str, str]) -> list[View]:
    return [
        {
            "key": key,
            "ours": ours.get(key, ""),
            "theirs": theirs.get(key, ""),
            "changed": key not in ALWAYS_DIFFERENT and ours.get(key) != theirs.get(key),
        }
        for key in {**ours, **theirs}
    ]


def _origin(version: ModelVersion, trained: TrainedModel | None) -> dict[str, str]:
    tags, data = version.tags, version.tags.origin
    counts = ", ".join(f"{data.counts[name]} {name.replace('_', '-')}" for name in SPLITS if name in data.counts)
    rows = {
        "registered": f"{version.created[:19].replace('T', ' ')} UTC",
        "weights, SHA-256": version.weights_sha256,
        "data version": version.dataset,
        "data": f"{data.name} from {data.source}",
        "examples": counts,
        "commit": version.commit + (" with uncommitted changes" if version.dirty else ""),
        "set by hand": ", ".join(f"{key}={value}" for key, value in tags.set_by_hand.items()) or "nothing",
        "reason given": tags.reason or "none",
        "packages, SHA-256": tags.packages_sha256 or "",
        "dvc.lock, SHA-256": tags.dvc_lock_sha256 or "",
    }
    if trained is not None:
        rows["training"] = f"{trained.ended} after {trained.steps} steps, weights of step {trained.best_step}"
        rows["processes"] = str(trained.world_size)
    return rows


def _ledger(row: LedgerRow, story: Story) -> dict[str, str]:
    """Return the ledger's row of this decision, and the digests of its evidence."""
    return {
        "row": f"{row.model}, number {row.sequence}: {row.action}, by {row.who}, {row.at[:19].replace('T', ' ')} UTC",
        "hash": row.hash,
        "hash of the row before": row.previous or "none: it is the first",
        "decision, SHA-256": story.decision.digest,
        **{f"{name}, SHA-256": value for name, value in story.decision.evidence.items()},
    }


def _settings(version: ModelVersion) -> dict[str, str]:
    return {key: value for key, value in _flat(version.tags.settings).items() if key != "dataset"}


def _flat(block: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in block.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)})
    return flat
