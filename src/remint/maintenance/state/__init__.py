"""State of an installation as a folder: ledger, registry and the files of its runs, to move them to other stores.

    state.json      State: written last, so a folder without it is unfinished
    ledger.db       every table of the ledger
    mlflow.db       every table of MLflow
    files.jsonl     name, size and SHA-256 of each file below files/
    files/          files of the runs, by experiment; those on S3 stay where they are

Nothing is renumbered: rows keep their hashes, versions their numbers, tags, keys and bytes, runs their ids. Only the root of the
files' addresses becomes that of the new place. Data are not in it: DVC's remote is moved as files (docs/how-to/move.md).
"""

from remint.maintenance.state.exporting import export_state
from remint.maintenance.state.importing import import_state
from remint.maintenance.state.record import Imported, State

__all__ = ["Imported", "State", "export_state", "import_state"]
