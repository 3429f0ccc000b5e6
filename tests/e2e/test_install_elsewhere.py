"""Installation of a registered model without a clone: by its own requirements, in a new virtual environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from remint.settings.params import read_params, write_params
from tests.support.ports import free_port
from tests.support.team import Team

BIN = Path(sys.executable).parent


@dataclass
class PackagedTeam(Team):
    """A team with a wheel of remint."""

    package: str = ""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "REMINT_PACKAGE": self.package}


def build_wheel(team: Team, clone: Path) -> Path:
    """Run `make wheel` in a clone of a team's repository. Return the wheel."""
    team.sh(f"git clone -q . {clone} && ln -s {BIN.parent} {clone}/.venv && make -s -C {clone} -o .venv/installed wheel")
    (built,) = (clone / "dist").iterdir()
    return built


def clean_environment(venv_bin: Path, uri: str) -> dict[str, str]:
    """Return the environment of another machine: no path leads into this clone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "REMINT_", "VIRTUAL_ENV"))}
    return {**kept, "PATH": f"{venv_bin}{os.pathsep}{os.environ['PATH']}", "MLFLOW_TRACKING_URI": uri}


def download_champion(team: Team, to: Path) -> tuple[str, Path]:
    """Download the champion as a person does. Return MLflow's address and the folder."""
    uri = f"sqlite:///{team.folder}/.remint/mlflow/mlflow.db"
    command = [BIN / "mlflow", "artifacts", "download", "--artifact-uri", "models:/digits-flow@champion", "--dst-path", to]
    subprocess.run(command, cwd=to.parent, env=clean_environment(BIN, uri), check=True, capture_output=True)
    return uri, to


def ask(port: int, server: subprocess.Popen[bytes], log: Path, rows: list[dict[str, Any]], **params: Any) -> Any:
    body = json.dumps({"dataframe_records": rows, "params": params}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)["predictions"]
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text())


@pytest.mark.soak
def test_a_version_is_installed_from_the_wheel_and_served(team: Team, tmp_path: Path) -> None:
    content = read_params(team.folder)
    content["datasets"]["digits"]["split"] = {"validation": 0.1, "calibration": 0.1, "held_out": 0.2, "seed": 0}
    write_params(content, team.folder)
    team.sh("git commit -qam 'a calibration split, for scores'")
    built = build_wheel(team, tmp_path / "clone")
    team = PackagedTeam(team.folder, api=team.api, package=str(built))
    (outcome,) = team.json("run", "digits-flow")
    assert outcome["decision"]["verdict"] == "promoted"
    uri, model = download_champion(team, tmp_path / "model")
    assert (model / "requirements.txt").read_text().splitlines()[0] == f"remint @ {built.as_uri()}"
    venv.create(tmp_path / "venv", with_pip=True)
    fresh = tmp_path / "venv/bin"
    install = [fresh / "pip", "install", "--quiet", "-r", model / "requirements.txt"]
    subprocess.run(install, env=clean_environment(fresh, uri), cwd=tmp_path, check=True)
    imported = subprocess.run(
        [fresh / "python", "-c", "import remint.cli; print(remint.cli.__file__)"],
        env=clean_environment(fresh, uri),
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert imported.stdout.startswith(str(tmp_path / "venv"))
    port, log = free_port(), tmp_path / "log"
    serve = ["mlflow", "models", "serve", "-m", "models:/digits-flow@champion", "--env-manager", "local", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [fresh / serve[0], *serve[1:]], env=clean_environment(fresh, uri), cwd=tmp_path, stdout=output, stderr=output
        )
    try:
        drawn = np.array(ask(port, server, log, [{"seed": 3}, {"seed": 5}]), dtype=np.uint8)
        rows = [{"x": x_CHW.tolist()} for x_CHW in drawn]
        scored = ask(port, server, log, rows, method="score", false_alarm_rate=0.2)
        encoded = ask(port, server, log, rows, method="encode")
    finally:
        server.terminate()
        server.wait(timeout=60)
    for sample, seed in zip(drawn, (3, 5), strict=True):
        team.remint("sample", "digits-flow", "-n", "1", "--seed", str(seed), "-o", str(tmp_path / "one.npy"))
        assert np.array_equal(sample, np.load(tmp_path / "one.npy")[0])
    np.save(tmp_path / "drawn.npy", drawn)
    team.remint("score", "digits-flow", str(tmp_path / "drawn.npy"), "--false-alarm-rate", "0.2", "-o", str(tmp_path / "s.csv"))
    for row, by_hand in zip(scored, pd.read_csv(tmp_path / "s.csv").to_dict("records"), strict=True):
        assert row["flagged"] == by_hand["flagged"]
        assert (row["score"], row["p_value"]) == pytest.approx((by_hand["score"], by_hand["p_value"]), rel=1e-5)
    team.remint("encode", "digits-flow", str(tmp_path / "drawn.npy"), "-o", str(tmp_path / "z.npy"))
    np.testing.assert_allclose(encoded, np.load(tmp_path / "z.npy"), rtol=1e-4, atol=1e-5)


@pytest.mark.soak
def test_mlflow_predict_fills_a_table(team: Team, tmp_path: Path) -> None:
    team.json("run", "cancer-flow")
    team.remint("sample", "cancer-flow", "-n", "3", "-o", str(tmp_path / "rows.csv"))
    gaps = pd.read_csv(tmp_path / "rows.csv")
    gaps.iloc[0, 0] = gaps.iloc[2, 1] = np.nan
    gaps.to_csv(tmp_path / "gaps.csv", index=False)
    rows = gaps.astype(object).where(gaps.notna(), None).to_dict("records")
    (tmp_path / "in.json").write_text(json.dumps({"dataframe_records": rows, "params": {"method": "impute", "seed": 4}}))
    predict = ["mlflow", "models", "predict", "-m", "models:/cancer-flow@champion", "--env-manager", "local"]
    files = ["-i", tmp_path / "in.json", "-t", "json", "-o", tmp_path / "out.json"]
    environment = clean_environment(BIN, f"sqlite:///{team.folder}/.remint/mlflow/mlflow.db")
    subprocess.run([BIN / predict[0], *predict[1:], *files], env=environment, cwd=tmp_path, check=True)
    team.remint("impute", "cancer-flow", str(tmp_path / "gaps.csv"), "--seed", "4", "-o", str(tmp_path / "filled.csv"))
    filled = pd.DataFrame(json.loads((tmp_path / "out.json").read_text())["predictions"])
    pd.testing.assert_frame_equal(filled, pd.read_csv(tmp_path / "filled.csv"), rtol=1e-6, check_dtype=False)
    assert not filled.isna().any(axis=None)


@pytest.mark.soak
def test_requirements_name_the_commit_at_the_origin_of_the_clone(team: Team, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/origin.git"
    team.sh(f"git clone -q --bare . {tmp_path}/www/origin.git && git -C {tmp_path}/www/origin.git update-server-info")
    team.sh(f"git remote add origin {url}")
    team.json("run", "digits-flow")
    _, model = download_champion(team, tmp_path / "model")
    first = (model / "requirements.txt").read_text().splitlines()[0]
    assert first == f"remint @ git+{url}@{team.sh('git rev-parse HEAD').strip()}"
    serve = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", tmp_path / "www"]
    with subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _until_open(port)
            subprocess.run([BIN / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "built", first], check=True)
        finally:
            server.terminate()
    (built,) = (tmp_path / "built").iterdir()
    assert built.name.startswith("remint-")


def _until_open(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
