"""Local stack in one terminal: Prefect server, MLflow server, worker and console, from the Procfile.

The worker is stopped first: its flows get time to finish and report their state to the servers. When it is gone, honcho stops
the servers. The console has a honcho of its own: nothing else needs it, so it is started again if it ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from flows.server import server
from flows.stack import ports
from remint.errors import SettingsError
from remint.runtime.home import Home
from remint.serving.app import access

EVERY = 2.0  # seconds between two looks at the console
HONCHO = """
import sys
from honcho.command import main
from remint.runtime.parent import die_with_parent
die_with_parent()
main(["start", *sys.argv[1:]])
"""


def up(home: Home) -> int:
    """Run the Procfile until Ctrl-C. Return its exit status. Other commands find the stack by HOME/stack.json.

    If MLFLOW_TRACKING_URI names a server, that one is used, and no MLflow server is started. Raises OrchestrationError if a port
    is taken, SettingsError if the console would refuse its settings, before anything starts.
    """
    if server.stack(home):
        raise SettingsError(f"the local stack of {home.path} is up already ({home.path}/stack.json holds its addresses)")
    access.check(os.environ.get("REMINT_SERVE_TOKEN"), os.environ.get("REMINT_SERVE_PERSON"))
    prefect_port, mlflow_port = ports.port_of("prefect"), ports.port_of("mlflow")
    addresses, needed = {"prefect": _prefect_address(prefect_port)}, {"prefect": prefect_port}
    if not home.tracking_uri.startswith("http"):
        addresses["mlflow"] = f"http://127.0.0.1:{mlflow_port}"
        needed["mlflow"] = mlflow_port
    needed["console"] = ports.port_of("console")
    ports.check_free(needed)
    for folder in (home.prefect, home.path / "mlflow"):  # MLflow makes no folder for an address with ?uri=true
        folder.mkdir(parents=True, exist_ok=True)
    environment = _environment(home, prefect_port, mlflow_port, needed["console"])
    note = home.path / "stack.json"
    note.write_text(json.dumps(addresses) + "\n")

    def start(*names: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HONCHO, *names]
        return subprocess.Popen(command, cwd=home.repository, env=environment, start_new_session=True)

    stack, console = start(*addresses, "worker"), start("console")
    asked = 0

    def stop(_sign: int, _frame: object) -> None:
        nonlocal asked
        asked += 1
        workers = _workers(stack.pid) if asked == 1 else []
        for worker in workers:
            worker.terminate()
        if not workers:
            stack.terminate()  # honcho then stops its children, with five seconds of grace

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, stop)
    try:
        while stack.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                stack.wait(EVERY)
            if console.poll() is not None and not asked:
                console = start("console")
        return 0 if asked else 1  # honcho stops the others if one part ends, and its status may be 0 then
    finally:
        console.terminate()
        console.wait()
        note.unlink(missing_ok=True)


def _environment(home: Home, prefect_port: int, mlflow_port: int, console_port: int) -> dict[str, str]:
    """Return the environment of the stack's processes."""
    return {
        **os.environ,
        **server.environment(home),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "PREFECT_API_URL": _prefect_address(prefect_port),
        "REMINT_HOME": str(home.path),
        "REMINT_PREFECT_PORT": str(prefect_port),
        "REMINT_MLFLOW_PORT": str(mlflow_port),
        "REMINT_CONSOLE_PORT": str(console_port),
        # Not on mlflow's command line, which all users of this machine can read: the address may hold a password.
        "MLFLOW_BACKEND_STORE_URI": home.tracking_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": home.artifacts,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{name}:{mlflow_port}" for name in ("127.0.0.1", "localhost")),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves eight processes that are not used here
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def _prefect_address(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"


def _workers(honcho: int) -> list[psutil.Process]:
    """Return the worker's process, if it has started."""
    found = []
    with suppress(psutil.Error):  # honcho has ended
        for child in psutil.Process(honcho).children(recursive=True):
            with suppress(psutil.Error):  # a process that ends meanwhile
                if child.cmdline()[1:] == ["-m", "flows.stack.worker"]:
                    found.append(child)
    return found
