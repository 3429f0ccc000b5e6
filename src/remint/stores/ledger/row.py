"""Row of the promotion ledger, and the rule for what people write into it."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator

from remint.records import Record


def _moment(text: str) -> str:
    """Return a time as it is. Raises ValueError if it is none, or if it has no zone: no age could be told."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f"{text} has no zone")
        moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text} is out of range") from error
    return text


SHOWN = "LNPS"  # general categories of Unicode that draw something: letters, numbers, punctuation, symbols
BLANK = "\u115f\u1160\u2800\u3164\uffa0\U0001d159"  # fillers, the blank braille pattern, the null notehead: they draw nothing


def is_visible(text: str) -> bool:
    """Return whether a person can see anything of a name or a reason."""
    return any(unicodedata.category(each)[0] in SHOWN and each not in BLANK for each in text)


Moment = Annotated[str, AfterValidator(_moment)]  # ISO 8601, UTC


class LedgerRow(Record):
    """One row of the promotion ledger. ``hash`` is over all other fields."""

    model: str
    sequence: int
    action: Literal["promoted", "kept", "refused", "awaiting_approval", "awaiting_shadow", "rejected", "rolled_back"]
    champion_before: int | None
    champion_after: int | None
    version: int  # the version that the row is about
    who: str
    why: str
    evidence: str  # digest of the basis of the decision, "" for a person's act
    at: Moment
    previous: str  # hash of the row before, "" for the first
    hash: str
    decision: str = ""  # digest of the Decision; "" for a person's act, and in rows of older versions of remint
    trial: str = ""  # Trial as canonical JSON (promotion/trials.py); "" where nothing was compared
