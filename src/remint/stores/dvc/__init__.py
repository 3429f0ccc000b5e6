"""The only caller of dvc: steps and their memory, and the data's way to the remote and back.

DVC remembers; remint asks. A step runs as ``dvc repro --single-item step@name`` in a workspace: same data,
same settings, same code -> restored from the run cache, nothing trained.
"""

from remint.stores.dvc.lock import dependency, locked
from remint.stores.dvc.settings import addresses, workspace_environment
from remint.stores.dvc.workspace import FORMER, OnEvent, Workspace, last_error_line

__all__ = ["FORMER", "OnEvent", "Workspace", "addresses", "dependency", "last_error_line", "locked", "workspace_environment"]
