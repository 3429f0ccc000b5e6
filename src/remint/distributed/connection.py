"""Connection to a Ray cluster. REMINT_CLUSTER is its address, HOST:PORT."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import signal
import socket
from typing import Any

from remint.errors import RemintError, ResourceError, SettingsError, UserError

CLUSTER = "REMINT_CLUSTER"
ANSWER = 10.0  # seconds for an answer of the cluster's port


def cluster_address() -> str | None:
    """Return REMINT_CLUSTER; None if it is not set. Raises SettingsError if it is no address."""
    address = os.environ.get(CLUSTER)
    if address and re.fullmatch(r"[^/\s]+:\d{1,5}", address) is None:
        raise SettingsError(f"{CLUSTER}: expected HOST:PORT, as ray start --head prints it, not {address[:60]!r}")
    return address or None


def connect(purpose: str, part: str, address: str, **own: Any) -> Any:
    """Return ray, connected to ``address``; auto: the cluster of this machine, local: a new one.

    ``part``: of ray, such as train, which ``purpose`` needs; ``own``: options of a new cluster. Raises UserError if it is not
    installed, ResourceError if no cluster answers, or does not take this process.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module(f"ray.{part}")
    except ImportError as error:
        raise UserError(f"{purpose} needs Ray ({error.name} is missing): pip install 'remint[cluster]'") from error
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address != "local":
            _probe(ray, address)
        ray.init(address=address, namespace="remint", log_to_driver=False, logging_level=logging.ERROR, **own)
    except RemintError:
        raise
    except ray.exceptions.AuthenticationError as error:
        raise ResourceError(
            f"the Ray cluster at {address} refuses this machine's token, or it has none: set RAY_AUTH_TOKEN to its token"
        ) from error
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"no Ray cluster answers at {address} ({why}): run ray start --head, or set {CLUSTER} to an address of one, and "
            "RAY_AUTH_TOKEN to its token"
        ) from error
    finally:
        for sign, handler in handlers.items():  # ray's own would end this process at once
            signal.signal(sign, handler)
    return ray


def _probe(ray: Any, address: str) -> None:
    """Raise at once if a cluster does not answer or take this process: ray.init would try for 20 s, and not say why."""
    authentication = importlib.import_module("ray._private.authentication.authentication_token_setup")
    authentication.ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    found = ray._private.services.canonicalize_bootstrap_address(address)
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    about = ray._raylet.GcsClient(address=found).internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster")
    if about is None:
        raise OSError("it is just starting")
    theirs = tuple(json.loads(about)[name] for name in ("ray_version", "python_version"))
    ours = ray._private.utils.compute_version_info()
    if theirs != ours:
        raise ResourceError(
            f"the Ray cluster at {address} has Ray {theirs[0]} and Python {theirs[1]}, this machine has Ray {ours[0]} and Python "
            f"{ours[1]}: install the same on all machines"
        )
