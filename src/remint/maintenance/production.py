"""Checks of ``remint doctor --production``: every part is tried for real. What a check writes, it deletes again.

Prefect's part, and the clocks of servers, are in flows/stack/production.py.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path

from remint.distributed import machine
from remint.distributed import probe as devices_probe
from remint.errors import RemintError
from remint.maintenance.doctor import Symptom
from remint.runtime.home import Home
from remint.settings.params import Params
from remint.stores import s3
from remint.stores.dvc.reach import probe as probe_remote
from remint.stores.ledger.probe import probe as probe_ledger
from remint.stores.mlflow.probe import probe as probe_artifacts
from remint.stores.open import open_tracking

SKEW = 5.0  # seconds between two clocks; a server's header has whole seconds
OLDEST = (14, 0)  # PostgreSQL that Prefect supports
TEMPORARY = 2**30  # bytes that should be free for temporary files
RULES = Path("deploy/prometheus/alerts.yml")


def examine(home: Home, params: Params | None) -> Iterator[Symptom]:
    """Try the stores, the devices and the alert rules."""
    yield from _shared(home)
    yield from _ledger(home)
    yield from _remote(home)
    if params is not None and params.pipelines:
        yield from _artifacts(home, next(iter(params.pipelines)))
    yield from _bucket(home)
    yield from _temporary()
    yield from _devices(params)
    yield from _rules(home.repository)


def clock_of_header(about: str, server: str, date: str, began: float) -> Iterator[Symptom]:
    """Compare the header Date of an answer with this machine's clock. ``began``: time of the request."""
    if date:
        ahead = parsedate_to_datetime(date).timestamp() + 0.5 - (began + time.time()) / 2  # it is rounded down to seconds
        yield from clock(about, server, ahead)


def clock(about: str, server: str, ahead: float) -> Iterator[Symptom]:
    """Compare a server's clock with this machine's. ``ahead``: seconds that it is ahead."""
    if abs(ahead) > SKEW:
        yield Symptom(
            about=about,
            level="warning",
            what=f"The clock of {server} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's.",
            why="Schedules start at other times than they say, and S3 refuses requests of a clock that is minutes off.",
            do="timedatectl set-ntp true    # on both machines",
        )


def _shared(home: Home) -> Iterator[Symptom]:
    """Find stores of one host only."""
    local = [
        variable
        for variable, address in (("REMINT_LEDGER", home.ledger_url), ("MLFLOW_TRACKING_URI", home.tracking_uri))
        if address.startswith("sqlite")
    ]
    if local:
        yield Symptom(
            about="home",
            level="warning",
            what=f"{' and '.join(local)} {'is a file' if len(local) == 1 else 'are files'} of this host.",
            why="Other hosts have a ledger and a registry of their own, and each promotes what it knows.",
            do=f"export {' '.join(f'{variable}=ADDRESS' for variable in local)}    # docs/how-to/production.md has the addresses",
        )


def _ledger(home: Home) -> Iterator[Symptom]:
    if home.ledger_url.startswith("sqlite") and not (home.path / "ledger.db").exists():
        return  # the first run makes it, and _shared warns of the file
    try:
        found = probe_ledger(home.ledger_url)
    except RemintError as error:
        yield _failed(
            "ledger", error, "GRANT ALL ON ALL TABLES IN SCHEMA public TO ..;    # in its database, for the role of REMINT_LEDGER"
        )
        return
    if found.schema != found.newest:
        yield Symptom(
            about="ledger",
            level="missing",
            what=f"The ledger has {f'schema {found.schema}' if found.schema else 'no tables'}, this remint has {found.newest}.",
            why="Servers of models migrate nothing, and refuse to start.",
            do="remint models",
        )
    if found.server and found.server < OLDEST:
        yield Symptom(
            about="ledger",
            level="warning",
            what=f"The ledger's PostgreSQL is {'.'.join(map(str, found.server))}, older than {OLDEST[0]}.",
            why="Prefect and MLflow are not tested with it.",
            do="pg_upgrade, after pg_dump of every database.",
        )
    yield from clock("ledger", "the ledger's database", found.ahead)


