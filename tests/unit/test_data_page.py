"""docs/how-to/bring-your-data.md: the messages that it shows are those of the code, and its settings are valid."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from remint.data import sources
from remint.errors import DataError, SettingsError
from remint.records import Column, DataSpec
from remint.settings.params import load_params, read_params, validate_params
from tests.unit.test_data_pictures import picture, save

PAGE = (Path(__file__).parents[2] / "docs/how-to/bring-your-data.md").read_text()
YAML = "".join(block.removeprefix("datasets:\n") for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
SHOWN = re.findall(r"```\n(params.*?)\n```", PAGE, re.DOTALL)


@pytest.fixture
def team(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(f"datasets:\n{YAML}pipelines: {{}}\n")
    for index in range(120):
        save(tmp_path / f"data/pets/{('cats', 'dogs')[index % 2]}/{index:03}.png", picture(index, (40, 48)))
    write_customers(tmp_path, np.random.default_rng(0).normal(40.0, 9.0, 300).round(1), ["Bonn", "Ulm"] * 150)
    return tmp_path


def write_customers(team: Path, age: Any, city: list[str], **more: Any) -> None:
    content = {
        "customer_id": np.arange(1000, 1300),
        "signed_up": [f"2024-01-{1 + row % 28:02}" for row in range(300)],
        "country": ["DE"] * 300,
        "age": age,
        "city": city,
        "store_id": [row % 4 for row in range(300)],
        "churned": ["no", "yes", "no"] * 100,
    }
    pyarrow.csv.write_csv(pa.table(content | more), team / "data/customers.csv")


def refused(team: Path, name: str, **changed: Any) -> str:
    settings = load_params(team).dataset(name).model_copy(update=changed)
    with pytest.raises(DataError) as caught:
        sources.snapshot(name, settings, team, team / "out", schemas=team / "schemas")
    return str(caught.value).replace(f"{team}/", "")


def without_missing_values(team: Path) -> str:
    flow = {"dataset": "customers", "family": "flow", "model": {}, "training": {}, "evaluation": {}, "promotion": {}}
    params = validate_params(read_params(team) | {"pipelines": {"customers-flow": flow}})
    gaps = DataSpec(shape=(2,), columns=(Column(name="age", missing=True), Column(name="income", missing=True)))
    with pytest.raises(SettingsError) as caught:
        params.check_missing("customers-flow", gaps)
    return str(caught.value)


@pytest.mark.slow
def test_the_page_shows_the_messages_that_the_code_prints(team: Path) -> None:
    for index in (0, 2, 4):
        (team / f"data/pets/cats/{index:03}.png").write_text("no image")
    said = [refused(team, "pets")]
    (team / "data/pets/cats/extra.png").symlink_to("/etc/passwd")
    with tarfile.open(team / "data/pets.tar.gz", "w:gz") as out:
        out.addfile(tarfile.TarInfo("../../etc/cron.d/x.png"))
    said.append(f"{refused(team, 'pets')}\n{refused(team, 'archived')}")
    said += [without_missing_values(team), refused(team, "customers", drop=[])]
    settings = load_params(team).dataset("customers")
    sources.snapshot("customers", settings, team, team / "out", schemas=team / "schemas")
    write_customers(
        team, ["unknown" if row == 7 else "41.5" for row in range(300)], ["Bonn", "Ulm", "Trier"] * 100, height=[1.7, 1.8] * 150
    )
    said.append(refused(team, "customers"))
    assert said == SHOWN
