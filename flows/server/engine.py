"""Process of a flow run that a worker started: Prefect's own engine, which ends with its worker.

python -m flows.server.engine    the command of remint's deployments; Prefect passes the flow run by the environment
"""

from __future__ import annotations

import os
import runpy

from flows.server import client
from remint.runtime.parent import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    client.configure_proxy(os.environ.get("PREFECT_API_URL", ""))
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
