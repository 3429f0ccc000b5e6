"""Eight retrainings of one name that end at once: first with eight models, then all with the same one.

python -m tests.support.registry_together HOME    for each number on standard input, a trial on a copy of HOME; prints a line of JSON

Processes are forked after the imports, open every store again, and begin when all of them exist.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from remint.runtime.home import Home
from remint.serving import fresh
from tests.support import registry_cases as cases
from tests.support.promotion_cases import copy_home
from tests.support.registry_kills import forked_check, run_in_fork

COUNT = 8
NAME = "digits-flow"


def register_together(home: Path, bundles: list[Path], draw: random.Random) -> list[int]:
    """Register these bundles in simultaneous processes. Return the version numbers they received."""
    ready, go = os.pipe()
    told, tell = os.pipe()
    children = []
    for bundle in bundles:
        gc.freeze()  # else the child's first collection copies all pages
        late, child = draw.uniform(0.0, 0.02), os.fork()
        if not child:
            os.close(go)
            os.read(ready, 1)  # returns in all children when the parent closes its end
            time.sleep(late)
            os.write(tell, f"{cases.mlflow_lifecycle(home, bundle).version}\n".encode())
            os._exit(0)
        children.append(child)
    for each in (go, tell, ready):
        os.close(each)
    with os.fdopen(told) as stream:
        versions = [int(line) for line in stream]
    assert not any(os.waitpid(child, 0)[1] for child in children)
    return sorted(versions)


def findings(home: Path) -> list[str]:
    """Return the problems in the home after the registrations."""
    store = cases.tracking(home)
    versions = store.versions(NAME)
    found = [] if len({each.key for each in versions}) == len(versions) == COUNT + 1 else [f"{[each.key for each in versions]}"]
    for version in versions:
        forked_check(store.fetch(version, home / "models" / version.key), home / "log")
    runs = store._client.search_runs([store._client.get_experiment_by_name(NAME).experiment_id])
    return found + [f"run {run.info.run_id} is {run.info.status}" for run in runs if run.info.status != "FINISHED"]


def trial(empty: Path, bundles: list[Path], number: int) -> dict[str, Any]:
    home = empty.with_name(f"home-{number}")
    run_in_fork(lambda: copy_home(Home(empty, empty), home) and None)
    draw = random.Random(number)
    different = register_together(home, draw.sample(bundles[:COUNT], COUNT), draw)
    same = register_together(home, [bundles[COUNT]] * COUNT, draw)
    found = run_in_fork(lambda: findings(home))
    shutil.rmtree(home)
    return {"different": different, "same": same, "found": found}


def main(empty: Path) -> None:
    import mlflow.pyfunc
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.system_metrics.system_metrics_monitor  # noqa: F401 (imported once, before the forks)

    torch.set_num_threads(1)
    fresh.check = forked_check
    bundles = [empty.with_name(f"bundle-{seed}") for seed in range(COUNT + 1)]
    for seed, bundle in enumerate(bundles):
        cases.make_bundle(bundle, seed)
    for line in sys.stdin:
        print(json.dumps(trial(empty, bundles, int(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
