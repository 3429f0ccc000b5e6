"""A person's word on a version: promote, reject, roll back. Each is one row of the ledger, by compare-and-swap.

What a person decides is decided against the champion that the person believes stands. Where another stands by now
nothing is written, and the error says who. Before a version becomes champion its bytes are fetched from the store and held
against its digests: they are those that a fresh process loaded when it was registered. To go back to a former champion, which
may be of another torch, a fresh process loads it again. MLflow follows the ledger (remint.stores.open).
"""

from __future__ import annotations

import getpass
import tempfile
from pathlib import Path
from typing import Literal

from remint.errors import ApprovalExpired, ChampionChanged, IntegrityError, NotFoundError, SettingsError
from remint.promotion import expiry
from remint.promotion.projection import current_version, sync_mlflow_to_ledger
from remint.records import LedgerRow
from remint.runtime.home import Home
from remint.serving import fresh
from remint.stores.ledger.chain import CHAMPION_ACTIONS, Ledger, describe, veto
from remint.stores.ledger.collected import Collected
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_ledger, open_tracking

Against = int | Literal["judged", "none"]  # judged: the champion that the version was judged against; none: there is none


def promote(home: Home, ref: str, reason: str, against: Against = "judged", who: str | None = None) -> LedgerRow:
    """Makes a version the champion by a person's word; the ledger row. ``who``: None is the person who runs this.

    Raises ChampionChanged where another champion stands than ``against``, ApprovalExpired where the version awaits an
    approval that was asked for with other data (an explicit ``against`` overrules that), IntegrityError where its bytes are
    gone or damaged, SettingsError where it is the champion already. Nothing was written then.
    """
    version, book = current_version(home, ref), open_ledger(home)
    rows, present = book.rows(version.name, version.version), book.champion(version.name)
    if version.version == present:
        raise SettingsError(f"{version.ref} is the champion already")
    believed = _believed(version, rows, present, against)
    if believed != present:
        raise _changed(book, version, believed)
    if against == "judged":
        changed = expiry.data_changed(home, version, rows)
        if changed:
            again = f"run {version.name} again, or promote it on what is known of it with --against {_name(present)}"
            raise ApprovalExpired(f"the approval of {version.ref} expired: {changed}; nothing was written: {again}")
    _verify(home, version, load=version.tags.verified is None)  # one of an older remint, which loaded it nowhere
    try:
        row = book.append(
            version.name,
            "promoted",
            version.version,
            champion_after=version.version,
            who=who or getpass.getuser(),
            why=reason,
            evidence="",
            expected_champion=believed,
        )
    except ChampionChanged:
        raise _changed(book, version, believed) from None
    sync_mlflow_to_ledger(home, version.name)
    return row


def reject(home: Home, ref: str, reason: str, who: str | None = None) -> LedgerRow:
    """Turns a version down by a person's word, whoever is champion; the ledger row. The gate alone never promotes it again.

    Raises SettingsError where it is the champion.
    """
    version, book = current_version(home, ref), open_ledger(home)
    while True:
        present = book.champion(version.name)
        if version.version == present:
            raise SettingsError(f"{version.ref} is the champion already: remint rollback {version.name} goes back from it")
        try:
            row = book.append(
                version.name,
                "rejected",
                version.version,
                champion_after=present,
                who=who or getpass.getuser(),
                why=reason,
                evidence="",
                expected_champion=present,
            )
        except ChampionChanged:
            continue  # a rejection leaves the champion as it is, whoever that is by now
        sync_mlflow_to_ledger(home, version.name)
        return row


