"""Steps on other work pools, as `resources:` of a pipeline names them: start, follow and stop the flow run of a step.

The run of a step (flows/pool_step.py) has an idempotency key: pool, pipeline, and the digest of the step's command and inputs.
So a retraining that was started again finds the run that works for it, whoever started it. When the run has ended, its result
is in the DVC remote, and dvc restores it here: the rest of the retraining does not know where a step ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.states import Cancelling

from flows.pool_step import lease_name
from flows.server import stopping
from flows.server.reconcile import crash
from flows.server.relay import RunLog
from remint.errors import Interrupted, LeaseLost, LedgerError, RunError, SettingsError, StepError, by_name
from remint.promotion.retraining import Retraining
from remint.runtime import processes
from remint.settings.params import PARAMS, Params
from remint.settings.resources import Pool
from remint.stores import git
from remint.stores.ledger.leases import Leases

OnEvent = Callable[[dict[str, Any]], None]

LOOK = 1.0  # seconds between two looks at a run
AWAY = 600.0  # seconds without an answer of Prefect's server after which the retraining ends
UNCLAIMED = 10.0  # seconds after which the retraining says what a run waits for
SILENT = 120.0  # seconds without a sign of a running step after which it is lost
RESTARTS = 5  # of a step whose process died
TRIES = 100  # runs of one step that are looked for
STOPPING = 20.0  # seconds that a stopped retraining waits for the end of its step


def check(params: Params, pipeline: str) -> None:
    """Raise SettingsError if a step of a pipeline has a pool for which no worker was set up."""
    pools = params.pipelines[pipeline].resources.pools
    if pools:
        with get_client(sync_client=True) as client:
            for step, pool in pools.items():
                _deployment(client, pipeline, step, pool)


def _deployment(client: SyncPrefectClient, pipeline: str, step: str, pool: Pool) -> str:
    """Return the name of the deployment of steps on a pool. Raises SettingsError if there is none."""
    name = f"step/{pool.pool}"
    try:
        client.read_deployment_by_name(name)
    except ObjectNotFound:
        known = ", ".join(sorted(each.name for each in client.read_work_pools())) or "none"
        raise SettingsError(
            f"{PARAMS}: pipelines.{pipeline}.resources.{step}: no worker of remint has served a pool '{pool.pool}' of this "
            f"Prefect server (its pools: {known}): start one by remint worker --pool {pool.pool}, or run all steps here by "
            "--set resources={}"
        ) from None
    return name


def reproduce(job: Retraining, step: str, name: str, on_event: OnEvent) -> bool:
    """Run one step, or restore it: in this process, or on the pool that ``resources`` names. Return whether it ran.

    Raises the error that ended the step.
    """
    pool = job.settings.resources.elsewhere(step)
    if pool is None:
        return job.dvc.reproduce(step, name, on_event)
    inputs, archive, ran = _inputs(job, step), job.record.folder / "code.tar", False
    stage = f"{step}@{name}"

    def watch(event: dict[str, Any]) -> None:
        nonlocal ran
        if event["event"] != "started" or not ran:  # a step that began again is one training
            on_event(event)
        ran = ran or event["event"] == "started"

    archive.write_bytes(git.pack(job.dvc.folder))
    offer = job.dvc.offer(stage, inputs, archive)
    archive.unlink()
    if not offer.known:
        parameters = {
            "pipeline": job.pipeline,
            "step": step,
            "name": name,
            "inputs": inputs,
            "code": offer.code,
            "key": offer.key,
        }
        _Step(job, step, pool, parameters, watch).run()
        if not job.dvc.recall(stage):
            raise StepError(
                f"{step} ended on the pool {pool.pool}, but its result is not in the DVC remote: does REMINT_DVC_REMOTE name the "
                "same place for its workers, and do they have the same plug-ins?"
            )
    if not job.dvc.restore(stage, "--single-item"):
        raise StepError(f"dvc cannot restore {stage} from its run cache: run again")
    return ran


def _inputs(job: Retraining, step: str) -> list[str]:
    """Return the stages whose outputs a step reads."""
    dataset, pipeline = job.settings.dataset, job.pipeline
    features = job.dvc.key("features", dataset, pipeline)
    return {
        "features": [f"prepare@{dataset}"],
        "train": [f"prepare@{dataset}"],
        "calibrate": [f"prepare@{dataset}", f"train@{pipeline}"],
        "evaluate": [f"prepare@{dataset}", f"features@{features}", f"train@{pipeline}"],
    }[step]


@dataclass
class _Step:
    """A step on a pool, followed from its start to its end."""

    job: Retraining
    step: str
    pool: Pool
    parameters: dict[str, Any]
    on_event: OnEvent
    said: str = ""
    sign: tuple[Any, ...] = ()  # of life
    signed: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run the step to its end. Raises the error that ended it."""
        for number in range(RESTARTS + 1):
            with get_client(sync_client=True) as client:
                run = self._find_or_start(client)
            self._tell(f"{self.step} runs on the pool {self.pool.pool}: flow run {run.name} ({run.id})")
            state = self._followed(run)
            if state.is_completed():
                return
            if state.is_failed():
                kind, _, text = (state.message or "").partition(": ")
                raise by_name(kind, text) if text else StepError(f"{self.step} failed on the pool {self.pool.pool}: {kind}")
            if state.is_cancelled() and "no retraining waits" not in (state.message or ""):
                raise RunError(f"{self.step} was cancelled in Prefect (flow run {run.name}): run again to continue it")
            self._tell(
                f"{self.step} was lost on the pool {self.pool.pool} ({state.message or state.name}): it starts again from its "
                f"last checkpoint, {number + 1} of at most {RESTARTS} times"
            )
        raise StepError(
            f"{self.step} was lost {RESTARTS + 1} times on the pool {self.pool.pool}: see its runs in Prefect, and run again"
        )

    def _find_or_start(self, client: SyncPrefectClient) -> FlowRun:
        """Return the run of this step that has not ended; without one start the next."""
        name = _deployment(client, self.job.pipeline, self.step, self.pool)
        keys = [f"{self.pool.pool} {self.job.pipeline} {self.parameters['key']} {number}" for number in range(1, TRIES + 1)]
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
        found = client.read_flow_runs(flow_run_filter=wanted)
        for run in found:
            if run.state is not None and not run.state.is_final() and not run.state.is_cancelling():
                return run
        used = {run.idempotency_key for run in found}
        key = next((key for key in keys if key not in used), None)
        if key is None:
            raise StepError(
                f"{self.step} has ended {TRIES} times on the pool {self.pool.pool}: delete its runs in Prefect to try again"
            )
        started = run_deployment(
            name,
            parameters=self.parameters,
            flow_run_name=f"{self.step} {self.job.pipeline}",
            timeout=0,
            idempotency_key=key,
            job_variables=self.pool.variables or None,
        )
        assert isinstance(started, FlowRun), "a coroutine only in asynchronous code"
        return started

    def _followed(self, run: FlowRun) -> State[Any]:
        """Follow a run to its end, and return its last state. If this retraining ends first, stop the run, unless it goes on."""
        log, answered, begun = RunLog(run.id), time.monotonic(), time.monotonic()
        try:
            while True:
                try:
                    with get_client(sync_client=True) as client:
                        state = self._look(client, run, log, begun)
                    answered = time.monotonic()
                except ObjectNotFound:
                    raise RunError(f"the flow run of {self.step} was deleted in Prefect: run again to continue it") from None
                except httpx.HTTPError:
                    if time.monotonic() - answered > AWAY:
                        raise
                else:
                    if state.is_final():
                        return state
                self.job.lease.check()
                if processes.stopping.wait(LOOK):
                    raise Interrupted(processes.AGAIN)
        except BaseException as error:
            if not self._goes_on(error):
                _cancel(run.id, 0.0 if isinstance(error, TerminationSignal) else STOPPING)
            raise

    def _look(self, client: SyncPrefectClient, run: FlowRun, log: RunLog, begun: float) -> State[Any]:
        """Pass new events on, and return the state of the run."""
        state = client.read_flow_run(run.id).state  # before the log: an ended run writes nothing more
        assert state is not None, "a run of a deployment has a state"
        for event in log.new_events(client):
            if event["event"] == "notice":
                self._tell(event["text"])
            else:
                self.on_event(event)
        if state.type in (StateType.RUNNING, StateType.CANCELLING):
            self._check_alive(run, log, state)
        elif not state.is_final() and time.monotonic() - begun > UNCLAIMED:
            self._say_waiting(client)
        return state

    def _check_alive(self, run: FlowRun, log: RunLog, state: State[Any]) -> None:
        """End the run as Crashed if its process gave no sign for SILENT seconds: its host is gone. Stop a run of an older job."""
        try:
            lease = Leases(self.job.home.ledger_url).read(lease_name(self.step, self.job.pipeline))
        except LedgerError:  # it cannot beat
            self.signed = time.monotonic()
            return
        holder = lease.holder
        other = holder is not None and holder.flow_run != str(run.id)
        if other and holder is not None and holder.flow_run and holder.is_over() is not True:
            _cancel(UUID(holder.flow_run), 0.0)
        sign = (run.id, state.id, log.place, lease)
        if sign != self.sign or other:
            self.sign, self.signed = sign, time.monotonic()
        elif time.monotonic() - self.signed > SILENT:
            crash(run.id, f"it gave no sign for {SILENT:.0f} s: its host is gone")

    def _say_waiting(self, client: SyncPrefectClient) -> None:
        pool = self.pool.pool
        online = [each for each in client.read_workers_for_work_pool(pool) if each.status == WorkerStatus.ONLINE]
        text = f"{self.step} waits for a worker of the pool {pool}: "
        text += (
            f"{len(online)} online, busy or starting it" if online else f"none is online; remint worker --pool {pool} starts one"
        )
        if text != self.said:
            self.said = text
            self._tell(text)

    def _goes_on(self, error: BaseException) -> bool:
        """Return whether another process will wait for this run: a job that took the lease over, or this flow run, resumed."""
        if isinstance(error, LeaseLost):
            return True
        if not isinstance(error, TerminationSignal) or not stopping.is_deployed():
            return False
        return not stopping.is_cancelled()

    def _tell(self, text: str) -> None:
        self.job.tell("notice", text=text)


def _cancel(run: UUID, patience: float) -> None:
    """Cancel a run, and wait for its end. If Prefect is away, the run cancels itself once no retraining is alive."""
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": stopping.PATIENCE}) as client:
            state = client.read_flow_run(run).state
            if state is None or state.is_final():
                return
            if not state.is_cancelling():
                client.set_flow_run_state(run, Cancelling(message="the retraining that waited for it was stopped"))
            until = time.monotonic() + patience
            while time.monotonic() < until:
                state = client.read_flow_run(run).state
                if state is None or state.is_final():
                    return
                time.sleep(LOOK)
    except (ObjectNotFound, httpx.HTTPError):
        return
