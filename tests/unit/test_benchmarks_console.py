"""Benchmark of the console: its copied versions and ledger rows are ones that the console reads and that verify."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import console
from remint.promotion.console import Registry
from remint.runtime.home import Home
from remint.stores.open import open_ledger
from tests.support.promotion_cases import copy_home


@pytest.mark.slow
def test_the_copied_registry_is_whole(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PIPELINES", 2)
    monkeypatch.setattr(console, "VERSIONS", 25)
    home = copy_home(Home(empty, empty), tmp_path / "home")
    console.fill(home)
    registry = Registry(home, console.settings, dict)
    for entry in registry.overview():
        assert entry.champion == 21 and [night.version for night in entry.nights] == list(range(1, 26))
        assert all(night.values["nll"].value == 2.0 for night in entry.nights) and not entry.concerns
        assert open_ledger(home).verify(entry.name) == []
    console.copy_versions(home, [(name, 27) for name in console.names()])
    for name in console.names():
        console.decide(home, name, range(27, 28))
    assert all(entry.nights[-1].version == 27 and entry.nights[-1].values for entry in registry.overview())
