"""One step of a retraining as a flow run of its own, on a worker of any work pool. flows/elsewhere.py starts and follows it.

It needs no clone. The job's files come from the DVC remote, as the job's checkout has them: its commit, its overrides, its
dvc.lock. So do the inputs. The result and its entry of dvc's run cache go back there, and so do checkpoints while it trains:
another worker continues from them. Its log holds the events of the step, by which the retraining follows it.

The retraining keeps its lease. This run reads that lease, and cancels itself when it did not beat for UNATTENDED seconds; until
then the next retraining of the pipeline finds the run by its idempotency key. It holds a lease of its own, so two runs never do
one step at once, and the retraining sees whether it lives.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelling, Failed

from flows.server import place, relay, stopping
from flows.server.reconcile import reconcile
from flows.server.relay import Report
from remint.distributed import ranks
from remint.errors import LedgerError, RemintError
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import load_params
from remint.stores import git, s3
from remint.stores.dvc import Workspace, travel
from remint.stores.ledger import leases

UNATTENDED = 300.0  # seconds without a beat of the retraining's lease after which nobody waits for this step
SAVED = 20.0  # seconds between two looks for new checkpoints


@flow(name="step", persist_result=False)
def run_on_pool(pipeline: str, step: str, name: str, inputs: list[str], code: str, key: str) -> State[Any] | None:
    """Run one step of a pipeline. A RemintError ends the run as Failed, with its class and text as the message.

    Arguments: ``name`` the part behind @ of the step's stage; ``inputs`` the stages whose outputs it reads; ``code`` MD5 of
    the archive of the job's files; ``key`` digest of the step's command and inputs.
    """
    home, report = place.home_of_worker(), relay.reporter()
    try:
        with ExitStack() as stack:
            stack.enter_context(stopping.preemptible())
            _require_retraining(home, pipeline)
            job = stack.enter_context(jobs.live(home, pipeline=pipeline, flow_run=str(flow_run.id)))
            holder = leases.Holder.of(pipeline, job)
            stack.enter_context(leases.held(home, lease_name(step, pipeline), holder, lambda text: report(relay.notice(text))))
            stack.enter_context(_attended(home, pipeline))
            reconcile(home)
            stack.callback(git.remove, home.workspaces / job.id)
            workspace = _check_out(home, job, code)
            _run(home, workspace, pipeline, f"{step}@{name}", inputs, key, report)
    except RemintError as error:
        return Failed(message=f"{type(error).__name__}: {error}")
    finally:
        relay.flush()
    return None


def _require_retraining(home: Home, pipeline: str) -> None:
    """Raise LedgerError if no retraining of the pipeline is alive: this worker may have another ledger."""
    if leases.Leases(home.ledger_url).read(pipeline).holder is None:
        raise LedgerError(
            f"the ledger of the worker on {platform.node()} knows no retraining of {pipeline}: set REMINT_LEDGER there to that "
            "of the retraining"
        )


def lease_name(step: str, pipeline: str) -> str:
    """Return the name of the lease of a step that runs on a pool."""
    return f"{step} of {pipeline}"


def _check_out(home: Home, job: jobs.Job, code: str) -> Workspace:
    """Unpack the job's files into a workspace."""
    archive, folder = job.folder / "code.tar", home.workspaces / job.id
    travel.fetch_file(home, code, archive)
    ranks.unpack(archive.read_bytes(), folder)
    archive.unlink()
    git.run_git(folder, "init", "--quiet")  # a training on several machines packs the files that git does not ignore
    return Workspace(folder, home, logs=job.folder, git=False)


def _run(home: Home, workspace: Workspace, pipeline: str, stage: str, inputs: list[str], key: str, report: Report) -> None:
    """Run the stage, or restore it, and send its result."""
    step, _, name = stage.partition("@")
    workspace.pull(*inputs)
    for mended in workspace.repair_outputs(*inputs):
        report(relay.notice(mended))
    workspace.resolve()
    if step == "evaluate":
        for _, key_of_file, url, sha256 in s3.feature_files(pipeline, load_params(workspace.folder).pipeline(pipeline)):
            s3.fetch_file(home, key_of_file, url, sha256, lambda _: None)
    if step == "train":
        with _checkpoints(workspace, key) as folder:
            workspace.reproduce(step, name, report, {"REMINT_HOME": str(folder)})
    else:
        workspace.reproduce(step, name, report)
    workspace.record(stage)


@contextmanager
def _checkpoints(workspace: Workspace, key: str) -> Iterator[Path]:
    """Yield the home of one training, whose checkpoints are kept on the remote too while the block runs.

    They are removed when the block ends without an error: the training is done.
    """
    kept = workspace.checkpoints(key, workspace.home.checkpoints / key)
    kept.fetch()
    ended, saved = threading.Event(), kept.names

    def save() -> None:
        nonlocal saved
        names = kept.names
        if names - saved:
            with suppress(RemintError):  # the remote is away: the next look tries again
                kept.save()
                saved = names

    def follow() -> None:
        while not ended.wait(SAVED):
            save()

    thread = threading.Thread(target=follow, name="checkpoints", daemon=True)
    thread.start()
    try:
        yield kept.folder
    except BaseException:
        ended.set()
        thread.join()
        save()  # that of a stop
        raise
    ended.set()
    thread.join()
    kept.remove()


@contextmanager
def _attended(home: Home, pipeline: str) -> Iterator[None]:
    """Cancel this run if no retraining of the pipeline is alive for UNATTENDED seconds while the block runs."""
    ended, own = threading.Event(), flow_run.id

    def follow() -> None:
        rows, seen, since = leases.Leases(home.ledger_url), None, time.monotonic()
        while not ended.wait(leases.BEAT):
            try:
                now = rows.read(pipeline)
            except LedgerError:  # nothing is known, and the retraining cannot beat
                since = time.monotonic()
                continue
            if now != seen and now.holder is not None:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > UNATTENDED:
                with suppress(Exception), get_client(sync_client=True) as client:  # Prefect is away: again at the next look
                    client.set_flow_run_state(own, Cancelling(message="no retraining waits for this step"))
                    return

    thread = threading.Thread(target=follow, name="attended", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
