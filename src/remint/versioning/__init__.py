"""The only caller of dvc: steps and their memory, and the data's way to the remote and back.

DVC remembers; remint asks. A step runs as ``dvc repro --single-item step@name`` in a workspace: same data,
same settings, same code -> restored from the run cache, nothing trained.
"""

from remint.versioning.lock import locked
from remint.versioning.settings import addresses, environment
from remint.versioning.workspace import FORMER, OnEvent, Workspace, last_words

__all__ = ["FORMER", "OnEvent", "Workspace", "addresses", "environment", "last_words", "locked"]
