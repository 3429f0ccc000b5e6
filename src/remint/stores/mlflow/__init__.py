"""MLflow's door, the only caller of mlflow: runs with their curves, models with their versions and aliases.

MLflow retries lost requests into duplicates, marks a version READY whether or not its files exist, and takes the last
writer's alias. So a version is looked for and made under one lock, by its key (records.TrainedModel.key), after its bytes
were uploaded, read back and compared; no request that makes something is sent again without a look; and an alias is only
a projection of the ledger. MLflow takes a second to import and is imported at the first call.
"""

from remint.stores.mlflow.records import DataOrigin, ModelVersion, VersionTags
from remint.stores.mlflow.registration import Tracking

__all__ = ["DataOrigin", "ModelVersion", "Tracking", "VersionTags"]
