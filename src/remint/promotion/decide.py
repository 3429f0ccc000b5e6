"""Decisions of a person on a version: promote, reject, roll back. Each is one ledger row, written by compare-and-swap.

Each decision assumes a champion. If another version is champion by now, nothing is written, and the error names it.
Before a version becomes champion, its bytes are fetched from the store and compared with its digests: a fresh process loaded
the same bytes when the version was registered. A former champion may need another torch, so before a rollback a fresh process
loads it again. MLflow follows the ledger (remint.promotion.projection).
"""

from __future__ import annotations

import getpass
import tempfile
from pathlib import Path
from typing import Literal

from remint.errors import ApprovalExpired, ChampionChanged, IntegrityError, NotFoundError, SettingsError
from remint.promotion import expiry
from remint.promotion.projection import current_version, sync_mlflow_to_ledger
from remint.runtime.home import Home
from remint.serving import fresh
from remint.stores.ledger.chain import CHAMPION_ACTIONS, Ledger, describe, veto
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.ledger.row import LedgerRow, is_visible
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_ledger, open_tracking

Against = int | Literal["judged", "none"]  # judged: the champion that the version was judged against; none: there is none


def parse_against(text: str) -> Against:
    """Return the champion that a person expects, from text: "", none, 7 or NAME/7. Raises SettingsError."""
    number = text.rpartition("/")[2]
    if number.isdecimal() and len(number) < 10:
        return int(number)
    if text in ("", "none"):
        return "none" if text else "judged"
    raise SettingsError(f"--against {text[:50]}: expected the number of a version, or none")


def promote(
    home: Home, ref: str, reason: str, against: Against = "judged", who: str | None = None, newest: str | None = None
) -> LedgerRow:
    """Make a version the champion. Return the ledger row. ``who``: None is the user of this process.

    ``newest``: hash of the ledger's newest row that the person saw; None: any. Raises DecidedMeanwhile if it is another one,
    ChampionChanged if the champion is not ``against``, ApprovalExpired if the data changed since approval was requested (an
    explicit ``against`` skips this check), IntegrityError if the bytes are missing or damaged, SettingsError if the version is
    the champion already. Each error means that nothing was written.
    """
    _check_reason(reason)
    version, book = current_version(home, ref), open_ledger(home)
    book.check_seen(version.name, newest)
    rows, present = book.rows(version.name, version.version), book.champion(version.name)
    if version.version == present:
        raise SettingsError(f"{version.ref} is the champion already")
    expected = _assumed_champion(version, rows, present, against)
    if expected != present:
        raise _changed(book, version, expected)
    if against == "judged":
        changed = expiry.data_changed(home, version, rows)
        if changed:
            again = f"Run `remint run {version.name}` again, or skip this check with --against {_name(present)}"
            raise ApprovalExpired(f"the approval of {version.ref} expired: {changed}. Nothing was written. {again}")
    verify(home, version, load=version.tags.verified is None)  # an older remint did not load it at registration
    try:
        row = book.append(
            version.name,
            "promoted",
            version.version,
            champion_after=version.version,
            who=who or getpass.getuser(),
            why=reason,
            evidence="",
            expected_champion=expected,
            newest=newest,
        )
    except ChampionChanged:
        raise _changed(book, version, expected) from None
    sync_mlflow_to_ledger(home, version.name)
    return row


def reject(home: Home, ref: str, reason: str, who: str | None = None, newest: str | None = None) -> LedgerRow:
    """Reject a version against any champion. Return the ledger row. The gate alone never promotes the version again.

    Raises SettingsError if it is the champion, and DecidedMeanwhile as ``promote`` does.
    """
    _check_reason(reason)
    version, book = current_version(home, ref), open_ledger(home)
    book.check_seen(version.name, newest)
    while True:
        present = book.champion(version.name)
        if version.version == present:
            raise SettingsError(f"{version.ref} is the champion: use `remint rollback {version.name}` to replace it")
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
                newest=newest,
            )
        except ChampionChanged:
            continue  # a rejection keeps the champion, so try again with the new one
        sync_mlflow_to_ledger(home, version.name)
        return row


