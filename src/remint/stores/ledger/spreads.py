"""What seeds alone make of each pipeline (remint spread), in the ledger's database: append-only, the newest counts."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from remint.records import SeedSpread
from remint.stores.ledger.schema import open_database
from remint.stores.ledger.schema import spreads as _rows


class Spreads:
    """The spreads at one database address. Raises what schema.open_database raises."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def record(self, spread: SeedSpread, who: str) -> None:
        """Appends one measurement. Where a reply is lost it may stand there twice, which changes nothing."""

        def once() -> None:
            with self._database.write(f"spread {spread.pipeline}") as connection:
                last = sa.select(sa.func.max(_rows.c.sequence)).where(_rows.c.pipeline == spread.pipeline)
                row = {"pipeline": spread.pipeline, "sequence": (connection.execute(last).scalar() or 0) + 1, "who": who}
                at = datetime.now(UTC).isoformat(timespec="seconds")
                connection.execute(_rows.insert().values(**row, at=at, spread=spread.model_dump_json()))

        self._database.again(once)

    def newest(self, pipeline: str) -> SeedSpread | None:
        """The spread that was recorded last, None where nobody has measured it."""
        query = sa.select(_rows.c.spread).where(_rows.c.pipeline == pipeline).order_by(_rows.c.sequence.desc()).limit(1)

        def read() -> str | None:
            with self._database.read() as connection:
                return connection.execute(query).scalar()

        found = self._database.again(read)
        return SeedSpread.model_validate_json(found) if found else None
