"""What a check hands back: a finding, and how it is mended where that is safe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remint.errors import RemintError
from remint.records import Finding

Mend = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """A finding with what `--repair` calls for it; None where only a person may mend it."""

    finding: Finding
    mend: Mend | None = None


def fault(
    kind: str, thing: str, what: str, risk: str, repair: str, *, damages: str | None = None, mend: Mend | None = None
) -> Fault:
    """A fault in one call: it is safe to repair where ``mend`` is given."""
    found = Finding(kind=kind, thing=thing, what=what, risk=risk, repair=repair, safe=mend is not None, damages=damages)
    return Fault(found, mend)


def unreachable(thing: str, error: RemintError) -> Fault:
    """A store that could not be asked: what it holds was not audited."""
    return fault(
        "unreachable",
        thing,
        f"{error}.",
        "Nothing of it could be checked: what is wrong there is not in this list.",
        "Bring it back within reach, and run remint audit again.",
    )