def rollback(home: Home, name: str, reason: str, who: str | None = None, newest: str | None = None) -> LedgerRow:
    """Make the newest former champion that still loads the champion again. Return the ledger row.

    Champions that were rolled back or rejected since are skipped, and those with missing or damaged bytes: the row lists
    them with reasons. Raises NotFoundError if there is no former champion, IntegrityError if none can be restored,
    ChampionChanged if the champion changed meanwhile, DecidedMeanwhile as ``promote`` does. Each error means that nothing was
    written.
    """
    _check_reason(reason)
    sync_mlflow_to_ledger(home, name)
    book = open_ledger(home)
    book.check_seen(name, newest)
    rows = book.rows(name)
    present = rows[-1].champion_after if rows else None
    if present is None:
        raise NotFoundError(f"{name} has no champion to roll back from: remint models {name} lists its versions")
    skipped: list[str] = []
    for former in _former_champions(rows, present):
        obstacle = _rollback_obstacle(home, name, former, rows)
        if obstacle is None:
            break
        skipped.append(obstacle)
    else:
        if not skipped:
            raise NotFoundError(f"{name}/{present} is the first champion of {name}: there is no earlier one to roll back to")
        raise IntegrityError(f"no former champion of {name} can be restored; nothing was written: {'; '.join(skipped)}")
    try:
        row = book.append(
            name,
            "rolled_back",
            present,
            champion_after=former,
            who=who or getpass.getuser(),
            why="\n".join([reason, *(f"skipped: {each}" for each in skipped)]),
            evidence="",
            expected_champion=present,
            newest=newest,
        )
    except ChampionChanged:
        now = _present_champion(book, name)
        raise ChampionChanged(f"{now}, no longer {name}/{present}. Nothing was written. Check it, and roll back again") from None
    sync_mlflow_to_ledger(home, name)
    return row


def _check_reason(reason: str) -> None:
    if not is_visible(reason):
        raise SettingsError("a decision needs a reason, which the ledger keeps")


def newest_judgement(rows: list[LedgerRow]) -> LedgerRow | None:
    """Return the gate's newest row among the rows about one version."""
    return next((row for row in reversed(rows) if row.evidence), None)


def objection(rows: list[LedgerRow]) -> str | None:
    """Return why the gate alone must not promote a version, from the rows about it; None if no person vetoed it."""
    row = veto(rows)
    return describe(row) if row else None


def vetoed_by(home: Home, version: ModelVersion) -> str | None:
    """Return ``objection`` of a version and of collected versions with its key: they are the same weights."""
    book, former = open_ledger(home), CollectedVersions(home.ledger_url).versions(version.name, version.key)
    rows = [row for number in {version.version, *former} for row in book.rows(version.name, number)]
    return objection(sorted(rows, key=lambda row: row.sequence))


def _assumed_champion(version: ModelVersion, rows: list[LedgerRow], present: int | None, against: Against) -> int | None:
    """Return the champion that the person's decision assumes."""
    if against == "none":
        return None
    if isinstance(against, int):
        return against
    row = newest_judgement(rows)
    if row is None:
        raise SettingsError(
            f"{version.ref} was never judged. Run `remint run {version.name}` again, or name the champion to replace: "
            f"--against {_name(present)}"
        )
    return row.champion_before


def _changed(book: Ledger, version: ModelVersion, expected: int | None) -> ChampionChanged:
    """Return the error that names the present champion and the next step."""
    present = book.champion(version.name)
    was = f"{version.name}/{expected}" if expected is not None else "none"
    return ChampionChanged(
        f"{_present_champion(book, version.name)}, but {version.ref} should replace {was}. Nothing was written. Run `remint run "
        f"{version.name}` to judge it again, or give --against {_name(present)}"
    )


def _present_champion(book: Ledger, name: str) -> str:
    """A clause with the present champion, its date and its approver."""
    rows = book.rows(name)
    present = rows[-1].champion_after if rows else None
    if present is None:
        return f"{name} has no champion now"
    made = next(row for row in reversed(rows) if row.action in CHAMPION_ACTIONS)
    return f"the champion is now {name}/{present} (by {made.who}, {made.at[:19]} UTC)"


def _name(champion: int | None) -> str:
    return "none" if champion is None else str(champion)


def _former_champions(rows: list[LedgerRow], present: int) -> list[int]:
    """Return the champions before the present one, newest first, each once."""
    stood = [row.champion_after for row in reversed(rows) if row.action in CHAMPION_ACTIONS]
    return list(dict.fromkeys(version for version in stood if version is not None and version != present))


def _rollback_obstacle(home: Home, name: str, version: int, rows: list[LedgerRow]) -> str | None:
    """Return why a former champion cannot be restored; None if it can."""
    why = objection([row for row in rows if row.version == version])
    if why is not None:
        return why
    try:
        verify(home, open_tracking(home).version(f"{name}/{version}"), load=True)
    except (IntegrityError, NotFoundError) as error:
        return f"{name}/{version} does not load: {error}"
    return None


def verify(home: Home, version: ModelVersion, *, load: bool) -> None:
    """Fetch the bytes from the store, not from local copies, and verify them. ``load``: also load them in a fresh process."""
    with tempfile.TemporaryDirectory(prefix=".promote-", dir=home.path) as folder:
        bundle = open_tracking(home).fetch(version, Path(folder) / "bundle")
        if load:
            fresh.check(bundle, Path(folder) / "log")
