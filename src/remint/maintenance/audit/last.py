"""What the last audit in a REMINT_HOME left: HOME/audit.json, for the exporter."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from pydantic import ValidationError

from remint.maintenance.audit.run import Audit
from remint.records import Record
from remint.runtime.home import Home
from remint.stores.files import Folder

NAME = "audit.json"


class LastAudit(Record):
    """Findings of one audit that were not repaired, by kind."""

    at: str  # ISO 8601, UTC
    deep: bool
    findings: dict[str, int]


def keep(home: Home, found: Audit, *, deep: bool) -> None:
    """Write down what an audit left."""
    left = Counter(finding.kind for finding in found.findings if not finding.repaired)
    last = LastAudit(at=datetime.now(UTC).isoformat(timespec="seconds"), deep=deep, findings=dict(left))
    Folder(home.path).write(NAME, f"{last.model_dump_json()}\n".encode())


def last(home: Home) -> LastAudit | None:
    """Return the last audit; None if there was none, or if its file is damaged."""
    try:
        return LastAudit.model_validate_json((home.path / NAME).read_text())
    except (FileNotFoundError, ValidationError):
        return None
