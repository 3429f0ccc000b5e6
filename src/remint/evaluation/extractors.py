"""Feature extractors of a pipeline's metrics, by name (remint.settings.catalogue, FEATURES).

    domain       the dataset's own extractor, outs/features/NAME (features.py)
    inception    the 2015 Inception network, from the file of evaluation.inception (inception.py)
    program      a torch.export program, from the file of evaluation.program (program.py)

A file is searched in the job's checkout, then in the user's working tree (REMINT_SOURCES), like a dataset's source. A flow
has fetched a file at an s3:// address before, to HOME/files/SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from remint.errors import DataError, IntegrityError
from remint.evaluation import features
from remint.evaluation.features import Extractor
from remint.records import DataSpec
from remint.runtime.home import Home
from remint.settings.judging import FEATURE_FILES, EvaluationSettings, in_domain

REMOTE = "s3://"


def load(
    domain: Path, spec: DataSpec, settings: EvaluationSettings, metrics: Sequence[str], pipeline: str
) -> Mapping[str, Extractor]:
    """Load the extractors that ``metrics`` need.

    Args:
        domain: folder of the dataset's own extractor.
        spec: spec of the dataset's examples.
        settings: paths and SHA-256 of the files.
        metrics: names of the metrics.
        pipeline: name for error messages.

    Raises:
        DataError: a file is missing or has the wrong format.
        IntegrityError: a file does not have the SHA-256 of the settings; it was not opened.
    """
    found = {"domain": features.load(domain)} if in_domain(metrics) else {}
    for name, (file, sha256) in settings.feature_files(metrics).items():
        where = f"params.yaml: pipelines.{pipeline}.evaluation.{name}.path: {file.path}"
        found[name] = importlib.import_module(f"remint.evaluation.{name}").load(
            _read(file.path, sha256, FEATURE_FILES[name], where), sha256, spec, where
        )
    return found


def _read(address: str, sha256: str, what: str, where: str) -> bytes:
    """Read a file and verify its SHA-256. The caller loads these bytes and does not read the file again."""
    here = Path.cwd()
    if address.startswith(REMOTE):
        path = Home.of(here).files / sha256
        missing = "it was not fetched: use `remint run`, which fetches it; dvc alone does not"
    else:
        paths = [root / Path(address).expanduser() for root in (here, Path(os.environ.get("REMINT_SOURCES", here)))]
        path = next((path for path in paths if path.is_file()), paths[-1])
        missing = f"the file does not exist: put {what} there or correct the path"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{where}: {missing}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{where}: its SHA-256 is {found}, expected {sha256}: the file was not opened. Get the expected file or, if "
            "this one is right, correct sha256: next to path"
        )
    return content
