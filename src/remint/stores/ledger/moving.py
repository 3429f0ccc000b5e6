"""Copy of the whole ledger to another database: every table, every row as it is, in one transaction.

So each row keeps its hash, and the chains verify as before.
"""

from __future__ import annotations

from remint.stores import tables
from remint.stores.ledger.schema import DATA, open_database


def has_copy(old_url: str, new_url: str) -> bool:
    """Return whether the new database has exactly the rows of the old one; False if it is empty.

    Raises UserError if it has other rows, and the errors of schema.open_database.
    """
    old, new = open_database(old_url, make=False), open_database(new_url)

    def look() -> bool:
        with old.read() as source, new.read() as target:
            return tables.has_copy(source, target, DATA, f"the ledger at {new.address}")

    return new.run(look)


def copy(old_url: str, new_url: str) -> int:
    """Copy all rows to an empty database, all or none. Return their number; 0 if they are there. Raises as ``has_copy``."""
    old, new = open_database(old_url, make=False), open_database(new_url)

    def transaction() -> int:
        with old.read() as source, new.write("schema") as target:
            if tables.has_copy(source, target, DATA, f"the ledger at {new.address}"):
                return 0
            return tables.copy(source, target, DATA)

    return new.run(transaction)
