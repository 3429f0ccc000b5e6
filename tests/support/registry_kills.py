"""Kills a process at each boundary of a registration and promotion, then runs the command again and checks the result.

python -m tests.support.registry_kills FOLDER SEED [POSTGRES]    one kill for each number on standard input, in an order from SEED

A boundary is the moment before or after a call with a persistent effect: MLflow's writing methods, the copy of each file
into its store, commits with writes, renames, and the check in another process. One undisturbed run records their order.
Then a process for each boundary kills itself (SIGKILL) there. Processes are forked after the imports and open every store
again. Each kill prints one line of JSON: the place and the problems found. No moment repeats before all others came once.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remint.errors import IntegrityError, SettingsError
from remint.promotion import decide
from remint.records import TrainedModel
from remint.runtime.home import Home
from remint.serving import fresh
from remint.stores.ledger.chain import projection
from remint.stores.open import open_ledger, open_tracking
from tests.support import registry_cases as cases

NAME = "digits-flow"
WRITES = (  # methods of MlflowClient
    "create_experiment",
    "create_run",
    "log_batch",
    "log_artifact",
    "log_artifacts",
    "set_tag",
    "set_terminated",
    "restore_run",
    "create_registered_model",
    "set_registered_model_tag",
    "create_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)
SCENES = {"first": 0, "next": 1}  # seed of the model; first: into an empty registry, next: beside a champion


@dataclass(frozen=True)
class Moment:
    scene: str
    place: int  # index in the scene's trace
    name: str


class Boundaries:
    """Wrappers around every call with a persistent effect; they kill this process at ``deadly``."""

    def __init__(self, home: Path, deadly: Moment | None) -> None:
        self.home, self.deadly = home, deadly
        self.trace: list[str] = []
        import mlflow
        import sqlalchemy as sa

        for method in WRITES:
            self._around(mlflow.MlflowClient, method, lambda *_, method=method, **__: method)
        self._around(shutil, "copyfile", lambda source, to, **_: "copy of a file" if self._ours(to) else None)
        self._around(os, "rename", lambda source, to, **_: "rename" if self._ours(to) else None)
        self._around(os, "replace", lambda source, to, **_: "rename" if self._ours(to) else None)
        self._around(fresh, "check", lambda *_, **__: "check in another process")
        self._around(sa.engine.RootTransaction, "commit", self._wrote)
        sa.event.listen(sa.engine.Engine, "after_cursor_execute", self._note)

    def _around(self, owner: Any, method: str, name: Callable[..., str | None]) -> None:
        real = getattr(owner, method)

        def call(*arguments: Any, **named: Any) -> Any:
            what = name(*arguments, **named)
            if what is None or threading.current_thread() is not threading.main_thread():  # MLflow's own sampling thread
                return real(*arguments, **named)
            self._reached(f"before {what}")
            answer = real(*arguments, **named)
            self._reached(f"after {what}")
            return answer

        setattr(owner, method, call)

    def _reached(self, name: str) -> None:
        self.trace.append(name)
        if self.deadly is not None and len(self.trace) == self.deadly.place + 1:
            assert name == self.deadly.name, f"{name} came where {self.deadly} was expected"
            os.kill(os.getpid(), signal.SIGKILL)

    def _ours(self, path: object) -> bool:
        return Path(str(path)).is_relative_to(self.home)

    @staticmethod
    def _note(connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        connection.info["wrote"] = connection.info.get("wrote") or statement.lstrip().startswith(("INSERT", "UPDATE", "DELETE"))

    @staticmethod
    def _wrote(transaction: Any) -> str | None:
        info = transaction.connection.info
        return f"commit of {Path(transaction.connection.engine.url.database).stem[:6]}" if info.pop("wrote", False) else None


class Stage:
    """Homes for the kills, each a copy of the scene's initial home. ``postgres``: address of a server, else SQLite."""

    def __init__(self, folder: Path, postgres: str = "") -> None:
        self.folder, self.postgres = folder, postgres
        for scene, seed in SCENES.items():
            cases.make_bundle(folder / scene, seed)
        run_in_fork(lambda: self._begin("template-first"))
        self.copy("template-first", "template-next")
        run_in_fork(lambda: self._command("template-next", "first"))

    def copy(self, template: str, name: str) -> None:
        shutil.copytree(self.folder / "homes" / template, self.folder / "homes" / name)
        if self.postgres:
            for database in ("mlflow", "ledger"):
                self._sql(f'CREATE DATABASE "{database}-{name}" TEMPLATE "{database}-{template}"')

    def remove(self, name: str) -> None:
        shutil.rmtree(self.folder / "homes" / name)
        if self.postgres:
            for database in ("mlflow", "ledger"):
                self._sql(f'DROP DATABASE "{database}-{name}" WITH (FORCE)')

    def _sql(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(statement)

    def _home(self, name: str) -> Home:
        path = self.folder / "homes" / name
        os.environ["REMINT_ARTIFACTS"] = str(path / "files")  # MLflow stores this path in each experiment
        if self.postgres:
            for variable, database in (("MLFLOW_TRACKING_URI", "mlflow"), ("REMINT_LEDGER", "ledger")):
                address = self.postgres.replace("/postgres?", f"/{database}-{name}?")
                os.environ[variable] = address.replace("postgresql:", "postgresql+psycopg:")
        return Home(path, path).ensure()

    def _begin(self, template: str) -> None:
        if self.postgres:
            for database in ("mlflow", "ledger"):
                self._sql(f'CREATE DATABASE "{database}-{template}"')
        home = self._home(template)
        open_tracking(home).initialise()
        open_ledger(home)

    def _command(self, name: str, scene: str) -> None:
        """Register as a job does, then promote as a person does. After a kill this runs a second time."""
        home = self._home(name)
        store, book = open_tracking(home), open_ledger(home)
        store.close_stale()  # first action of every job
        trained = TrainedModel.read(self.folder / scene / "training.json")
        run_id = store.start_run(NAME, {}, trained.recipe)
        attachments = {"training.json": self.folder / scene / "training.json"}
        version = cases.register(store, self.folder / scene, run_id, attachments=attachments, verify=lambda b: fresh.check(b, b))
        try:
            decide.promote(home, version.ref, "it is better", against=book.champion(NAME) or "none")
        except SettingsError as error:
            assert "is the champion already" in str(error), error

    def trace(self, scene: str) -> list[Moment]:
        """Return the boundaries of one undisturbed run."""
        self.copy(f"template-{scene}", f"trace-{scene}")

        def run() -> list[str]:
            around = Boundaries(self.folder, None)
            self._command(f"trace-{scene}", scene)
            return around.trace

        names = run_in_fork(run)
        self.remove(f"trace-{scene}")
        return [Moment(scene, place, name) for place, name in enumerate(names)]

    def kill(self, moment: Moment, name: str) -> list[str]:
        """Kill at this moment and run the command again. Return the problems: an empty list if all is correct."""
        self.copy(f"template-{moment.scene}", name)

        def dies() -> None:
            Boundaries(self.folder, moment)
            self._command(name, moment.scene)

        if run_in_fork(dies, dies=True) != -signal.SIGKILL:
            return ["it was not killed"]
        run_in_fork(lambda: self._command(name, moment.scene))
        findings: list[str] = run_in_fork(lambda: self._findings(name, moment.scene))
        self.remove(name)
        return findings

    def _findings(self, name: str, scene: str) -> list[str]:
        home = self._home(name)
        store, book = open_tracking(home), open_ledger(home)
        found = [f"stale run {run}" for run in store.close_stale()]
        versions = store.versions(NAME)
        keys = [TrainedModel.read(self.folder / each / "training.json").key for each in SCENES][: SCENES[scene] + 1]
        if [version.key for version in reversed(versions)] != keys:
            found.append(f"versions {[(version.version, version.key[:8]) for version in versions]}")
        for version in versions:
            try:
                fresh.check(store.fetch(version, home.path / "models" / version.key), home.path / "log")
            except IntegrityError as error:
                found.append(str(error))
        rows = book.rows(NAME)
        if store.aliases(NAME) != {alias: number for alias, number in projection(rows).items() if number is not None}:
            found.append(f"aliases {store.aliases(NAME)}, ledger {projection(rows)}")
        if [row.version for row in rows] != list(range(1, len(keys) + 1)):
            found.append(f"rows {[(row.action, row.version) for row in rows]}")
        hashes = {version.tags.ledger_hash or "none" for version in versions}
        found += book.verify(NAME, hashes)
        experiment = store._client.get_experiment_by_name(NAME).experiment_id
        running = store._client.search_runs([experiment], "attributes.status = 'RUNNING'")
        return found + [f"run {run.info.run_id} is RUNNING" for run in running]


def forked_check(bundle: Path, log: Path, environment: object = None) -> str:
    """Run fresh.check in a fork of this process, which has imported torch: 100 kills would import it 300 times."""
    run_in_fork(lambda: fresh._main(str(bundle)))
    return "loaded in a fork"


def run_in_fork(work: Callable[[], Any], dies: bool = False) -> Any:
    """Return the result of ``work`` in a child process; with ``dies`` the negative signal that ended it, or 0.

    Raises IntegrityError with the child's traceback.
    """
    receive, send = os.pipe()
    gc.freeze()  # else the child's first collection copies all pages
    child = os.fork()
    if not child:
        os.close(receive)
        try:
            text = json.dumps({"answer": work()})
        except BaseException:
            text = json.dumps({"error": traceback.format_exc()})
        with os.fdopen(send, "w") as stream:
            stream.write(text)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as stream:
        text = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answer = json.loads(text or "{}")
    if "error" in answer:
        raise IntegrityError(answer["error"])
    return status if dies else answer["answer"]


def choose_moment(moments: list[Moment], number: int, seed: int) -> Moment:
    """Return the moment of this number: none repeats before all others came once."""
    turn, place = divmod(number, len(moments))
    return random.Random(f"{seed} {turn}").sample(moments, len(moments))[place]


def main(folder: Path, seed: int, postgres: str = "") -> None:
    import mlflow.pyfunc
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.system_metrics.system_metrics_monitor  # noqa: F401 (imported once, before the forks)

    torch.set_num_threads(1)
    fresh.check = forked_check
    stage = Stage(folder, postgres)
    moments = [each for scene in SCENES for each in stage.trace(scene)]
    print(json.dumps({"moments": [(each.scene, each.name) for each in moments]}), flush=True)
    for line in sys.stdin:
        here = choose_moment(moments, int(line), seed)
        found = stage.kill(here, f"k{line.strip()}")
        print(json.dumps({"scene": here.scene, "place": here.place, "name": here.name, "found": found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
