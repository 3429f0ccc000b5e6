"""Numbers as text writes them: $1,234.50, 12%, EUR 7, 5 kg, (3.50), 1.234,50; and codes that only look like numbers: 02139, 0x1F.

A column is read by one rule for all of its values. Commas are thousands where each stands before three digits. Otherwise they
are decimal commas, if no value is against it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute

from remint.errors import DataError

CODE = r"^\s*[-+]?0([0-9]+|[xX][0-9a-fA-F]+)\s*$"
PLAIN = r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*"
LARGEST_EXACT = 2**53  # float64 holds integers up to here exactly
CURRENCY = r"[$€£¥₹₩]|USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN"
UNIT = r"%|‰|°C|°F|°|kg|g|mg|lbs?|oz|km|m|cm|mm|mi|ft|in|kWh|kW|W|V|l|ml|h|min|s|ms"
MARKED = re.compile(
    rf"\s*(?P<owed>\()?\s*(?P<sign>[-+]?)\s*(?P<before>{CURRENCY})?\s*(?P<inner>[-+]?)"
    rf"(?P<digits>[\d.,][\d.,'_ \u00a0\u202f]*?)(?P<power>[eE][-+]?\d+)?\s*(?P<after>{CURRENCY}|{UNIT})?\s*(?(owed)\))\s*"
)
SPACES = r"'_ \u00a0\u202f"
POINT = re.compile(rf"\d{{1,3}}([,{SPACES}]\d{{3}})+(\.\d+)?|\d+\.?\d*|\.\d+")  # 1,234.5
COMMA = re.compile(rf"\d{{1,3}}([.{SPACES}]\d{{3}})+(,\d+)?|\d+(,\d*)?|,\d+")  # 1.234,5


@dataclass(frozen=True)
class Numbers:
    """Numbers that texts write."""

    values: list[float]
    whole: bool  # whether all are written without a decimal point or comma


def read(texts: list[str]) -> Numbers | None:
    """Return the numbers that all texts write by one rule, with one mark of a currency or unit; None if they do not."""
    found = [match for text in texts if (match := MARKED.fullmatch(text))]
    marks = {mark for match in found for mark in (match["before"], match["after"]) if mark}
    form = next((form for form in (POINT, COMMA) if all(form.fullmatch(match["digits"]) for match in found)), None)
    if form is None or len(found) < len(texts) or len(marks) > 1 or any(match["sign"] and match["inner"] for match in found):
        return None
    values = [_value(match, form) for match in found]
    mark = "." if form is POINT else ","
    whole = all(value.is_integer() for value in values) and not any(mark in match["digits"] for match in found)
    return Numbers(values, whole)


def _value(match: re.Match[str], form: re.Pattern[str]) -> float:
    digits = match["digits"].replace("," if form is POINT else ".", "").replace(",", ".")
    value = float(re.sub(rf"[{SPACES}]", "", digits) + (match["power"] or ""))
    return -value if match["owed"] or "-" in match["sign"] + match["inner"] else value


def are_marked(texts: list[str]) -> bool:
    """Return whether texts are numbers, of which one at least has a mark, a separator or a decimal comma."""
    return not all(re.fullmatch(PLAIN, text) for text in texts) and read(texts) is not None


def are_plain(column: pa.ChunkedArray) -> bool:
    """Return whether all text that is not missing is numbers without marks, or codes."""
    try:
        matches = pyarrow.compute.match_substring_regex(column.cast(pa.large_string()), f"^({PLAIN})$|{CODE}")
    except pa.ArrowInvalid:  # text that is not UTF-8
        return False
    return bool(pyarrow.compute.all(matches).as_py())


def has_codes(column: pa.ChunkedArray) -> bool:
    """Return whether a column of text holds codes."""
    return bool(pyarrow.compute.any(pyarrow.compute.match_substring_regex(column.cast(pa.large_string()), CODE)).as_py())


def parse(where: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text as numbers: int64 if all are written as whole numbers, else float64.

    Raises DataError, which names a value that is no number.
    """
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    present = [text for text in texts if text.strip()]
    numbers = read(present)
    if numbers is None:
        if wrong := next((text for text in present if read([text]) is None), None):
            raise DataError(f"{where} holds '{wrong[:40]}', which is not a number")
        several = ", ".join(repr(text[:40]) for text in present[:3])
        raise DataError(f"{where} holds numbers that are written in several ways ({several}, ..): write all of them as 1234.5")
    value_of = dict(zip(present, numbers.values, strict=True))
    values = pa.array([value_of.get(text) for text in texts], pa.float64())
    exact = numbers.whole and all(abs(value) < LARGEST_EXACT for value in numbers.values)
    return pa.chunked_array([(values.cast(pa.int64()) if exact else values).take(encoded.indices)])
