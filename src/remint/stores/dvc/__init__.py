"""Interface to DVC, the only caller of dvc: steps with their run cache, and data to and from the remote.

A step runs as ``dvc repro --single-item step@name`` in a workspace. For the same data, settings and code, dvc restores the
outputs from its run cache and trains nothing.
"""

from remint.stores.dvc.lock import dependency, locked, tracked
from remint.stores.dvc.settings import addresses, workspace_environment
from remint.stores.dvc.workspace import OLDER_OUTPUT, OnEvent, Workspace, last_error_line

__all__ = [
    "OLDER_OUTPUT",
    "OnEvent",
    "Workspace",
    "addresses",
    "dependency",
    "last_error_line",
    "locked",
    "tracked",
    "workspace_environment",
]
