"""First steps of a person, in the order of the README, with the real command line. The tests build on each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from tests.support.browser import needs_chromium, render_page
from tests.support.team import SOURCE, Team

DESIGN_KEYS = {"pipeline", "dataset_version", "weights_sha256", "model", "version", "trained", "metrics", "decision", "seconds"}


def test_1_three_families_from_data_to_production(trained_template: Path) -> None:
    before, after, outcomes = json.loads(trained_template.with_name("trained.json").read_text())
    assert before == after, "a job touches neither the working tree nor the index"
    assert [o["pipeline"] for o in outcomes] == ["digits-vae", "digits-gan", "digits-flow"]
    for outcome in outcomes:
        assert set(outcome) >= DESIGN_KEYS
        assert outcome["trained"] and outcome["version"] == 1 and outcome["champion"] == 1
        assert outcome["decision"]["verdict"] == "promoted"
        for value in outcome["metrics"].values():
            assert value["low"] <= value["value"] <= value["high"]
            assert value["n"] > 0 and value["fingerprint"]
    of_gan = {"fd_domain", "precision_domain", "coverage_domain", "novelty"}
    assert [set(o["metrics"]) for o in outcomes] == [{"elbo", "iwae", "fd_domain"}, of_gan, {"nll", "fd_domain"}]
    assert len({o["dataset_version"] for o in outcomes}) == 1


def test_2_a_second_run_trains_nothing_and_names_the_champion(trained_team: Team) -> None:
    done = trained_team.remint("run", "digits-vae")
    assert "nothing was trained; digits-vae/1 is in production" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Next: ")]
    *commands, up = line.removeprefix("Next: ").split("   ")
    assert up == "remint up" and len(commands) == 3
    for command in commands:
        trained_team.remint(*command.split()[1:])
    assert (trained_team.folder / "samples.png").exists()
    assert not trained_team.sh("git status --porcelain")
    assert len(trained_team.json("models", "digits-vae")) == 1
    assert len(trained_team.json("history", "digits-vae")["rows"]) == 1


def test_3_a_worse_challenger_is_refused_with_both_numbers(trained_team: Team, tmp_path: Path) -> None:
    """And the champion is published to a place that is new in the settings."""
    changed = ("--set", "training.steps=3", "--set", f"publish={tmp_path}/shelf")
    done = trained_team.remint("run", "digits-vae", *changed, "--reason", "to see it refused")
    assert f"digits-vae/1 is published at {tmp_path}/shelf/digits-vae" in done.stderr
    assert json.loads((tmp_path / "shelf/digits-vae/champion.json").read_bytes())["version"] == 1
    assert "digits-vae/2 was refused" in done.stdout
    (challenger,) = [m for m in trained_team.json("models", "digits-vae") if m["version"] == 2]
    assert challenger["verdict"] == "refused" and challenger["aliases"] == ["challenger"]
    why = trained_team.json("why", "digits-vae/2")
    assert why["former"]["version"] == 1
    (row,) = why["decisions"]
    assert row["champion_after"] == 1 and "to see it refused" in row["why"]
    for side in (why["metrics"]["iwae"], why["former"]["metrics"]["iwae"]):
        assert f"{side['value']:.3f}" in row["why"] and f"[{side['low']:.3f}, {side['high']:.3f}]" in row["why"], row["why"]


def test_3b_prefect_and_mlflow_show_the_runs(trained_team: Team) -> None:
    def rows(database: str, query: str) -> list[list[str]]:
        script = f"import sqlite3, json; print(json.dumps(sqlite3.connect('.remint/{database}').execute({query!r}).fetchall()))"
        return json.loads(
            subprocess.run([sys.executable, "-c", script], cwd=trained_team.folder, check=True, capture_output=True).stdout
        )

    artifacts = {
        key: (kind, data)
        for key, kind, data in rows("prefect/prefect.db", "select key, type, data from artifact order by created")
    }
    kind, table = artifacts["digits-vae-decision"]
    assert kind == "markdown" and "digits-vae/2: refused" in table and "| require | iwae |" in table
    assert artifacts["digits-vae-samples"][0] == "image" and artifacts["digits-vae-against-champion"][0] == "image"
    assert [state for (state,) in rows("prefect/prefect.db", "select distinct state_type from flow_run")] == ["COMPLETED"]
    runs = rows(
        "prefect/prefect.db", "select name, state_name, date(expected_start_time, 'localtime') from flow_run order by created"
    )
    ended = [(name, state) for name, state, day in runs if name.endswith(f" {day}")]
    assert len(ended) == len(runs)
    assert [(name.split()[0], state) for name, state in ended[3:]] == [("digits-vae", "Unchanged"), ("digits-vae", "Refused")]
    assert {(name.split()[0], state) for name, state in ended[:3]} == {
        (pipeline, "Promoted") for pipeline in ("digits-vae", "digits-gan", "digits-flow")
    }
    tasks = {name for (name,) in rows("prefect/prefect.db", "select distinct name from task_run where state_type = 'COMPLETED'")}
    assert {"ask dvc", "version data", "learn features", "train", "evaluate", "push data", "register", "judge", "settle"} <= tasks
    curves = {name for (name,) in rows("mlflow/mlflow.db", "select distinct key from metrics")}
    assert {"elbo_loss", "validation", "critic_loss", "likelihood_loss", "examples_per_second"} <= curves
    assert {status for (status,) in rows("mlflow/mlflow.db", "select status from runs")} == {"FINISHED"}


@needs_chromium
def test_3c_the_page_of_the_decision_opens_in_a_browser(trained_team: Team, tmp_path: Path) -> None:
    page = Path(trained_team.json("why", "digits-vae/2")["report"])
    assert page == trained_team.folder / ".remint/reports/digits-vae/2/report.html"
    assert any(kept.read_bytes() == page.read_bytes() for kept in (trained_team.folder / ".remint/mlflow").rglob("report.html"))
    seen = render_page(page, tmp_path)
    assert seen.errors == [] and seen.fetched == 0 and seen.broken == 0 and seen.width <= 1280
    assert seen.images == 3 + 64 + 16 + 2, "three grids, neighbours of both sides, failures, curves and likelihoods"
    assert imread(seen.screenshot)[:, :, :3].std() > 0.05, "the page is blank"
    text = page.read_text()
    for word in ("Refused", "digits-vae/1", "digits-vae/2", "training.steps", "fd_domain", "to see it refused"):
        assert word in text, word


def test_4_models_why_and_history_describe_the_versions(trained_team: Team) -> None:
    (champion, *_) = [m for m in trained_team.json("models") if m["name"] == "digits-vae" and "champion" in m["aliases"]]
    assert champion["version"] == 1 and not champion["dirty"]
    text = trained_team.remint("why", "digits-vae").stdout
    for word in (
        "Data",
        "Settings",
        "training.steps: 60",
        "Code",
        champion["commit"],
        "Metrics",
        "iwae",
        "Decisions",
        "promoted",
        champion["weights_sha256"],
    ):
        assert word in text, word
    assert "training.steps: 60 -> 3" in trained_team.remint("why", "digits-vae/2").stdout
    history = trained_team.json("history", "digits-vae")
    assert [row["action"] for row in history["rows"]] == ["promoted", "refused"] and history["findings"] == []
    assert "The chain of 2 rows verifies." in trained_team.remint("history", "digits-vae").stdout


def test_5_samples_from_the_champion(trained_team: Team, tmp_path: Path) -> None:
    trained_team.remint("sample", "digits-gan", "-n", "64", "-o", str(tmp_path / "grid.png"))
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    for name, count in (("a", 8), ("b", 3)):
        trained_team.remint(
            "sample", "digits-flow@champion", "-n", str(count), "-o", str(tmp_path / f"{name}.npy"), "--seed", "7"
        )
    a, b = (np.load(tmp_path / f"{name}.npy", allow_pickle=False) for name in "ab")
    assert a.shape == (8, 1, 8, 8) and a.dtype == np.uint8 and a.max() <= 16 and len(np.unique(a, axis=0)) == 8
    assert np.array_equal(a[:3], b), "sample i depends on seed and i only"


def test_5a_the_commands_of_the_readme_work_in_order(trained_team: Team) -> None:
    page = (SOURCE / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    *commands, last = re.findall(r"^    remint (.*?)(?: +#.*)?$", page, re.MULTILINE)
    assert last == "up" and [command.split()[0] for command in commands] == ["run", "models", "why", "history", "sample"]
    for command in commands:
        trained_team.remint(*command.split())
    assert (trained_team.folder / "grid.png").exists() and not trained_team.sh("git status --porcelain")


def test_5b_compare_measures_cost_and_growth(trained_team: Team, tmp_path: Path) -> None:
    answer = trained_team.json("compare", "digits-gan", "-o", str(tmp_path / "compare.png"))
    (model,) = answer["models"]
    assert model["model"] == "digits-gan/1" and model["parameters"] > 0 and model["score"] is None
    assert 0 < model["draw"]["low"] <= model["draw"]["value"] <= model["draw"]["high"] and model["draw"]["fingerprint"]["machine"]
    assert [(row["grows"], row["value"]) for row in answer["growth"]] == [
        *(("size", times) for times in (1, 2, 4)),
        *(("examples", count) for count in (100, 1_000, 10_000)),
    ]
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert "unknown model" in trained_team.remint("compare", "digits-gam", status=2).stderr


def test_6_a_service_loads_the_champion_with_mlflow_alone(trained_team: Team) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/use-a-model.md").read_text()
    (snippet,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import mlflow" in each)
    environment = {name: value for name, value in trained_team.environment().items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-c", snippet + "print(samples.shape, samples.dtype)"],
        cwd=trained_team.folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "(64, 1, 8, 8) uint8"
    assert not trained_team.sh("git status --porcelain")
