"""Tags of a version: the text in MLflow is kept, old versions are readable, and an edited tag is refused by name."""

from __future__ import annotations

import pytest

from remint.errors import IntegrityError
from remint.records import DatasetVersion, DataSpec, MetricValue, canonical
from remint.stores.mlflow import DataOrigin, VersionTags

COUNTS = {"train": 7, "validation": 1, "held_out": 2}
NLL = MetricValue(name="nll", value=2.0, low=1.9, high=2.1, n=10, seed=0)
HELD = {
    "remint.key": "k",
    "remint.dirty": "false",
    "remint.reason": "",
    "remint.recipe": '{"dataset":"digits","training":{"threads":1}}',
    "remint.fingerprint": '{"device":"cpu"}',
    "remint.data": '{"held_out":2,"name":"digits","raw_sha256":"r","source":"sklearn:digits","train":7,"validation":1}',
    "remint.metrics": canonical({"nll": NLL.to_json()}),
    "remint.overrides": '{"training.steps":"20"}',
    "remint.tolerance": '{"nll":{"within":0.1}}',
    "remint.of_a_newer_remint": "?",
}


def test_tags_are_read_and_written_unchanged() -> None:
    tags = VersionTags.of({**HELD, "mlflow.user": "ada", "team": "vision"})
    assert tags.to_mlflow() == HELD
    assert (tags.key, tags.dirty, tags.reason, tags.verdict) == ("k", "false", "", None)
    assert tags.settings == {"dataset": "digits", "training": {"threads": 1}} and tags.made_on == {"device": "cpu"}
    assert tags.measurements == {"nll": NLL} and tags.set_by_hand == {"training.steps": "20"}
    assert tags.tolerances == {"nll": {"within": 0.1}}
    assert tags.origin == DataOrigin(name="digits", source="sklearn:digits", raw_sha256="r", counts=COUNTS)


def test_the_tag_for_the_origin_of_the_data_keeps_its_format() -> None:
    spec = DataSpec(shape=(1, 2, 2), levels=2)
    dataset = DatasetVersion(name="digits", source="sklearn:digits", raw_sha256="r", spec=spec, split={}, counts=COUNTS, files={})
    assert canonical(DataOrigin.of(dataset).block()) == HELD["remint.data"]


def test_a_version_without_tags_gets_defaults() -> None:
    tags = VersionTags.of({})
    assert tags.to_mlflow() == {} and tags.origin == DataOrigin() and tags.origin.block() == {}
    assert tags.settings == tags.made_on == tags.measurements == tags.set_by_hand == tags.tolerances == {}
    assert tags.missing(("key", "recipe")) == ["key", "recipe"] and VersionTags(key="").missing(("key", "recipe")) == ["recipe"]


def test_only_changed_tags_are_written() -> None:
    held = VersionTags(verdict="kept", ledger_row="1")
    wanted = VersionTags(verdict="promoted", ledger_row="1", ledger_hash="h")
    assert wanted.changes(held) == VersionTags(verdict="promoted", ledger_hash="h")
    assert held.updated(wanted) == wanted and held.updated(VersionTags()) == held


@pytest.mark.parametrize(
    ("tag", "text", "read"),
    [
        ("recipe", "{", "settings"),
        ("recipe", "[]", "settings"),
        ("data", '{"train":"many"}', "origin"),
        ("data", '{"name":["x"]}', "origin"),
        ("metrics", '{"nll":{"value":2}}', "measurements"),
        ("fingerprint", '"' + "x" * 500, "made_on"),
    ],
)
def test_reading_an_edited_tag_names_it_in_one_line(tag: str, text: str, read: str) -> None:
    tags = VersionTags.model_validate({tag: text})
    with pytest.raises(IntegrityError, match=rf"^the tag remint\.{tag} .*: remint did not write it$") as caught:
        getattr(tags, read)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 200
