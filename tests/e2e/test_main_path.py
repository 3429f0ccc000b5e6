"""What a person does first, in the order of the README, with the real command line and real parts. One story in steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from tests.support.browser import look, needs_chromium
from tests.support.team import Team

DESIGN_KEYS = {"pipeline", "dataset_version", "weights_sha256", "model", "version", "trained", "metrics", "decision", "seconds"}


def test_1_three_families_from_data_to_production(shared_team: Team) -> None:
    before = shared_team.state()
    outcomes = shared_team.json("run", "digits-vae", "digits-gan", "digits-flow")
    assert shared_team.state() == before, "a job touches neither the working tree nor the index"
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


def test_2_again_trains_nothing_and_says_what_is_in_production(shared_team: Team) -> None:
    done = shared_team.remint("run", "digits-vae")
    assert "nothing was trained; digits-vae/1 is in production" in done.stdout
    assert len(shared_team.json("models", "digits-vae")) == 1
    assert len(shared_team.json("history", "digits-vae")["rows"]) == 1


def test_3_a_worse_challenger_is_refused_with_both_numbers(shared_team: Team) -> None:
    done = shared_team.remint("run", "digits-vae", "--set", "training.steps=3", "--reason", "to see it refused")
    assert "digits-vae/2 was refused" in done.stdout
    (challenger,) = [m for m in shared_team.json("models", "digits-vae") if m["version"] == 2]
    assert challenger["verdict"] == "refused" and challenger["aliases"] == ["challenger"]
    why = shared_team.json("why", "digits-vae/2")
    assert why["former"]["version"] == 1
    (row,) = why["decisions"]
    assert row["champion_after"] == 1 and "to see it refused" in row["why"]
    for side in (why["metrics"]["iwae"], why["former"]["metrics"]["iwae"]):
        assert f"{side['value']:.3f}" in row["why"] and f"[{side['low']:.3f}, {side['high']:.3f}]" in row["why"], row["why"]


def test_3b_prefect_and_mlflow_show_what_happened(shared_team: Team) -> None:
    def rows(database: str, query: str) -> list[list[str]]:
        script = f"import sqlite3, json; print(json.dumps(sqlite3.connect('.remint/{database}').execute({query!r}).fetchall()))"
        return json.loads(
            subprocess.run([sys.executable, "-c", script], cwd=shared_team.folder, check=True, capture_output=True).stdout
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
    assert {"elbo_loss", "validation", "critic_loss", "likelihood_loss"} <= curves
    assert {status for (status,) in rows("mlflow/mlflow.db", "select status from runs")} == {"FINISHED"}


@needs_chromium
def test_3c_the_page_of_the_decision_opens_in_a_browser(shared_team: Team, tmp_path: Path) -> None:
    page = Path(shared_team.json("why", "digits-vae/2")["report"])
    assert page == shared_team.folder / ".remint/reports/digits-vae/2/report.html"
    assert any(kept.read_bytes() == page.read_bytes() for kept in (shared_team.folder / ".remint/mlflow").rglob("report.html"))
    seen = look(page, tmp_path)
    assert seen.errors == [] and seen.fetched == 0 and seen.broken == 0 and seen.width <= 1280
    assert seen.images == 3 + 64 + 16 + 2, "three grids, neighbours of both sides, failures, curves and likelihoods"
    assert imread(seen.screenshot)[:, :, :3].std() > 0.05, "the page is blank"
    text = page.read_text()
    for word in ("Refused", "digits-vae/1", "digits-vae/2", "training.steps", "fd_domain", "to see it refused"):
        assert word in text, word


def test_4_the_registry_and_the_ledger_answer(shared_team: Team) -> None:
    (champion, *_) = [m for m in shared_team.json("models") if m["name"] == "digits-vae" and "champion" in m["aliases"]]
    assert champion["version"] == 1 and not champion["dirty"]
    text = shared_team.remint("why", "digits-vae").stdout
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
    assert "training.steps: 60 -> 3" in shared_team.remint("why", "digits-vae/2").stdout
    history = shared_team.json("history", "digits-vae")
    assert [row["action"] for row in history["rows"]] == ["promoted", "refused"] and history["findings"] == []
    assert "The chain of 2 rows verifies." in shared_team.remint("history", "digits-vae").stdout


def test_5_samples_from_the_champion(shared_team: Team, tmp_path: Path) -> None:
    shared_team.remint("sample", "digits-gan", "-n", "64", "-o", str(tmp_path / "grid.png"))
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    for name, count in (("a", 8), ("b", 3)):
        shared_team.remint("sample", "digits-flow@champion", "-n", str(count), "-o", str(tmp_path / f"{name}.npy"), "--seed", "7")
    a, b = (np.load(tmp_path / f"{name}.npy", allow_pickle=False) for name in "ab")
    assert a.shape == (8, 1, 8, 8) and a.dtype == np.uint8 and a.max() <= 16 and len(np.unique(a, axis=0)) == 8
    assert np.array_equal(a[:3], b), "sample i depends on seed and i only"


def test_5b_what_a_model_costs_and_how_it_grows(shared_team: Team, tmp_path: Path) -> None:
    answer = shared_team.json("compare", "digits-gan", "-o", str(tmp_path / "compare.png"))
    (model,) = answer["models"]
    assert model["model"] == "digits-gan/1" and model["parameters"] > 0 and model["score"] is None
    assert 0 < model["draw"]["low"] <= model["draw"]["value"] <= model["draw"]["high"] and model["draw"]["fingerprint"]["machine"]
    assert [(row["grows"], row["value"]) for row in answer["growth"]] == [
        *(("size", times) for times in (1, 2, 4)),
        *(("examples", count) for count in (100, 1_000, 10_000)),
    ]
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert "unknown model" in shared_team.remint("compare", "digits-gam", status=2).stderr


def test_6_a_service_loads_the_champion_with_mlflow_alone(shared_team: Team) -> None:
    script = (
        "import mlflow, pandas, json\n"
        "model = mlflow.pyfunc.load_model('models:/digits-vae@champion')\n"
        "x = model.predict(pandas.DataFrame({'seed': [1, 2, 1]}))\n"
        "import numpy as np; x = np.asarray(x); print(json.dumps([len(x), bool((x[0] == x[2]).all()), bool((x[0] == x[1]).all())]))\n"
    )
    store = f"sqlite:///{shared_team.folder}/.remint/mlflow/mlflow.db"
    environment = {**shared_team.environment(), "MLFLOW_TRACKING_URI": store}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [3, True, False]


def test_7_dvc_by_hand_restores_what_was_trained(served_team: Team) -> None:
    output = served_team.sh("dvc repro evaluate@digits-flow 2>&1")
    assert "Running stage 'train@digits-flow'" not in output
    bundle = served_team.folder / "outs/trained/digits-flow"
    registered = served_team.json("models", "digits-flow")[0]["weights_sha256"]
    assert json.loads((bundle / "training.json").read_text())["weights_sha256"] == registered
    assert "digits-flow" in served_team.sh("dvc metrics show 2>/dev/null")
    assert "train@digits-flow" in served_team.sh("dvc dag")
    served_team.sh("dvc plots show 2>/dev/null")
    assert (served_team.folder / "dvc_plots/index.html").exists()
    assert not served_team.json("run", "digits-flow")[0]["trained"], "and what dvc left behind is no dirt"


def test_8_a_changed_gate_retrains_nothing_and_a_learning_rate_trains(served_team: Team) -> None:
    (outcome,) = served_team.json("run", "digits-vae", "--set", "promotion.improve.confidence=0.9")
    assert not outcome["trained"] and outcome["version"] == 1
    (outcome,) = served_team.json("run", "digits-vae", "--set", "training.learning_rate=1.0e-3")
    assert outcome["trained"]


def test_8b_a_person_approves_rejects_and_overrules(served_team: Team) -> None:
    (outcome,) = served_team.json("run", "digits-flow", "--set", "promotion.approval=manual", "--set", "training.steps=120")
    champion = outcome["champion"]
    assert outcome["decision"]["verdict"] == "awaiting_approval" and outcome["version"] != champion
    ref = f"digits-flow/{outcome['version']}"
    assert served_team.json("reject", ref, "--reason", "not convinced")["champion_after"] == champion
    (again,) = served_team.json("run", "digits-flow", "--set", "promotion.approval=manual", "--set", "training.steps=120")
    assert again["unchanged"] and again["decision"]["verdict"] == "rejected", "what a person rejected is not brought up again"
    row = served_team.json("promote", ref, "--reason", "looked again")
    assert row["champion_after"] == outcome["version"] and row["why"] == "looked again"
    (now,) = [m for m in served_team.json("models", "digits-flow") if "champion" in m["aliases"]]
    assert now["version"] == outcome["version"]
    assert [r["action"] for r in served_team.json("history", "digits-flow")["rows"]][-3:] == [
        "awaiting_approval",
        "rejected",
        "promoted",
    ]
    assert "is the champion already" in served_team.remint("promote", ref, "--reason", "again", status=2).stderr
    back = served_team.json("rollback", "digits-flow", "--reason", "the sevens blur")
    assert (back["action"], back["version"], back["champion_after"]) == ("rolled_back", outcome["version"], champion)
    (same,) = served_team.json("run", "digits-flow", "--set", "training.steps=120")  # by other rules: the gate may promote alone
    assert same["champion"] == champion and same["decision"]["verdict"] == "refused" and not same["trained"]
    assert f"{ref} was rolled back on" in same["decision"]["reasons"][0] and "the sevens blur" in same["decision"]["reasons"][0]
    assert served_team.json("history", "digits-flow", "--verify")["findings"] == []


def test_8c_two_processes_train_through_the_same_path(served_team: Team) -> None:
    (outcome,) = served_team.json("run", "digits-vae", "--set", "training.devices=2", "--set", "training.steps=10")
    assert outcome["trained"]
    why = served_team.json("why", f"digits-vae/{outcome['version']}")
    assert why["lineage"]["world_size"] == "2"


def test_8d_an_automatic_margin_asks_for_more_than_seeds_differ_by(served_team: Team) -> None:
    before = served_team.json("models", "digits-flow")
    spread = served_team.json("spread", "digits-flow", "--seeds", "3", "--set", "training.steps=121")
    assert spread["seeds"] == [0, 1, 2] and len(set(spread["values"]["nll"])) == 3
    assert Path(spread["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert served_team.json("models", "digits-flow") == before, "nothing is registered"
    (outcome,) = served_team.json(
        "run", "digits-flow", *("--set", "promotion.improve.margin=auto"), *("--set", "training.steps=121")
    )
    assert not outcome["trained"] and not outcome["unchanged"], "the gate has something new to go by"
    assert spread["values"]["nll"][0] == outcome["metrics"]["nll"]["value"], "the first seed is the pipeline's own"
    assert f"by more than {spread['margins']['nll']:.4f}, the seed-to-seed variation (3 seeds)" in json.dumps(outcome["decision"])


def test_8e_a_champion_whose_bytes_are_gone_is_not_compared_and_nothing_is_promoted(served_team: Team) -> None:
    weights = list((served_team.folder / ".remint/mlflow/artifacts/digits-gan").rglob("*.safetensors"))
    assert weights
    for path in weights:
        path.unlink()
    (outcome,) = served_team.json("run", "digits-gan", "--set", "training.steps=61")
    assert outcome["trained"] and outcome["champion"] == 1 and outcome["decision"]["verdict"] == "refused"
    (reason,) = outcome["decision"]["reasons"]
    assert reason.startswith("not comparable: champion digits-gan/1 could not be measured again: ")


def test_9_uncommitted_work_is_marked_and_not_promoted(served_team: Team) -> None:
    source = served_team.folder / "src/remint/models/vae.py"
    source.write_text(source.read_text() + "\n# an experiment\n")
    (outcome,) = served_team.json("run", "digits-vae", "--set", "training.steps=80")
    assert outcome["decision"]["verdict"] == "refused"
    assert any("uncommitted changes in src/remint/models/vae.py" in reason for reason in outcome["decision"]["reasons"])
    marked = served_team.json("models", "digits-vae")[0]
    assert marked["version"] == outcome["version"] and marked["dirty"]
    served_team.sh("git commit -qam 'the experiment, kept'")
    (again,) = served_team.json("run", "digits-vae", "--set", "training.steps=80")
    assert again["version"] == outcome["version"] and not again["trained"]
    assert not served_team.json("models", "digits-vae")[0]["dirty"], "a clean commit that gives the same key clears the mark"
