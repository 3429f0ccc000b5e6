"""Place where a pipeline's champion is published: a bucket or a folder. The setting publish: of a pipeline."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from remint.runtime.home import CREDENTIALS


def _address(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    if CREDENTIALS.search(address) or (separator and "@" in rest.partition("/")[0]):
        raise ValueError("expected an address without credentials: put those into ~/.aws or the environment")
    if (separator and scheme != "s3") or not address.strip("/ "):
        raise ValueError(f"expected s3://bucket/prefix or a folder, not {address[:100]!r}")
    return address.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