def rollback(home: Home, name: str, reason: str, who: str | None = None) -> LedgerRow:
    """Makes the last champion before the present one, which still loads, the champion again; the ledger row.

    Champions that were rolled back or rejected since are passed over, and those whose bytes are gone or damaged: the row
    says which and why. Raises NotFoundError where there is no former champion, IntegrityError where none can be gone back
    to, ChampionChanged where somebody else changed the champion meanwhile. Nothing was written then.
    """
    sync_mlflow_to_ledger(home, name)
    book = open_ledger(home)
    rows = book.rows(name)
    present = rows[-1].champion_after if rows else None
    if present is None:
        raise NotFoundError(f"{name} has no champion to roll back from: remint models {name} lists its versions")
    skipped: list[str] = []
    for former in _former_champions(rows, present):
        unfit = _unfit(home, name, former, rows)
        if unfit is None:
            break
        skipped.append(unfit)
    else:
        if not skipped:
            raise NotFoundError(f"{name}/{present} is the first champion of {name}: there is none before it to roll back to")
        raise IntegrityError(f"no former champion of {name} can be rolled back to; nothing was written: {'; '.join(skipped)}")
    try:
        row = book.append(
            name,
            "rolled_back",
            present,
            champion_after=former,
            who=who or getpass.getuser(),
            why="\n".join([reason, *(f"passed over: {each}" for each in skipped)]),
            evidence="",
            expected_champion=present,
        )
    except ChampionChanged:
        now = _standing(book, name)
        raise ChampionChanged(f"{now}, no longer {name}/{present}: nothing was written; look, and roll back again") from None
    sync_mlflow_to_ledger(home, name)
    return row


def judged(rows: list[LedgerRow]) -> LedgerRow | None:
    """Of the rows about one version: what the gate said last."""
    return next((row for row in reversed(rows) if row.evidence), None)


def objection(rows: list[LedgerRow]) -> str | None:
    """Of the rows about one version: why the gate alone must not promote it; None where no person spoke against it."""
    row = veto(rows)
    return describe(row) if row else None


def vetoed_by(home: Home, version: ModelVersion) -> str | None:
    """The same of a version and of those with its key that remint gc removed: the same weights, made again, are no others."""
    book, former = open_ledger(home), Collected(home.ledger_url).versions(version.name, version.key)
    rows = [row for number in {version.version, *former} for row in book.rows(version.name, number)]
    return objection(sorted(rows, key=lambda row: row.sequence))


def _believed(version: ModelVersion, rows: list[LedgerRow], present: int | None, against: Against) -> int | None:
    """The champion that the person decides against."""
    if against == "none":
        return None
    if isinstance(against, int):
        return against
    row = judged(rows)
    if row is None:
        raise SettingsError(
            f"{version.ref} was never judged: run {version.name} again, or name the champion that it is promoted against with "
            f"--against {_name(present)}"
        )
    return row.champion_before


def _changed(book: Ledger, version: ModelVersion, believed: int | None) -> ChampionChanged:
    """Who is champion now, and what to do."""
    present = book.champion(version.name)
    was = f"{version.name}/{believed}" if believed is not None else "none"
    return ChampionChanged(
        f"{_standing(book, version.name)}, and {version.ref} was to be promoted against {was}: nothing was written; run "
        f"{version.name} again to have it judged, or give --against {_name(present)}"
    )


def _standing(book: Ledger, name: str) -> str:
    """Who is champion now, since when and by whom."""
    rows = book.rows(name)
    present = rows[-1].champion_after if rows else None
    if present is None:
        return f"{name} has no champion now"
    made = next(row for row in reversed(rows) if row.action in CHAMPION_ACTIONS)
    return f"the champion is now {name}/{present} (by {made.who}, {made.at[:19]} UTC)"


def _name(champion: int | None) -> str:
    return "none" if champion is None else str(champion)


def _former_champions(rows: list[LedgerRow], present: int) -> list[int]:
    """The champions before the present one, the last first, each once."""
    stood = [row.champion_after for row in reversed(rows) if row.action in CHAMPION_ACTIONS]
    return list(dict.fromkeys(version for version in stood if version is not None and version != present))


def _unfit(home: Home, name: str, version: int, rows: list[LedgerRow]) -> str | None:
    """Why one does not go back to a former champion; None where one can."""
    why = objection([row for row in rows if row.version == version])
    if why is not None:
        return why
    try:
        _verify(home, open_tracking(home).version(f"{name}/{version}"), load=True)
    except (IntegrityError, NotFoundError) as error:
        return f"{name}/{version} does not load: {error}"
    return None


def _verify(home: Home, version: ModelVersion, *, load: bool) -> None:
    """Fetches the bytes from the store, not from this machine's copies, and verifies them; loads them in a fresh process."""
    with tempfile.TemporaryDirectory(prefix=".promote-", dir=home.path) as folder:
        bundle = open_tracking(home).fetch(version, Path(folder) / "bundle")
        if load:
            fresh.check(bundle, Path(folder) / "log")
