"""The part of a page that grows after its decision: later decisions, the shadow's report, and events of serving.

The page has a place for it, which names the ledger's row of its decision. `remint why` and a judged shadow write it anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from remint.promotion.page import words
from remint.promotion.shadow_report import REPORT, ShadowReport
from remint.runtime.templates import environment
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.serving_events import ServingEvent

PLACE = re.compile(r"<!-- since (\d+) -->.*<!-- /since -->", re.DOTALL)


def refresh(page: Path, rows: Sequence[LedgerRow], events: Sequence[ServingEvent]) -> None:
    """Write what happened since the decision of a page into it. Do nothing if it is missing or of an older remint.

    ``rows`` and ``events``: those about the page's version, oldest first.
    """
    if not page.exists() or (place := PLACE.search(before := page.read_text())) is None:
        return
    shadow, template = page.with_name(REPORT), environment(Path(__file__).parent).get_template("since.html")
    part = template.render(
        decisions=[row for row in rows if row.sequence > int(place[1])],
        shadow=ShadowReport.read(shadow) if shadow.exists() else None,
        events=events,
        about=words.about,
    ).strip()
    shown = f"\n{part}\n" if part else ""
    after = f"{before[: place.start()]}<!-- since {place[1]} -->{shown}<!-- /since -->{before[place.end() :]}"
    if after != before:
        whole = page.with_suffix(".part")
        whole.write_text(after)
        whole.rename(page)
