"""Tree of errors. The package that calls a vendor converts the vendor's errors into these.

    RemintError
    |-- UserError              the input is wrong: one line, exit status 2
    |   |-- SettingsError        params.yaml, --set or an argument
    |   |-- RepositoryError      no git repository, no commit, a file that may not be committed
    |   |-- DataError            a dataset that is empty, broken or not of its schema
    |   |-- ResourceError        more devices than this machine has
    |   `-- NotFoundError        a model, version or alias that does not exist
    `-- RunError               a run failed: one line, exit status 1
        |-- StepError            a step failed
        |-- StorageError         a disk or store is full or cannot be reached
        |-- IntegrityError       bytes do not match their digest
        |-- VersioningError      git or DVC
        |-- TrackingError        MLflow
        |-- LedgerError          the promotion ledger
        |   |-- ChampionChanged    the compare-and-swap failed: another promotion came first
        |   |-- DecidedMeanwhile   the ledger has a newer row than a person saw
        |   |-- LeaseLost          another job took over the pipeline while this one slept
        |   `-- ApprovalExpired    the data changed since approval was requested
        |-- OrchestrationError   Prefect
        |-- Busy                 another run of the same pipeline is active
        `-- Interrupted          Ctrl-C or SIGTERM: children were stopped, finished work is kept

Each message names the problem, its place (file and key) and the next step. Secrets in it are redacted (remint.redaction): a
vendor's text may contain an address with its password.
"""

from __future__ import annotations

from remint.redaction import redacted


class RemintError(Exception):
    """Base class of all intended errors. ``exit_status`` is that of the command line."""

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


class DecidedMeanwhile(LedgerError):
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
    """Return the error that a step recorded as (class name, message), for the flow's process."""
    return _tree(RemintError).get(name, StepError)(message)
