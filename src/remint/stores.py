"""The stores of one home, opened, and MLflow's aliases made to say what the ledger says."""

from __future__ import annotations

from remint.home import Home
from remint.ledger import Ledger
from remint.spreads import Spreads
from remint.tracking import Tracking


def tracking(home: Home) -> Tracking:
    return Tracking(home.tracking_uri, home.artifacts, home.lock("registry"))


def ledger(home: Home) -> Ledger:
    return Ledger(home.ledger_url)


def spreads(home: Home) -> Spreads:
    return Spreads(home.ledger_url)


def project(home: Home, model: str) -> int | None:
    """Makes the aliases of a model those of the ledger; the champion's version.

    ``champion`` is the ledger's champion. ``challenger`` is the version that the last row is about where that row
    did not make it champion. A crash between ledger and alias is mended by the next call.
    """
    rows = ledger(home).rows(model)
    champion = rows[-1].champion_after if rows else None
    challenger = rows[-1].version if rows and rows[-1].version != champion else None
    store = tracking(home)
    aliases = store.aliases(model)
    for alias, version in (("champion", champion), ("challenger", challenger)):
        if aliases.get(alias) != version:
            store.set_alias(model, alias, version)
    return champion
