"""Numbers as text writes them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from remint.data import written_numbers
from remint.errors import DataError


@pytest.mark.parametrize(
    ("texts", "values", "whole"),
    [
        (["1,234", "5,678,901", "12"], [1234, 5678901, 12], True),
        (["1,234.50", "99"], [1234.5, 99], False),
        (["1.234,50", "7,5", "1.234"], [1234.5, 7.5, 1234], False),
        (["7,5", "8,25"], [7.5, 8.25], False),
        (["1 234", "7\u00a0000", "8\u202f001"], [1234, 7000, 8001], True),
        (["1'234", "1_000"], [1234, 1000], True),
        (["$5", "-$6", "$-7", "8"], [5, -6, -7, 8], True),
        (["USD 5", "USD7.25"], [5, 7.25], False),
        (["12%", "7 %"], [12, 7], True),
        (["5 kg", "7kg"], [5, 7], True),
        (["(1,234.50)", "3"], [-1234.5, 3], False),
        (["1.0", "2.0"], [1, 2], False),
        (["1e3", "2.5e-1"], [1000, 0.25], False),
        ([".5", "$.75"], [0.5, 0.75], False),
    ],
)
def test_numbers_are_read_by_one_rule(texts: list[str], values: list[float], whole: bool) -> None:
    found = written_numbers.read(texts)
    assert found is not None and found.values == values and found.whole == whole
    column = written_numbers.parse("t.csv: column 'x'", pa.chunked_array([pa.array([*texts, None, texts[0], ""])]))
    assert column.to_pylist() == [*values, None, values[0], None]
    assert pa.types.is_integer(column.type) == whole


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["1,234.5", "7,5"], r"numbers that are written in several ways \('1,234.5', '7,5', \.\.\): write all of them as 1234.5"),
        (["5 kg", "7 g"], "written in several ways"),
        (["1,23,456"], "holds '1,23,456', which is not a number"),
        (["1.2.3"], "which is not a number"),
        (["3A"], "which is not a number"),
        (["(5"], "which is not a number"),
        (["--5"], "which is not a number"),
        (["-$-5"], "which is not a number"),
        (["2024-01-31"], "which is not a number"),
    ],
)
def test_other_text_is_no_number(texts: list[str], message: str) -> None:
    assert written_numbers.read(texts) is None and not written_numbers.are_marked(texts)
    with pytest.raises(DataError, match=message):
        written_numbers.parse("t.csv: column 'x'", pa.chunked_array([pa.array(texts)]))


def test_numbers_beyond_double_precision_are_no_integers() -> None:
    column = written_numbers.parse("", pa.chunked_array([pa.array([f"{2**53 + 1:,}", "3"])]))
    assert column.type == pa.float64()
