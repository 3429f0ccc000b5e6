"""What tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import registry_cases


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a small trained model, to be registered; copied by whoever changes it."""
    folder = tmp_path_factory.mktemp("made") / "bundle"
    registry_cases.make(folder)
    return folder
