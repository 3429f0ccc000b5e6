"""The example of docs/how-to/add-a-metric.md against known values, and the page against the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from remint.evaluation.evaluate import measure
from remint.settings.params import read_params, validate_params
from tests.support.evaluation_cases import Sampler, context_of, make_table, normal_rows

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples/diversity"
PAGE = (REPOSITORY / "docs/how-to/add-a-metric.md").read_text()


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (2.0, 4.0), (0.0, 0.0)])
def test_diversity_of_known_distributions(scale: float, expected: float) -> None:
    def draw(noise_BN: Tensor) -> Tensor:
        return scale * noise_BN + torch.tensor([3.0, 0.0, 0.0])  # the location does not matter

    context = context_of(make_table(normal_rows(900, 3, 0), normal_rows(800, 3, 1)), draws=4)
    found = measure(Sampler(draw, 3), ["diversity"], context, "test")[0]["diversity"]
    assert found.values_N.mean() == pytest.approx(expected, rel=0.1, abs=1e-12)
    assert found.n == 800 and found.fingerprint["extractor"] == context.extractors["domain"].sha256


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_whole_file_in_order() -> None:
    shown = [line for part in blocks("python") for line in part.splitlines() if line]
    assert shown == [line for line in (EXAMPLE / "metric.py").read_text().splitlines() if line]
    assert blocks("toml") == [(EXAMPLE / "pyproject.toml").read_text()]


def test_the_settings_on_the_page_are_valid() -> None:
    content = read_params(REPOSITORY)
    (block,) = blocks("yaml")
    content["pipelines"] = {"digits-gan": content["pipelines"]["digits-gan"] | YAML(typ="safe").load(block)}
    assert validate_params(content).pipeline("digits-gan").metrics() == ["fd_domain", "diversity"]
