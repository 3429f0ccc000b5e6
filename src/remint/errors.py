"""The tree of errors. A vendor's error becomes one of these at that vendor's door.

    RemintError
    |-- UserError              the input is wrong: one line, exit status 2
    |   |-- SettingsError        params.yaml, --set or an argument
    |   |-- RepositoryError      no git repository, no commit, a file that may not be committed
    |   |-- DataError            a dataset that is empty, broken or not of its schema
    |   |-- ResourceError        more devices than this machine has
    |   `-- NotFoundError        a model, version or alias that does not exist
    `-- RunError               a run failed: one line, exit status 1
        |-- StepError            a step ended with a failure of its own
        |-- StorageError         a disk or store is full or out of reach
        |-- IntegrityError       bytes are not what their digest says
        |-- VersioningError      git or DVC
        |-- TrackingError        MLflow
        |-- LedgerError          the promotion ledger
        |   |-- ChampionChanged    the compare-and-swap was lost: somebody promoted first
        |   |-- LeaseLost          another job took the pipeline over while this one slept
        |   `-- ApprovalExpired    the data changed since the approval was asked for
        |-- OrchestrationError   Prefect
        |-- Busy                 another run of the same pipeline is at work
        `-- Interrupted          Ctrl-C or SIGTERM: children stopped, work so far kept

The message of each says what is wrong, where (file and key), and what to do. A secret in it is taken out (remint.redaction):
vendors' words may hold an address with its password.
"""

from __future__ import annotations

from remint.redaction import redacted


class RemintError(Exception):
    """Anything that remint says on purpose. ``exit_status`` is that of the command line."""

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class UserError(RemintError):
    exit_status = 2


class SettingsError(UserError):
    pass


class RepositoryError(UserError):
    pass


class DataError(UserError):
    pass


class ResourceError(UserError):
    pass


class NotFoundError(UserError):
    pass


class RunError(RemintError):
    pass


class StepError(RunError):
    pass


class StorageError(RunError):
    pass


class IntegrityError(RunError):
    pass


class VersioningError(RunError):
    pass


class TrackingError(RunError):
    pass


class LedgerError(RunError):
    pass


class ChampionChanged(LedgerError):
    pass


class LeaseLost(LedgerError):
    pass


class ApprovalExpired(LedgerError):
    pass


class OrchestrationError(RunError):
    pass


class Busy(RunError):
    pass


class Interrupted(RunError):
    pass


def _tree(root: type[RemintError]) -> dict[str, type[RemintError]]:
    return {root.__name__: root} | {k: v for sub in root.__subclasses__() for k, v in _tree(sub).items()}


def by_name(name: str, message: str) -> RemintError:
    """The error that a step wrote down as (class name, message), made again in the flow's process."""
    return _tree(RemintError).get(name, StepError)(message)
