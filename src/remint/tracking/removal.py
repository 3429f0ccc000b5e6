"""What is taken out of MLflow, and what is never: versions that carry a tag of their own that keeps them."""

from __future__ import annotations

from remint.records import ModelVersion
from remint.tracking.door import PREFIX, door, pages
from remint.tracking.registration import Tracking
from remint.tracking.versions import record_of

KEEP = "keep"  # tag of a version, remint.keep in MLflow; its value says why it is kept


def kept(store: Tracking) -> list[ModelVersion]:
    """The versions of all models that carry the tag ``remint.keep``, without their aliases."""
    with door("look for the versions that are kept by tag"):
        found = pages(lambda **page: store._client.search_model_versions(f"tags.`{PREFIX}{KEEP}` LIKE '%'", **page))
        return [record_of(version) for version in found]
