"""The ledger against itself and against MLflow: its chain, and the aliases and tags that follow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from remint.errors import LedgerError
from remint.maintenance.audit.fault import Fault, fault
from remint.promotion.projection import tags_of
from remint.records import LedgerRow
from remint.stores.ledger.chain import Ledger, projection
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags

TAGS = ("verdict", "ledger_hash", "ledger_row")  # of a version, that follow the ledger


def chain(book: Ledger, model: str, versions: Sequence[ModelVersion]) -> Iterator[Fault]:
    """Rows that were changed, removed or moved, also where the chain was cut short or written anew."""
    for line in book.verify(model, _known(versions)):
        yield fault(
            "ledger",
            model,
            f"{line}.",
            "Who promoted what, and why, can no longer be believed; the aliases are not made to follow it here.",
            f"Restore the ledger's database from a copy: remint history {model} shows what its rows say.",
            damages=_champion(book, model),
        )


def _known(versions: Sequence[ModelVersion]) -> dict[str, str]:
    """The hashes that the versions carry, each with what carries it."""
    return {
        version.tags.ledger_hash: f"row {version.tags.ledger_row or '?'}, which {version.ref} names"
        for version in versions
        if version.tags.ledger_hash is not None
    }


def _champion(book: Ledger, model: str) -> str | None:
    """The champion that a damaged ledger names, as far as it can be read."""
    with suppress(LedgerError):
        number = next((row.champion_after for row in book.newest(model, 1)), None)
        return f"{model}/{number}" if number is not None else None
    return None


def aliases(store: Tracking, model: str, rows: Sequence[LedgerRow], versions: Sequence[ModelVersion]) -> Iterator[Fault]:
    """Aliases that stand for another version than the ledger says."""
    present, numbers = store.aliases(model), {version.version for version in versions}
    for alias, said in projection(rows).items():
        name, stands = f"{model}@{alias}", present.get(alias)
        wanted = said if said in numbers else None  # a version that is gone is a finding of its own: then it stands for nothing
        if stands != wanted:
            yield fault(
                "alias",
                name,
                f"It stands for {_ref(model, stands)}; the ledger says {_ref(model, wanted)}.",
                "Who loads it is served a version that nobody decided on." if alias == "champion" else "It misleads who looks.",
                "remint audit --repair makes it follow the ledger, as the next command that reads the model does.",
                damages=_ref(model, wanted) if alias == "champion" and wanted is not None else None,
                mend=partial(store.set_alias, model, alias, wanted),
            )


def tags(store: Tracking, rows: Sequence[LedgerRow], versions: Sequence[ModelVersion]) -> Iterator[Fault]:
    """Tags of versions that do not say what the newest row about them says."""
    wanted = tags_of(rows)
    for version in versions:
        said, carried = wanted.get(version.version, VersionTags()).to_json(), version.tags.to_json()
        wrong = {key: said.get(key, "") for key in TAGS if key in carried and carried[key] != said.get(key)}
        for key, right in wrong.items():
            yield fault(
                "tags",
                f"{version.ref} {key}",
                f"The tag says {carried[key][:20]}; the ledger says {right[:20] or 'nothing of this version'}.",
                "Who reads MLflow alone is told of a decision that nobody took.",
                "remint audit --repair makes the tag follow the ledger."
                if right
                else "Look into remint history, and delete the tag in MLflow.",
                mend=partial(store.set_tags, version, VersionTags.model_validate({key: right})) if right else None,
            )


def _ref(model: str, version: int | None) -> str:
    return f"{model}/{version}" if version is not None else "nothing"


def held_back(found: Fault) -> Fault:
    """A fault that is not mended while the ledger itself is damaged: what would be followed is not what was decided."""
    why = "Restore the ledger's database first: nothing is made to follow a damaged one."
    return Fault(found.finding.model_copy(update={"safe": False, "repair": why}))
