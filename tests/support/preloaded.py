"""Python processes forked from a server process that has already imported the large libraries.

    python preloaded.py SOCKET PID    the server, which is forked; it ends with the process PID

A run starts a dozen Python processes, and each needs one or two seconds of CPU time to import torch, mlflow or dvc.
``programs`` makes a folder with the programs ``python`` and ``remint``. For a step, for dvc and for a command of remint they
send their arguments, environment, folder and standard streams to the server, which forks a process that runs the program;
they forward signals, and return its exit status. remint's own code is imported after the fork. Prefect, which reads its settings
at import, reads them again where the program imports it. Every other program is executed as usual, as is one whose environment
contains a variable that a library reads when it is loaded.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import re
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

LIBRARIES = (
    *(
        "torch",
        "torch._dynamo",
        "torch.distributed",
        "safetensors.torch",
        "scipy.stats",
        "sklearn.datasets",
        "pandas",
        "matplotlib.pyplot",
    ),
    *("sqlalchemy.dialects.sqlite", "pydantic_settings", "httpx", "typer", "rich.live", "ruamel.yaml", "jinja2", "psutil"),
    *("mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *(
        "dvc.cli.parser",
        "dvc.repo",
        "dvc.stage.run",
        "dvc.scm",
        "scmrepo.git",
        "dulwich.repo",
        "networkx",
        "PIL.PngImagePlugin",
        "pyarrow.parquet",
    ),
    *("prefect.flows", "prefect.artifacts", "prefect.deployments", "prefect.input", "prefect.flow_runs", "prefect.events.worker"),
    *("uvicorn.main", "docket", "prefect.server.models", "prefect.server.schemas"),
)
READ_AT_LOAD = re.compile(r"PYTHON(?!PATH|UNBUFFERED|DONTWRITE)|OMP_|MKL_|ATEN_|ONEDNN_|TORCH|CUDA|LD_|MPL|TZ|FAKETIME")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

PROGRAM = """#!{python} -IS
import array, json, os, signal, socket, sys
arguments = {first} + sys.argv[1:]
kind, *rest = arguments[arguments[:1] == ["-P"]:] + [""]
known = ("pipelines.", "remint.serving.fresh", "remint.stores.dvc.", "tests.support.registry_", "tests.support.collect_cases")
if kind == "remint" or (kind == "-m" and rest[0].startswith(known)) or (kind == "-c" and any(part in rest[0] for part in ("from dvc.cli import main", "import uvicorn"))):
    server = socket.socket(socket.AF_UNIX)
    server.connect({address!r})
    asked = json.dumps([sys.argv[0], arguments, dict(os.environ), os.getcwd()]).encode()
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    server.sendmsg([len(asked).to_bytes(4, "big")], streams)
    server.sendall(asked)
    if server.recv(1) == b"y":
        for sign in {forwarded}:
            signal.signal(sign, lambda number, _: server.send(bytes([number])))
        status = int(server.recv(8) or -signal.SIGKILL)
        if status < 0:
            if status != -signal.SIGKILL:
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        os._exit(status)
os.execv({python!r}, [{python!r}] + ([{script!r}] + rest[:-1] if kind == "remint" else arguments))
"""


def programs(folder: Path, pid: int) -> None:
    """Start a server that ends with the process ``pid``. Write its client programs; put their folder first in PATH."""
    folder.mkdir()
    address, script = folder / "server", Path(sys.executable).parent / "remint"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("REMINT_", "PREFECT_", "PYTHONPATH"))
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-P", __file__, str(address), str(pid)]
        server = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    assert server.stdout and server.stdout.readline(), (folder / "log").read_text()
    for name, first in (("python", []), ("remint", ["remint"])):
        filled = {"first": first, "address": str(address), "forwarded": [int(sign) for sign in FORWARDED]}
        (folder / name).write_text(PROGRAM.format(python=sys.executable, script=str(script), **filled))
        (folder / name).chmod(0o755)
    return folder


class Server:
    """Server that forks a process for each connection, and reports how it ended."""

    def __init__(self, address: str, pid: int, environment: dict[str, str]) -> None:
        """Listen. ``environment``: the one in which the libraries were loaded, before they changed it."""
        self.own, self.selector = environment, selectors.DefaultSelector()
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(address)
        self.listening.listen(64)
        self.selector.register(self.listening, selectors.EVENT_READ, (self._accept,))
        self.selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (os._exit, 0))

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self.selector.select():
                call, *arguments = key.data
                call(*arguments)

    def _accept(self) -> None:
        client, _ = self.listening.accept()
        head, [(_, _, streams)], _, _ = client.recvmsg(4, 64)
        with client.makefile("rb") as stream:
            program, arguments, environment, folder = json.loads(stream.read(int.from_bytes(head, "big")))
        descriptors = array.array("i", streams)
        names = {name for name in {*environment, *self.own} if READ_AT_LOAD.match(name)}
        if any(environment.get(name) != self.own.get(name) for name in names):
            client.send(b"n")
            client.close()
        elif pid := os.fork():
            client.send(b"y")
            ended = os.pidfd_open(pid)
            self.selector.register(client, selectors.EVENT_READ, (self._forward, client, pid))
            self.selector.register(ended, selectors.EVENT_READ, (self._report, client, pid, ended))
        else:
            for key in list(self.selector.get_map().values()):
                os.close(key.fd)
            os.close(self.selector.fileno())  # type: ignore[attr-defined]
            client.close()
            _become(program, arguments, environment, folder, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def _forward(self, client: socket.socket, pid: int) -> None:
        """Send the process the signal that its client received; SIGKILL if the client is dead."""
        signals = client.recv(1) or bytes([signal.SIGKILL])
        os.kill(pid, signals[0])
        if signals[0] == signal.SIGKILL:
            self.selector.unregister(client)

    def _report(self, client: socket.socket, pid: int, ended: int) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(KeyError):
            self.selector.unregister(client)
        self.selector.unregister(ended)
        os.close(ended)
        with suppress(OSError):
            client.send(str(status).encode())
        client.close()


class _Prefect(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder that hides the preloaded Prefect until the program imports it, and then lets it read its settings again."""

    def __init__(self) -> None:
        self.hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "prefect"}
        self.spec = self.hidden["prefect"].__spec__

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "prefect":
            return None
        sys.meta_path.remove(self)
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self.hidden["prefect"]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.spec
        sys.modules.update(self.hidden)
        sys.modules["prefect.context"].refresh_global_settings_context()


def _become(program: str, arguments: list[str], environment: dict[str, str], folder: str, streams: array.array[int]) -> NoReturn:
    """Run the program as a new Python process would, and exit."""
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.executable = str(Path(program).with_name("python"))
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    importlib.invalidate_caches()
    sys.meta_path.insert(0, _Prefect())
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    status = 0
    try:
        safe = arguments[0] == "-P"
        kind, *rest = arguments[safe:]
        if kind == "remint":
            sys.argv = [program, *rest]
            importlib.import_module("remint.cli").main()
        elif kind == "-m":
            sys.argv = rest
            sys.path[:0] = [] if safe else [folder]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest[1:]]
            sys.path[:0] = [""]
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path]
    environment = dict(os.environ)
    for library in LIBRARIES:
        importlib.import_module(library)
    assert threading.active_count() == 1, threading.enumerate()
    server = Server(sys.argv[1], int(sys.argv[2]), environment)
    gc.collect()
    gc.freeze()
    print("serving", flush=True)
    server.serve()
