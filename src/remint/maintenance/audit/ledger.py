"""Audit of the ledger: its hash chain, and MLflow's aliases and tags that follow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from remint.errors import LedgerError
from remint.maintenance.audit.fault import Fault, fault
from remint.promotion import trials
from remint.promotion.projection import tags_of
from remint.stores.ledger.chain import Ledger, projection
from remint.stores.ledger.drift_checks import DriftChecks
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.seen import SeenExamples
from remint.stores.ledger.serving_events import ServingEvents
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags

TAGS = ("verdict", "ledger_hash", "ledger_row")  # tags of a version that follow the ledger


def chain(book: Ledger, model: str, versions: Sequence[ModelVersion]) -> Iterator[Fault]:
    """Find rows that were changed, removed or moved, also in a chain that was truncated or rewritten."""
    for line in book.verify(model, _known(versions)):
        yield fault(
            "ledger",
            model,
            f"{line}.",
            "The recorded decisions can no longer be trusted; aliases and tags are not repaired from them.",
            f"Restore the ledger's database from a backup: remint history {model} shows its rows.",
            damages=_champion(book, model),
        )


def serving(events: ServingEvents, model: str) -> Iterator[Fault]:
    """Find serving events that were changed or removed."""
    untrusted = "Which host served which version can no longer be trusted; no decision depends on it."
    yield from _untrusted(model, events.verify(model), untrusted, "Restore the table serving_events of the ledger's database")


def tries(book: Ledger, seen: SeenExamples, model: str) -> Iterator[Fault]:
    """Find tries of the gate that do not follow from those before them, and seen examples that were changed or removed."""
    untrusted = "The error level that is left can no longer be trusted; until then no example counts as new."
    yield from _untrusted(model, trials.faults(book, seen, model), untrusted, "Restore the ledger's database")


def drift(checks: DriftChecks, model: str) -> Iterator[Fault]:
    """Find drift checks that were changed or removed."""
    untrusted = "The false-alarm rate of its drift alarm can no longer be trusted; no decision depends on it."
    yield from _untrusted(model, checks.verify(model), untrusted, "Restore the table drift_checks of the ledger's database")


def _untrusted(model: str, lines: Sequence[str], so: str, do: str) -> Iterator[Fault]:
    for line in lines:
        yield fault("ledger", model, f"{line}.", so, f"{do} from a backup.")


def _known(versions: Sequence[ModelVersion]) -> dict[str, str]:
    """Return the hashes in the versions' tags, each with a description of its row."""
    return {
        version.tags.ledger_hash: f"row {version.tags.ledger_row or '?'}, which {version.ref} names"
        for version in versions
        if version.tags.ledger_hash is not None
    }


def _champion(book: Ledger, model: str) -> str | None:
    """Return the champion of a damaged ledger, None if it cannot be read."""
    with suppress(LedgerError):  # `chain` names the damage
        number = next((row.champion_after for row in book.newest(model, 1)), None)
        return f"{model}/{number}" if number is not None else None
    return None


def aliases(store: Tracking, model: str, rows: Sequence[LedgerRow], versions: Sequence[ModelVersion]) -> Iterator[Fault]:
    """Find aliases that point to another version than the ledger records."""
    present, numbers = store.aliases(model), {version.version for version in versions}
    for alias, recorded in projection(rows).items():
        name, found = f"{model}@{alias}", present.get(alias)
        wanted = recorded if recorded in numbers else None  # a missing version is a separate finding; the alias is then not set
        if found != wanted:
            yield fault(
                "alias",
                name,
                f"It points to {_ref(model, found)}; the ledger records {_ref(model, wanted)}.",
                "Users of the alias load a version that was not promoted." if alias == "champion" else "It misleads its readers.",
                "remint audit --repair sets it by the ledger; so does the next command that reads the model.",
                damages=_ref(model, wanted) if alias == "champion" and wanted is not None else None,
                mend=partial(store.set_alias, model, alias, wanted),
            )


def tags(store: Tracking, rows: Sequence[LedgerRow], versions: Sequence[ModelVersion]) -> Iterator[Fault]:
    """Find tags of versions that differ from the newest row about the version."""
    wanted = tags_of(rows)
    for version in versions:
        recorded, present = wanted.get(version.version, VersionTags()).to_json(), version.tags.to_json()
        wrong = {key: recorded.get(key, "") for key in TAGS if key in present and present[key] != recorded.get(key)}
        for key, right in wrong.items():
            yield fault(
                "tags",
                f"{version.ref} {key}",
                f"The tag has the value {present[key][:20]}; the ledger records {right[:20] or 'nothing about this version'}.",
                "MLflow shows a decision that was not made.",
                "remint audit --repair sets the tag by the ledger."
                if right
                else "Compare with remint history, and delete the tag in MLflow.",
                mend=partial(store.set_tags, version, VersionTags.model_validate({key: right})) if right else None,
            )


def _ref(model: str, version: int | None) -> str:
    return f"{model}/{version}" if version is not None else "nothing"


def without_repair(found: Fault) -> Fault:
    """Return the fault without its repair: nothing is repaired from a damaged ledger."""
    why = "Restore the ledger's database first: nothing is repaired from a damaged ledger."
    return Fault(found.finding.model_copy(update={"safe": False, "repair": why}))
