"""Interface to MLflow, the only caller of mlflow: runs with their curves, models with their versions and aliases.

MLflow's retries of lost requests make duplicates; it marks a version READY even if its files do not exist; and the last
writer sets an alias. So remint looks for a version and makes it under one lock, by its key (records.TrainedModel.key), after
its bytes were uploaded, read back and compared. A request that creates something is repeated only after a look, and an alias
only follows the ledger. MLflow takes a second to import, so it is imported at the first call.
"""

from remint.stores.mlflow.records import DataOrigin, ModelVersion, VersionTags
from remint.stores.mlflow.registration import Tracking
from remint.stores.mlflow.versions import CALIBRATION

__all__ = ["CALIBRATION", "DataOrigin", "ModelVersion", "Tracking", "VersionTags"]
