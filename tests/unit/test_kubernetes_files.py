"""The Ray cluster of deploy/kubernetes is valid to the schema of KubeRay, with no field that it does not know.

tests/unit/test_deploy_files.py checks the other files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

SOURCE = Path(__file__).parents[2]
FILES = SOURCE / "deploy/kubernetes"


def content(name: str) -> dict[str, Any]:
    return dict(YAML(typ="safe").load(FILES / f"{name}.yaml"))


def closed(schema: Any) -> Any:
    """Return a schema that refuses unknown fields, which Kubernetes would drop."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items() if key != "x-kubernetes-int-or-string"}
    if schema.get("x-kubernetes-int-or-string"):
        inner |= {"type": ["integer", "string"]}
    return {"additionalProperties": False, **inner} if isinstance(schema.get("properties"), dict) else inner


def check(found: dict[str, Any]) -> None:
    schema = closed(json.loads((SOURCE / "tests/support/kubernetes/raycluster.json").read_text()))
    jsonschema.Draft202012Validator(schema).validate(found)


def test_the_file_is_valid() -> None:
    check(content("raycluster"))


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("spec", "authOption", {}),
        ("spec authOptions", "mode", "tokn"),
        ("spec headGroupSpec template spec containers 0", "imgae", "x"),
        ("spec workerGroupSpecs 0", "replicas", "two"),
        ("spec workerGroupSpecs 1 template spec containers 0 resources", "limit", {}),
        ("spec workerGroupSpecs 1 template spec volumes 0 emptyDir", "sizelimit", "1Gi"),
    ],
)
def test_a_mistake_is_found(path: str, key: str, value: object) -> None:
    found = json.loads(json.dumps(content("raycluster")))
    part: Any = found
    for name in path.split():
        part = part[int(name) if name.isdigit() else name]
    part[key] = value
    with pytest.raises(jsonschema.ValidationError):
        check(found)


def test_the_cluster_asks_for_a_token_and_holds_no_secret() -> None:
    """And it has the Ray of constraints.txt, and the policy names its pods."""
    found = content("raycluster")
    assert found["spec"]["authOptions"] == {"mode": "token", "secretName": "remint-ray"}
    assert f"ray=={found['spec']['rayVersion']}\n" in (SOURCE / "constraints.txt").read_text()
    assert content("networkpolicy")["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": found["metadata"]["name"]}
    groups = [found["spec"]["headGroupSpec"], *found["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert not any("TOKEN" in each["name"] or "SECRET" in each["name"] for each in container["env"])
