"""Seed spread of each pipeline (remint spread), in the ledger's database: append-only; the newest one is used."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from remint.records import Record
from remint.stores.ledger.schema import open_database
from remint.stores.ledger.schema import spreads as _rows


class SeedSpread(Record):
    """Seed-to-seed variation of a pipeline: metrics of one recipe, trained with several seeds on one dataset version."""

    pipeline: str
    recipe: str  # digest of the recipe without its seed
    dataset: str  # digest of the DatasetVersion
    seeds: tuple[int, ...]
    values: dict[str, tuple[float, ...]]  # by metric, one per seed


class Spreads:
    """Spreads at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def record(self, spread: SeedSpread, who: str) -> None:
        """Append one measurement. A lost reply may append it twice, which is harmless."""

        def transaction() -> None:
            with self._database.write(f"spread {spread.pipeline}") as connection:
                last = sa.select(sa.func.max(_rows.c.sequence)).where(_rows.c.pipeline == spread.pipeline)
                row = {"pipeline": spread.pipeline, "sequence": (connection.execute(last).scalar() or 0) + 1, "who": who}
                at = datetime.now(UTC).isoformat(timespec="seconds")
                connection.execute(_rows.insert().values(**row, at=at, spread=spread.model_dump_json()))

        self._database.run(transaction)

    def newest(self, pipeline: str) -> SeedSpread | None:
        """Return the spread that was recorded last, None if there is none."""
        query = sa.select(_rows.c.spread).where(_rows.c.pipeline == pipeline).order_by(_rows.c.sequence.desc()).limit(1)

        def read() -> str | None:
            with self._database.read() as connection:
                return connection.execute(query).scalar()

        found = self._database.run(read)
        return SeedSpread.model_validate_json(found) if found else None
