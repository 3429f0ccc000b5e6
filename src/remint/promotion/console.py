"""What the console shows of the registry and the ledger, and the decisions of a person on it (serving/console/source.py).

Reading writes nothing. What a version measured never changes, so it is read from MLflow once: a page reads the ledger only,
and MLflow for versions that are new since the last page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from remint.errors import IntegrityError, LedgerError, NotFoundError, RemintError
from remint.promotion import decide, monitoring, publishing, queries, why
from remint.promotion.page.write import NAME as REPORT
from remint.records import MetricValue
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.serving.console.source import Concern, Entry, History, Night, Outlook, Rule, Story, Verification
from remint.settings.params import Params
from remint.stores.ledger.chain import Ledger, awaiting
from remint.stores.ledger.drift_checks import DriftCheck, DriftChecks
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.serving_events import ServingEvent, ServingEvents
from remint.stores.open import open_drift_checks, open_ledger, open_serving_events, open_tracking

NIGHTS = 60  # versions in a chart
SETTLED = timedelta(minutes=10)  # by then what is kept with a decision is in MLflow
ROWS = 2 * NIGHTS  # rows that are read for them: a version may be judged again, and a person may decide

Values = Mapping[str, MetricValue]
Books = tuple[Ledger, ServingEvents, DriftChecks]
Heads = tuple[str, str, str]  # hashes of the newest row, event and check


class Registry:
    """Source of the console. ``params``: the settings of now; ``outlooks``: what the scheduler knows, by pipeline."""

    def __init__(self, home: Home, params: Callable[[], Params], outlooks: Callable[[], Mapping[str, Outlook]]) -> None:
        self.home, self.params, self.outlooks = home, params, outlooks
        self._lock = threading.Lock()
        self._measured: dict[str, dict[int, Values]] = {}
        self._kept: dict[str, tuple[Heads, Entry]] = {}  # by name

    def names(self) -> list[str]:
        return self._names(self._books())

    def overview(self) -> list[Entry]:
        outlooks, books = self.outlooks(), self._books()
        return [self._entry(name, outlooks.get(name, Outlook()), books) for name in self._names(books)]

    def refresh(self) -> None:
        """Read what MLflow has of versions that the ledger names since the last call, so that no page waits for it."""
        books = self._books()
        for name in self._names(books):
            self._entry(name, Outlook(), books)

    def history(self, name: str, count: int | None) -> History:
        books = self._books()
        if name not in self._names(books):
            raise NotFoundError(f"unknown model '{name[:100]}': neither params.yaml nor the ledger has it")
        entry = self._entry(name, self.outlooks().get(name, Outlook()), books)
        if books is None:
            return History(entry, [], [], [], [])
        rows: list[LedgerRow] = []
        events: list[ServingEvent] = []
        checks: list[DriftCheck] = []
        concerns = list(entry.concerns)
        try:
            rows = books[0].rows(name) if count is None else books[0].newest(name, count)
        except LedgerError as error:
            concerns.append(Concern("not readable", str(error)))
        try:
            events = books[1].of(name)[::-1][:count]
        except LedgerError as error:
            concerns.append(Concern("not readable", str(error)))
        try:
            checks = books[2].of(name)[::-1][:count]
        except LedgerError as error:
            concerns.append(Concern("not readable", str(error)))
        entry = replace(entry, concerns=list(dict.fromkeys(concerns)))
        return History(entry, open_tracking(self.home).versions(name, count), rows[::-1], events, checks)

    def verify(self, name: str) -> Verification:
        if self._books() is None:
            return Verification(0, 0, [])  # to open a ledger for a decision would make one
        found = queries.history(self.home, name, verify=True)
        findings = [*found.findings, *open_serving_events(self.home, make=False).verify(name)]
        findings += open_drift_checks(self.home, make=False).verify(name)
        return Verification(len(found.rows), found.kept_hashes, findings)

    def story(self, name: str, version: int, against: int | None) -> Story:
        last = open_ledger(self.home, make=False).last(name)  # first: a row that comes now makes a decision on the page fail
        found = open_tracking(self.home).version(f"{name}/{version}")
        if against is not None:
            open_tracking(self.home).version(f"{name}/{against}")
        answer, judged = why.explain(self.home, found, against), queries.kept_decision(self.home, found)
        return Story(
            version=found,
            champion=last.champion_after if last else None,
            newest=last.hash if last else "",
            against=answer.former.version if answer.former else None,
            sections=[section for section in why.sections(answer) if section[0] not in ("Decisions", "Approved")],
            rules=[Rule(rule.rule.replace("_", " "), rule.passed, rule.reason) for rule in judged.rules] if judged else [],
            rows=answer.decisions[::-1],
        )

    def report(self, name: str, version: int) -> bytes | None:
        page = self.home.report(name, version) / REPORT
        with suppress(FileNotFoundError):
            return page.read_bytes()
        with scratch.folder() as folder, suppress(IntegrityError):
            found = open_tracking(self.home).version(f"{name}/{version}")
            return open_tracking(self.home).attachment(found, REPORT, Path(folder)).read_bytes()
        return None

    def promote(self, name: str, version: int, reason: str, against: str, who: str, newest: str) -> LedgerRow:
        row = decide.promote(self.home, f"{name}/{version}", reason, decide.parse_against(against), who, newest)
        return self._published(row)

    def reject(self, name: str, version: int, reason: str, who: str, newest: str) -> LedgerRow:
        return decide.reject(self.home, f"{name}/{version}", reason, who, newest)

    def rollback(self, name: str, reason: str, who: str, newest: str) -> LedgerRow:
        return self._published(decide.rollback(self.home, name, reason, who, newest))

    def _published(self, row: LedgerRow) -> LedgerRow:
        """Publish the new champion, and return its row. Raises an error that the page shows, if that fails."""
        pipeline = self.params().pipelines.get(row.model)
        if pipeline is not None and pipeline.publish is not None:
            publishing.publish_after(self.home, row.model, pipeline.publish)
        return row

    def _books(self) -> Books | None:
        """Open the ledger and the serving events, which every look checks; None if there is no ledger yet."""
        try:
            home = self.home
            return open_ledger(home, make=False), open_serving_events(home, make=False), open_drift_checks(home, make=False)
        except NotFoundError:
            return None

    def _names(self, books: Books | None) -> list[str]:
        found = list(self.params().pipelines)
        return [*found, *(name for name in (books[0].models() if books else ()) if name not in found)]

    def _entry(self, name: str, outlook: Outlook, books: Books | None) -> Entry:
        """Return one pipeline. What cannot be read about it is one of its concerns, and the others are still shown."""
        failed = [Concern("run failed", outlook.failure)] if outlook.failure else []
        if books is None:
            return Entry(name, None, "", None, "", (), outlook, failed)
        try:
            last, event = books[0].last(name), books[1].newest(name)
            heads = (last.hash if last else "", event.hash if event else "", _head(books[2], name))
            found = self._kept.get(name)
            if found is None or found[0] != heads:
                found = heads, self._read(name, books, last)
                if last is None or datetime.now(UTC) - datetime.fromisoformat(last.at) > SETTLED:
                    self._kept[name] = found
            return replace(found[1], metric=self._metric(name), outlook=outlook, concerns=[*failed, *found[1].concerns])
        except RemintError as error:
            return Entry(name, None, "", None, "", (), outlook, [*failed, Concern("not readable", str(error))])

    def _read(self, name: str, books: Books, last: LedgerRow | None) -> Entry:
        book, events = books[0], books[1].newest_of_hosts(name)
        rows, made = book.newest(name, ROWS), book.made_champion(name)
        return Entry(
            name=name,
            champion=last.champion_after if last else None,
            since=made.at if made and last and last.champion_after is not None else "",
            last=last,
            metric="",
            nights=self._nights(name, rows),
            outlook=Outlook(),
            concerns=[*self._concerns(name, rows, events), *_drifted(books[2], name, rows)],
        )

    def _metric(self, name: str) -> str:
        pipeline = self.params().pipelines.get(name)
        if pipeline is None:
            return ""
        improve = pipeline.promotion.improve
        return improve.metrics[0] if improve else next(iter(sorted(pipeline.promotion.metrics())), "")

    def _nights(self, name: str, rows: Sequence[LedgerRow]) -> list[Night]:
        first = {row.version: row.at for row in reversed(rows)}
        action = {row.version: row.action for row in rows}
        shown = sorted(first, key=lambda version: first[version])[-NIGHTS:]
        measured = self._values(name, shown)
        return [Night(version, first[version], action[version], measured.get(version, {})) for version in shown]

    def _values(self, name: str, versions: Sequence[int]) -> Mapping[int, Values]:
        with self._lock:
            known = self._measured.setdefault(name, {})
            lacking = [version for version in versions if version not in known]
            if lacking:
                store = open_tracking(self.home)
                known |= {version.version: version.tags.measurements for version in store.versions(name, len(lacking))}
                for version in set(lacking) - set(known):
                    known[version] = {}  # for good, if remint gc removed it
                    with suppress(NotFoundError):
                        known[version] = store.version(f"{name}/{version}").tags.measurements
            return dict(known)

    def _concerns(self, name: str, rows: Sequence[LedgerRow], events: Sequence[ServingEvent]) -> list[Concern]:
        if not rows:
            return []
        champion, in_shadow = rows[-1].champion_after, {row.version for row in awaiting(rows, "awaiting_shadow")}
        found = [
            Concern("awaits approval", f"it has waited for a decision since {row.at[:10]}", row.version)
            for row in awaiting(rows, "awaiting_approval")
        ]
        for event in events:
            about = f"{name}/{event.version}"
            if event.event == "refused" and event.version == champion:
                found.append(Concern("not served", f"{event.host} does not serve {about}: {event.why}", champion))
            elif event.event == "refused" and event.version in in_shadow:
                found.append(Concern("not asked", f"{event.host} refused {about} {event.why}", event.version))
        judged = next((row for row in reversed(rows) if row.evidence), None)
        if judged is not None and judged.version != champion:
            drift = self._drift_before(judged)
            found += [Concern("data drifted", drift, judged.version)] if drift else []
        return found

    def _drift_before(self, row: LedgerRow) -> str:
        """Return the drift of the data since the champion was trained, as it was when a version was judged; "" for none."""
        drift = None
        with suppress(NotFoundError):  # the version is gone
            drift = queries.kept_drift(self.home, open_tracking(self.home).version(f"{row.model}/{row.version}"))
        return drift.summary if drift and drift.changed else ""


def _head(checks: DriftChecks, name: str) -> str:
    try:
        return checks.head(name)
    except LedgerError:  # the role of a server of an older page may not read them
        return ""


def _drifted(checks: DriftChecks, name: str, rows: Sequence[LedgerRow]) -> list[Concern]:
    """Return the concern of an open alarm. ``rows``: the newest, oldest first."""
    try:
        opened = monitoring.last_alarm(checks.of(name))
    except LedgerError as error:
        return [Concern("not readable", str(error))]
    if opened is None or monitoring.closed_by(opened, rows) is not None:
        return []
    return [Concern("drifted", f"alarm of {opened.at[:10]}: {opened.summary}")]
