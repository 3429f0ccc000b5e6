"""Result of an audit check: a finding, and its repair if that is safe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remint.errors import RemintError
from remint.records import Record

Mend = Callable[[], object]


class Finding(Record):
    """One disagreement between the stores, found by ``remint audit``."""

    kind: str  # a word: alias, bytes, ledger, remote, run, flow_run, workspace, orphan, ..
    thing: str  # the damaged thing: a version, an alias, a row, a run, a folder
    what: str  # a sentence: the problem
    risk: str  # a sentence: the possible consequence
    repair: str  # a sentence: the repair, with its command
    safe: bool  # `remint audit --repair` does the repair
    damages: str | None = None  # NAME/7 of the root version that it damages; None: none
    repaired: bool = False

    @property
    def note(self) -> bool:
        """Whether it is no fault: it only takes space, and remint gc removes it."""
        return self.kind == "orphan"


@dataclass(frozen=True)
class Fault:
    """Finding with the function that `--repair` calls; None if only a person may repair it."""

    finding: Finding
    mend: Mend | None = None


def fault(
    kind: str, thing: str, what: str, risk: str, repair: str, *, damages: str | None = None, mend: Mend | None = None
) -> Fault:
    """Make a fault. It counts as safe to repair if ``mend`` is given."""
    found = Finding(kind=kind, thing=thing, what=what, risk=risk, repair=repair, safe=mend is not None, damages=damages)
    return Fault(found, mend)


def unreachable(thing: str, error: RemintError) -> Fault:
    """Make the fault of a store that did not answer and was not audited."""
    return fault(
        "unreachable",
        thing,
        f"{error}.",
        "It was not checked: its faults are not in this list.",
        "Make it reachable again, and run remint audit again.",
    )
