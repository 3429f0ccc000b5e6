"""Fixtures shared by the fault tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import registry_cases, training_cases


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of a small trained model for registration. Copy it before a change."""
    folder = tmp_path_factory.mktemp("made") / "bundle"
    registry_cases.make_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the prepared data of small real trainings."""
    made = tmp_path_factory.mktemp("tiny")
    training_cases.prepare(made)
    return made
