"""The local stack in one terminal: Prefect server, MLflow server and worker, as the Procfile says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from flows import server
from remint.errors import SettingsError
from remint.home import Home

HONCHO = "from remint.step import die_with_parent; die_with_parent(); from honcho.command import main; main(['start'])"


def up(home: Home) -> int:
    """Runs the Procfile until Ctrl-C; its exit status. Other commands find the stack by HOME/stack.json."""
    if server.stack(home):
        raise SettingsError(f"the local stack of {home.path} is up already ({home.path}/stack.json says where)")
    home.prefect.mkdir(parents=True, exist_ok=True)
    prefect_port = os.environ.get("REMINT_PREFECT_PORT", "4200")
    mlflow_port = os.environ.get("REMINT_MLFLOW_PORT", "5000")
    addresses = {"prefect": f"http://127.0.0.1:{prefect_port}/api", "mlflow": f"http://127.0.0.1:{mlflow_port}"}
    environment = {
        **os.environ,
        **server.environment(home),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "PREFECT_API_URL": addresses["prefect"],
        "REMINT_HOME": str(home.path),
        "REMINT_PREFECT_PORT": prefect_port,
        "REMINT_MLFLOW_PORT": mlflow_port,
        "REMINT_MLFLOW_STORE": home.tracking_uri,
        "REMINT_MLFLOW_ARTIFACTS": home.artifacts,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }
    note = home.path / "stack.json"
    note.write_text(json.dumps(addresses) + "\n")
    stack = subprocess.Popen([sys.executable, "-c", HONCHO], cwd=home.repository, env=environment, start_new_session=True)
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda _sign, _frame: stack.terminate())  # honcho stops its children, then itself
    try:
        return 0 if stack.wait() in (0, -signal.SIGTERM, 128 + signal.SIGTERM) else 1
    finally:
        note.unlink(missing_ok=True)
