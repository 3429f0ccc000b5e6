"""Time training loops: a bare loop, remint's, remint's compiled, and those of other libraries, in one run on one thread.

    .venv/bin/pip install -e '.[bench]'        # for the libraries; one that is not installed is left out
    .venv/bin/python -m benchmarks.throughput [--rounds N] [--compiled CASE,..] [CASE ...]

A case is a family or a library and a number of pixels, such as vae-8 or zuko-8; without cases, all are measured.

A share is the time of a bare loop of the same network over the time of a loop: 1 is a loop that costs nothing. The bare loop has
random batches, fused AdamW, and nothing else. Ours has the average, the check that all is finite, checkpoints, the curve and the
guard on; at 8 px, the score of the validation split is another column. The loops run in turns, in an order that rotates, and the
median over the rounds counts. Building a model is not timed. The first round of a compiled training tells the seconds to compile,
which are not in its share; inductor keeps compiled kernels on disk, and then it takes less.

Time is processor time: each loop has one thread, and on a machine that is busy otherwise the clock says little. The shares by the
clock are in docs/results/throughput.json, which this writes, with the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from collections.abc import Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import loops, peers
from benchmarks.loops import FAMILIES, Timing
from benchmarks.peers import Entrant
from remint.distributed.machine import deterministic, fingerprint

ROUNDS = 5
SHARE, TIMES = 0.97, 1.6  # the claims: of the bare loop; times the share of a peer at 8 px
SIDES = (8, 32)
LIGHTNING = ("vae", "gan")  # families that Lightning trains
OWN = {"pythae": ("vae", (8, 32)), "zuko": ("flow", (8,)), "normflows": ("flow", (8, 32))}  # its family, the sides of its images
OUT = Path(__file__).parents[1] / "docs/results/throughput.json"


def race(entrants: Mapping[str, Entrant], rounds: int) -> dict[str, Any]:
    """Run all in turns, and return the summary of each. One of them is ``bare``."""
    names = list(entrants)
    turns: list[dict[str, Timing]] = []
    for turn in range(rounds):
        first = turn % len(names)
        turns.append({name: entrants[name]() for name in names[first:] + names[:first]})
    return {name: summary([(turn["bare"], turn[name]) for turn in turns]) for name in names}


def summary(pairs: list[tuple[Timing, Timing]]) -> dict[str, Any]:
    """Summarise the timings of one loop, each with that of the bare loop of its round: medians over the rounds."""
    shares = [bare.processor_step / own.processor_step for bare, own in pairs]
    result = {
        "step_ms": statistics.median(own.processor_step for _, own in pairs) * 1e3,
        "share": statistics.median(shares),
        "least_share": min(shares),
        "greatest_share": max(shares),
        "clock_step_ms": statistics.median(own.step for _, own in pairs) * 1e3,
        "clock_share": statistics.median(bare.step / own.step for bare, own in pairs),
    }
    compiled = pairs[0][1].compile_seconds
    return result | ({"compile_seconds": compiled} if compiled else {})


def family_race(name: str, side: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Race the loops that train our network of a family. ``compiled``: also ours with compiled phases."""
    entrants: dict[str, Entrant] = {
        "bare": partial(loops.bare, name, side),
        "ours": partial(loops.ours, name, side),
    }
    if side == 8 and name != "gan":  # a GAN has no likelihood
        entrants["scored"] = partial(loops.ours, name, side, scored=True)
    if compiled:
        entrants["compiled"] = partial(loops.ours, name, side, compiled=True)
    if name in LIGHTNING and peers.installed("lightning"):
        entrants["lightning"] = partial(peers.lightning, name, side)
    return race(entrants, rounds)


def peer_race(name: str, side: int, rounds: int) -> dict[str, Any]:
    """Race a library that trains its own network, and a bare loop of that network."""
    bare, peer = {"pythae": peers.pythae, "zuko": peers.zuko, "normflows": peers.normflows}[name](side)
    return race({"bare": bare, name: peer}, rounds)


def comparisons(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return our share over each peer's, of the same family and side: as it is, and compiled."""
    found = []
    for key, result in results.items():
        name, side = key.split("-")
        peer = "lightning" if name in FAMILIES else name
        ours = results.get(key if name in FAMILIES else f"{OWN[name][0]}-{side}")
        if peer in result and ours is not None:
            share = result[peer]["share"]
            times = {kind: ours[kind]["share"] / share for kind in ("ours", "compiled") if kind in ours}
            found.append({"peer": peer, "case": key, "share": share, "times": times})
    return found


def row(key: str, result: Mapping[str, Any]) -> str:
    """Return one line of the table."""
    parts = [f"{key:14} bare {result['bare']['step_ms']:8.2f} ms"]
    for name, values in result.items():
        if name != "bare":
            seconds = f" (after {values['compile_seconds']:.0f} s)" if "compile_seconds" in values else ""
            parts.append(f"{name} {values['share']:.3f}{seconds}")
    return "   ".join(parts)


def write(results: Mapping[str, Any], rounds: int, load: tuple[float, float]) -> None:
    """Write all that was measured so far. ``load``: the load averages before and now."""
    record = {
        "date": date.today().isoformat(),
        "machine": fingerprint(torch.device("cpu"), 1, 1),
        "load_average": load,
        "rounds": rounds,
        "networks_32px": loops.CONVOLUTIONAL,
        "batch": loops.BATCH,
        "results": results,
        "against_peers": comparisons(results),
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")


def cases() -> list[str]:
    """Return all cases whose library is installed, and print one line for each that is not."""
    for name in ("lightning", *OWN):
        if not peers.installed(name):
            print(f"{name} is not installed and left out: pip install -e '.[bench]'")
    own = [f"{name}-{side}" for name, (_, sides) in OWN.items() if peers.installed(name) for side in sides]
    return [f"{name}-{side}" for side in SIDES for name in FAMILIES] + own


def missed_bounds(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each bound that was missed."""
    shares = {key: result["ours"]["share"] for key, result in results.items() if "ours" in result}
    missed = [f"{key}: ours is {share:.3f} of the bare loop, not {SHARE}" for key, share in shares.items() if share < SHARE]
    for found in comparisons(results):
        best = max(found["times"].values())
        if found["case"].endswith("-8") and best < TIMES:
            missed.append(f"{found['case']}: ours is {best:.2f} times the share of {found['peer']}, not {TIMES}")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.throughput")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compiled", metavar="CASE,..", help="the cases that are compiled too; without it, all")
    chosen = parser.parse_args()
    loops.silence_events()
    warnings.simplefilter("ignore")  # of other libraries, about their own use of torch
    before, every = os.getloadavg()[0], cases()
    compiled = every if chosen.compiled is None else chosen.compiled.split(",")
    results: dict[str, Any] = {}
    with deterministic(threads=1):
        loops.bare("vae", 8)  # the first training of a process imports parts of torch
        for case in chosen.cases or every:
            name, side = case.split("-")
            if name in FAMILIES:
                results[case] = family_race(name, int(side), chosen.rounds, compiled=case in compiled)
            else:
                results[case] = peer_race(name, int(side), chosen.rounds)
            print(row(case, results[case]), flush=True)
            write(results, chosen.rounds, (before, os.getloadavg()[0]))
    for found in comparisons(results):
        times = ", ".join(f"{kind} {value:.2f}" for kind, value in found["times"].items())
        print(f"{found['case']:14} times the share of {found['peer']}: {times}")
    if missed := missed_bounds(results):
        raise SystemExit("bounds missed:\n" + "\n".join(missed))


if __name__ == "__main__":
    main()
