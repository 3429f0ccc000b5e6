"""Benchmarks of the training loop: their loops train, shares are medians, a missing peer is left out, bounds are checked; and that
those of the feed, of evaluation and of the validation score run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import evaluation, feed, loops, peers, scaling, throughput, validation
from benchmarks.loops import Timing

TINY: dict[str, dict[str, Any]] = {
    "flow": {"couplings": 1, "hidden": 8, "layers": 1, "bins": 2},
    "gan": {"latent": 2, "hidden": 8, "layers": 1},
    "vae": {"latent": 2, "hidden": 8, "layers": 1, "mixtures": 1},
    "vaegan": {"latent": 2, "hidden": 8, "layers": 1, "mixtures": 1, "critic": {"hidden": 8, "layers": 1}},
}


def test_the_bare_loop_is_adamw_on_random_batches() -> None:
    """With one example every batch is known, and the weights are those of AdamW written out."""
    ours, theirs = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    x_NX = torch.tensor([[1, 2]], dtype=torch.uint8)
    loops.bare_steps(x_NX, 4, 3, [lambda x_BX, step: (x_BX * ours).sum() * (step + 1)], [[ours]])
    optimizer = torch.optim.AdamW([theirs], lr=loops.LEARNING_RATE)
    for step in range(3):
        optimizer.zero_grad()
        ((x_NX.float() * theirs).sum() * 4 * (step + 1)).backward()
        optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_the_bare_loop_enables_only_the_gradients_of_the_running_phase() -> None:
    first, second = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    seen: list[tuple[bool, bool]] = []

    def loss(_: Tensor, step: int) -> Tensor:
        seen.append((first.requires_grad, second.requires_grad))
        return first * second

    loops.bare_steps(torch.zeros((1, 1)), 1, 2, [loss, loss], [[first], [second]])
    assert seen == [(True, False), (False, True)] * 2


@pytest.mark.parametrize("name", loops.FAMILIES)
def test_both_loops_train_each_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "INTERVAL", 5)
    monkeypatch.setattr(loops, "QUICK", ())
    real = loops.build
    monkeypatch.setattr(loops, "build", lambda name, side: real(name, side, TINY[name]))
    monkeypatch.setenv("REMINT_EVENTS", "/dev/null")
    for timing in (loops.bare(name, 8), loops.ours(name, 8), loops.ours(name, 8, scored=True)):
        assert timing.steps == 5
        assert timing.seconds > 0
        assert timing.processor_seconds > 0


def timing(step: float, compile_seconds: float = 0.0) -> Timing:
    return Timing(10, 10 * step, 5 * step, compile_seconds)


def test_shares_are_medians_over_rounds_whose_order_rotates() -> None:
    called: list[str] = []
    steps = {"bare": iter([1.0, 2.0, 4.0]), "ours": iter([2.0, 2.5, 4.0]), "compiled": iter([1.0, 1.0, 1.0])}

    def entrant(name: str) -> peers.Entrant:
        def run() -> Timing:
            called.append(name)
            return timing(next(steps[name]), 7.0 if name == "compiled" else 0.0)

        return run

    found = throughput.race({name: entrant(name) for name in steps}, 3)
    assert called == ["bare", "ours", "compiled", "ours", "compiled", "bare", "compiled", "bare", "ours"]
    assert found["ours"]["share"] == pytest.approx(0.8)  # of 0.5, 0.8 and 1
    assert (found["ours"]["least_share"], found["ours"]["greatest_share"]) == (0.5, 1.0)
    assert found["bare"]["step_ms"] == pytest.approx(1000.0)  # the median of processor time, half of the clock's
    assert found["bare"]["clock_step_ms"] == pytest.approx(2000.0)
    assert found["compiled"]["compile_seconds"] == 7.0
    assert "compile_seconds" not in found["ours"]


def test_missed_bounds_name_the_case_and_the_peer() -> None:
    results = {
        "flow-8": {"bare": {"share": 1.0}, "ours": {"share": 0.98}, "compiled": {"share": 1.5}},
        "vae-8": {"bare": {"share": 1.0}, "ours": {"share": 0.96}, "lightning": {"share": 0.5}},
        "zuko-8": {"bare": {"share": 1.0}, "zuko": {"share": 1.0}},
        "vae-32": {"bare": {"share": 1.0}, "ours": {"share": 0.99}, "lightning": {"share": 0.9}},
    }
    compared = {found["case"]: found["times"] for found in throughput.comparisons(results)}
    assert compared == {
        "vae-8": {"ours": pytest.approx(1.92)},
        "zuko-8": {"ours": pytest.approx(0.98), "compiled": pytest.approx(1.5)},
        "vae-32": {"ours": pytest.approx(1.1)},
    }
    assert throughput.missed_bounds(results) == [
        "vae-8: ours is 0.960 of the bare loop, not 0.97",
        "zuko-8: ours is 1.50 times the share of zuko, not 1.6",
    ]


def test_a_peer_that_is_not_installed_is_left_out_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: name == "normflows")
    assert throughput.cases()[8:] == ["normflows-8", "normflows-32"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["lightning", "pythae", "zuko"]
    assert all("pip install -e '.[bench]'" in line for line in lines)


def test_the_rate_leaves_the_start_out(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    rows = [(1, 5.0), (11, 6.0), (31, 7.0), (51, 8.0)]
    lines = [json.dumps({"event": "progress", "step": step, "seconds": seconds}) for step, seconds in rows]
    file.write_text("\n".join([json.dumps({"event": "started"}), *lines]) + "\n")
    assert scaling.rate(file) == 20.0
    file.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(SystemExit, match="too short"):
        scaling.rate(file)


@pytest.mark.slow
def test_the_benchmark_of_the_feed_trains_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"LIMIT": 1 << 18, "SHARDS": 2, "WARMUP": 1, "STEPS": 2}.items():
        monkeypatch.setattr(feed, name, value)
    assert feed.write(tmp_path) == 85 and len(list(tmp_path.iterdir())) == 2
    feed.train(tmp_path, "mapped")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["steps_per_second"] > 0 and found["megabytes"] > 0


@pytest.mark.slow
def test_the_benchmark_of_evaluation_measures_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "PART_EXAMPLES", 64)
    found = evaluation.cost("gan", 8, TINY["gan"], 2)
    assert found["training_s"] > 0 and found["share"] == pytest.approx(found["evaluation_s"] / found["training_s"])
    said = evaluation.short(found | {"evaluation_s": 100.0, "seconds": {"elbo": 90.0, "fd_domain": 10.0}, "training_s": 1500.0})
    assert said["share"] == 2.5 and "90 s were for elbo: a smaller evaluation.examples makes it cheaper" in said["note"]
    assert not evaluation.missed(said) and evaluation.missed(said | {"note": None})


@pytest.mark.slow
def test_the_benchmark_of_the_validation_score_measures_cost_and_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ALL": 2000, "SCORED": 100, "FEWER": (20, 50), "STEPS": 6, "EVERY": 2}.items():
        monkeypatch.setattr(validation, name, value)
    monkeypatch.setenv("REMINT_EVENTS", "/dev/null")
    found = validation.cost("vae", 8, TINY["vae"], 2)
    assert found["default"] == pytest.approx(found["all"] / 2), "1,000 of 2,000"
    chosen = validation.choice(0)
    assert chosen["rows"] == 3 and chosen["20"] >= 0.0 and chosen["50"] >= 0.0