def _remote(home: Home) -> Iterator[Symptom]:
    if not (home.repository / ".dvc" / "config").exists():
        return  # reported by the other checks
    try:
        kept = probe_remote(home)
    except RemintError as error:
        yield _failed("dvc", error, "Give this machine s3:PutObject and s3:GetObject on the remote: docs/how-to/use-s3.md")
        return
    yield from _kept("dvc", kept)


def _artifacts(home: Home, pipeline: str) -> Iterator[Symptom]:
    try:
        kept = probe_artifacts(open_tracking(home), pipeline)
    except RemintError as error:
        yield _failed("mlflow", error, f"Give this user EDIT of the experiment {pipeline}: docs/how-to/production.md")
        return
    yield from _kept("mlflow", kept)


def _bucket(home: Home) -> Iterator[Symptom]:
    """Compare the clock of S3, if something is there. Its other faults are found by the probes."""
    for where, url in (("REMINT_DVC_REMOTE", home.dvc_remote), ("REMINT_ARTIFACTS", home.artifacts)):
        if url is not None and url.startswith(s3.SCHEME):
            began = time.time()
            with suppress(RemintError):
                yield from clock_of_header("s3", f"the S3 server of {where}", s3.answers(where, url), began)
            return


def _failed(about: str, error: RemintError, do: str) -> Symptom:
    return Symptom(
        about=about,
        level="missing",
        what=f"A probe could not be written and read back: {error}.",
        why="A run fails when it stores its result.",
        do=do,
    )


def _kept(about: str, why: str) -> Iterator[Symptom]:
    """Tell a probe that could not be deleted. Jobs need no right to delete."""
    if why:
        yield Symptom(
            about=about,
            level="note",
            what=f"A probe of 64 bytes could be written and read, and not deleted: {why}.",
            why="remint gc --apply cannot remove anything from here.",
            do="Nothing, if another host has that right: delete the probe there.",
        )


def _temporary() -> Iterator[Symptom]:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < TEMPORARY:
        yield Symptom(
            about="disk",
            level="warning",
            what=f"Only {free / 2**30:.1f} GiB are free in {folder}.",
            why="Models are packed there before they are registered.",
            do="export TMPDIR=/a/larger/disk",
        )


def _devices(params: Params | None) -> Iterator[Symptom]:
    """Let the devices compute, and exchange a number as the ranks of a training do."""
    import torch

    gpus, have = torch.cuda.device_count(), machine.devices()
    asked = max((each.training.devices for each in (params.pipelines if params else {}).values()), default=1)
    count = gpus or min(asked, have)
    if gpus or count > 1:
        try:
            devices_probe.probe(count)
        except RemintError as error:
            backend = "NCCL" if gpus else "gloo"
            yield Symptom(
                about="torch",
                level="missing",
                what=f"{count} {'GPUs' if gpus else 'processes'} with {backend} failed: {error}.",
                why="Trainings on several devices fail or hang.",
                do="NCCL_DEBUG=INFO .venv/bin/python -m torch.distributed.run --standalone "
                f"--nproc-per-node={count} -m remint.distributed.probe    # shows the cause",
            )
    if gpus and find_spec("pynvml") is None:
        yield Symptom(
            about="torch",
            level="note",
            what="The package nvidia-ml-py is not installed.",
            why="MLflow and the exporter show no use of GPUs.",
            do=".venv/bin/pip install nvidia-ml-py",
        )


def _rules(repository: Path) -> Iterator[Symptom]:
    rules, promtool = repository / RULES, shutil.which("promtool")
    if not rules.exists():
        what = f"{RULES} is missing."
    elif promtool is None:
        return  # Prometheus may run on another host
    else:
        done = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        what = f"promtool refuses {RULES}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}."
    yield Symptom(
        about="alerts",
        level="warning",
        what=what,
        why="Nobody is told when retrainings fail or the ledger is changed.",
        do=f"git checkout origin/HEAD -- {RULES}",
    )
