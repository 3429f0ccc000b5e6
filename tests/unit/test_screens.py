"""Text output of the commands."""

from __future__ import annotations

import pytest

from remint.cli import screens


@pytest.mark.parametrize(("is_table", "sample"), [(False, "-n 64 -o grid.png"), (True, "-n 500 -o /tmp/rows.csv")])
def test_next_commands_suggest_a_sample_file_that_the_kind_of_data_allows(is_table: bool, sample: str) -> None:
    line = screens.next_commands("m", is_table=is_table)
    assert line == f"Next: remint why m   remint sample m {sample}   remint history m   remint up"
