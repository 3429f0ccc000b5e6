"""Deployments on the work pools that ``resources`` names. Any host may work for one, so they name no place of this host."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists
from prefect.types.entrypoint import EntrypointType

from flows.server import server
from flows.stack.deployments import ENGINE, POOL
from remint.errors import SettingsError
from remint.runtime.home import Home
from remint.settings.base import did_you_mean
from remint.settings.params import PARAMS, Params
from remint.stores import git


def job_variables(variables: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Return the job variables of runs on any host: they have the Python, the home and the folder of their worker."""
    own = {**server.STEADY, **environment, **variables.get("env", {})}
    return {"command": f"python {ENGINE}", **variables, "env": own}


def deploy_to(
    flow: Flow[..., Any], name: str, pool: str, variables: dict[str, Any], environment: dict[str, str], **settings: Any
) -> str:
    """Make or change one deployment whose runs need nothing of this host. Return its id."""
    made = RunnerDeployment.from_flow(
        flow,
        name,
        work_pool_name=pool,
        job_variables=job_variables(variables, environment),
        entrypoint_type=EntrypointType.MODULE_PATH,
        **settings,
    )
    return str(made.apply())


def install_steps(pool: str) -> None:
    """Make the deployment of steps on a pool, and the pool, of the type process, if it is missing. The calls are idempotent."""
    from flows.pool_step import run_on_pool

    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    about = "One step of a retraining, which starts it and waits for it. Made by remint worker and remint deploy."
    deploy_to(run_on_pool, pool, pool, {}, {}, description=about)


def check(params: Params) -> None:
    """Raise SettingsError if ``resources`` names a pool that Prefect does not have."""
    with get_client(sync_client=True) as client:
        known = sorted(pool.name for pool in client.read_work_pools())
    for name, pipeline in params.pipelines.items():
        resources = pipeline.resources
        wanted = {**resources.pools, **({"default": resources.default} if resources.default else {})}
        for step, pool in wanted.items():
            if pool.pool not in known and pool.pool != POOL:
                raise SettingsError(
                    f"{PARAMS}: pipelines.{name}.resources.{step}: "
                    + did_you_mean(f"pool '{pool.pool}'", pool.pool, [*known, POOL])
                    + f"; remint worker --pool {pool.pool} makes it"
                )


def address_of(home: Home, pipeline: str) -> str:
    """Return the address that a run of a pipeline clones. Raises SettingsError if there is none."""
    address = git.address(home.repository)
    if not address:
        raise SettingsError(
            f"{PARAMS}: pipelines.{pipeline}.resources.default: workers of this pool clone the origin of "
            f"{home.repository}, which has none: git remote add origin ADDRESS, and push"
        )
    return address
