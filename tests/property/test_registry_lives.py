"""The registry agrees with a small model after any sequence of registrations, promotions, rejections, rollbacks, damage,
deletions, collections and kills, once the next command has run.

MLflow and the ledger are real, on SQLite; the versions are small flows; git and DVC have the objects that gc and audit read.
A process that dies between the ledger and MLflow is simulated by an append only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from remint.errors import ChampionChanged, IntegrityError, NotFoundError, SettingsError
from remint.maintenance import audit
from remint.maintenance.gc import collect_garbage
from remint.models.bundle import load_model
from remint.promotion import decide, queries
from remint.promotion.projection import sync_mlflow_to_ledger, tags_of
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.ledger.chain import Action, projection
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_tracking
from tests.support import collect_cases, registry_cases
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.trials import Trials

REGISTERED = 3  # versions at the start
VERSIONS = st.integers(1, REGISTERED + 1)  # the last one may not exist
SEEDS = st.integers(0, REGISTERED)
GATES = ("promoted", "kept", "refused", "awaiting_approval", "awaiting_shadow")
RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # if it exists: thousands of databases are made and flushed
COMMIT = "git init -q -b main && git add -A && git -c user.email=a@example.org -c user.name=A commit -qm first"


@cache
def template() -> Home:
    """Make a repository, to be copied, with an empty MLflow, data in DVC's remote, and versions."""
    folder = Path(tempfile.mkdtemp(prefix="remint-lives-", dir=RAM))
    for name, text in collect_cases.FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(["sh", "-c", COMMIT], cwd=folder, check=True)
    home = Home(folder, folder / ".remint").ensure()
    open_tracking(home).initialise()
    for seed in range(REGISTERED):
        register(home, seed)
    return home


def register(home: Home, seed: int) -> int:
    """Register a version as a training does: its data are on DVC's remote, its dvc.lock is attached."""
    file = b"the same for all"
    listing = json.dumps([{"md5": hashlib.md5(file).hexdigest(), "relpath": "own"}]).encode()
    held = {hashlib.md5(file).hexdigest(): file, f"{hashlib.md5(listing).hexdigest()}.dir": listing}
    for place in ("cache", "remote"):
        for name, content in held.items():
            path = home.dvc / place / "files/md5" / name[:2] / name[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    out = {"path": "x", "hash": "md5", "md5": list(held)[1], "size": len(file), "nfiles": 1}
    outs = {stage: {"cmd": "x", "outs": [out]} for stage in ("snapshot@digits", "prepare@digits")}
    lock = home.path / "dvc.lock"
    lock.write_text(json.dumps({"schema": "2.0", "stages": outs}))
    bundle = home.path / "bundles" / str(seed)
    if not bundle.exists():
        registry_cases.make_bundle(bundle, seed)
    commit = git.run_git(home.repository, "rev-parse", "HEAD").strip()
    tags = cases.TAGS.updated(VersionTags(commit=commit, dvc_lock_sha256=manifest.sha256_file(lock)))
    return registry_cases.register(open_tracking(home), bundle, tags=tags, attachments={"dvc.lock": lock}).version


class Lives(RuleBasedStateMachine):
    """State machine: the actions on each version, and the rows that must follow from them."""

    lived = 0  # number of state machines so far

    def __init__(self) -> None:
        super().__init__()
        type(self).lived += 1
        self.folder = tempfile.TemporaryDirectory(prefix="remint-lives-", dir=RAM)
        source, folder = template(), Path(self.folder.name) / "team"
        shutil.copytree(source.repository, folder, ignore=shutil.ignore_patterns("mlflow"))
        self.home = Home(folder, folder / ".remint")
        cases.copy_home(source, self.home.path)
        self.registered = {seed + 1: seed for seed in range(REGISTERED)}  # version: seed
        self.damaged: set[int] = set()
        self.verified = 0  # rows whose chain was checked
        self.collected = False
        self.rows: list[tuple[str, int, int | None]] = []  # action, version, champion after it
        self.patch = pytest.MonkeyPatch()  # a fresh process takes seconds: the bundle is loaded in this one
        self.patch.setattr("remint.promotion.decide.fresh.check", lambda bundle, log: load_model(bundle))

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    @property
    def champion(self) -> int | None:
        return self.rows[-1][2] if self.rows else None

    def is_vetoed(self, version: int) -> bool:
        """Return whether a person vetoed the version."""
        said = [
            action for action, about, _ in self.rows if about == version and action in ("promoted", "rejected", "rolled_back")
        ]
        return bool(said) and said[-1] != "promoted"

    def loads(self, version: int) -> bool:
        return version in self.registered and version not in self.damaged

    # Actions of people and processes.

    @rule(seed=SEEDS)
    def train(self, seed: int) -> None:
        """Register the same weights again, or new ones. This repairs a damaged version; a deleted one gets a new number."""
        known = {kept: version for version, kept in self.registered.items()}
        number = register(self.home, seed)
        if seed in known:
            assert number == known[seed]
            self.damaged.discard(number)
        else:
            assert all(number != about for _, about, _ in self.rows) and number not in self.registered, "no number comes twice"
            self.registered[number] = seed

    @rule(decided=st.lists(st.tuples(VERSIONS, st.sampled_from(GATES)), min_size=1, max_size=3), dies=st.booleans())
    def gate(self, decided: list[tuple[int, Action]], dies: bool) -> None:
        """Record decisions in turn; each process may die right after its row."""
        for version, action in decided:
            if version not in self.registered or (version == self.champion and action != "kept"):
                continue
            try:
                cases.append_row(self.home, action, version)
            except ChampionChanged:
                assert self.is_vetoed(version) and action in ("promoted", "awaiting_approval", "awaiting_shadow")
                continue
            assert not (self.is_vetoed(version) and action in ("promoted", "awaiting_approval", "awaiting_shadow"))
            self.rows.append((action, version, version if action == "promoted" else self.champion))
            if not dies:
                sync_mlflow_to_ledger(self.home, MODEL)

    @rule(version=VERSIONS, against=st.sampled_from(["judged", "none", "present"]) | VERSIONS)
    def promote(self, version: int, against: str | int) -> None:
        gate_rows = [row for row in open_ledger(self.home).rows(MODEL, version) if row.evidence]
        judged = gate_rows[-1].champion_before if gate_rows else None
        present: Any = self.champion if self.champion is not None else "none"
        given: Any = present if against == "present" else against
        believed = judged if given == "judged" else None if given == "none" else given
        try:
            decide.promote(self.home, f"{MODEL}/{version}", "a word", given, who="ada")
        except NotFoundError:
            assert version not in self.registered
        except SettingsError:
            assert version == self.champion or (given == "judged" and not gate_rows)
        except ChampionChanged:
            assert believed != self.champion
        except IntegrityError:
            assert version in self.damaged
        else:
            assert believed == self.champion and self.loads(version)
            self.rows.append(("promoted", version, version))

    @rule(version=VERSIONS)
    def reject(self, version: int) -> None:
        try:
            decide.reject(self.home, f"{MODEL}/{version}", "a word", who="ada")
        except NotFoundError:
            assert version not in self.registered
        except SettingsError:
            assert version == self.champion
        else:
            assert version != self.champion
            self.rows.append(("rejected", version, self.champion))

    @rule()
    def roll_back(self) -> None:
        stood = [
            after for action, _, after in reversed(self.rows) if action in ("promoted", "rolled_back") and after != self.champion
        ]
        fit = [version for version in stood if version is not None and self.loads(version) and not self.is_vetoed(version)]
        left = self.champion
        try:
            row = decide.rollback(self.home, MODEL, "a word", who="ada")
        except NotFoundError:
            assert left is None or not stood
        except IntegrityError:
            assert stood and not fit
        else:
            assert row.champion_after == fit[0]
            self.rows.append(("rolled_back", cast("int", left), fit[0]))

    # Faults.

    @rule(version=VERSIONS, gone=st.booleans())
    def damage(self, version: int, gone: bool) -> None:
        if self.loads(version):
            if gone:
                shutil.rmtree(cases.model_folder(self.home, version))
            else:
                cases.flip_bit(self.home, version)
            self.damaged.add(version)

    @rule(version=VERSIONS)
    def delete(self, version: int) -> None:
        if version in self.registered:
            cases.delete_version(self.home, version)
            del self.registered[version]
            self.damaged.discard(version)

    @rule(alias=st.sampled_from(["champion", "challenger"]), version=VERSIONS)
    def edit_alias(self, alias: str, version: int) -> None:
        if version in self.registered and self.rows:
            open_tracking(self.home).set_alias(MODEL, alias, version)

    @precondition(lambda self: self.champion is not None)
    @rule()
    def audit(self) -> None:
        damages = {found.damages for found in audit.findings(self.home)}
        assert (f"{MODEL}/{self.champion}" in damages) == (not self.loads(cast("int", self.champion)))

    @precondition(lambda self: self.rows and not self.collected)  # once in each life: dvc takes seconds
    @rule()
    def gc(self) -> None:
        self.collected = True
        try:
            answer = collect_garbage(self.home, remove=True, older_than=0, window=3, say=lambda text: None)
        except IntegrityError:
            return  # a root is damaged, so nothing is removed: the invariants below find every version
        kept = {version.version for version in open_tracking(self.home).versions(MODEL)}
        assert self.champion in kept and self.loads(cast("int", self.champion)) if self.champion is not None else True
        assert kept <= set(self.registered), answer
        self.damaged &= kept
        self.registered = {version: seed for version, seed in self.registered.items() if version in kept}

    # Invariants after the next command.

    @invariant()
    def mlflow_follows_the_ledger(self) -> None:
        sync_mlflow_to_ledger(self.home, MODEL)
        rows = open_ledger(self.home).rows(MODEL)
        assert [(row.action, row.version, row.champion_after) for row in rows] == self.rows
        wanted = {alias: number for alias, number in projection(rows).items() if number in self.registered}
        store = open_tracking(self.home)
        versions = store.versions(MODEL)
        assert {alias: version.version for version in versions for alias in version.aliases} == wanted
        assert {version.version for version in versions} == set(self.registered)
        assert len({version.key for version in versions}) == len(versions), "one version a key"
        tags = tags_of(rows)
        for version in versions:
            assert tags.get(version.version, VersionTags()).to_json().items() <= version.tags.to_json().items()
        if len(rows) > self.verified:
            self.verified = len(rows)
            assert queries.history(self.home, MODEL, verify=True).findings == ()
            assert sync_mlflow_to_ledger(self.home, MODEL) == []

    @invariant()
    def the_gate_promotes_no_vetoed_version(self) -> None:
        rows = open_ledger(self.home).rows(MODEL)
        for place, row in enumerate(rows):
            if row.action == "promoted" and row.evidence:
                assert decide.objection(rows_about(rows[:place], row.version)) is None

    @invariant()
    def the_champion_loads_unless_it_was_damaged(self) -> None:
        """Read from the store, without the copies on this machine."""
        if self.champion is None:
            return
        ref = f"{MODEL}/{self.champion}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                store = open_tracking(self.home)
                load_model(store.fetch(store.version(ref), Path(folder) / "bundle"))
        except (NotFoundError, IntegrityError):
            assert not self.loads(self.champion)
        else:
            assert self.loads(self.champion)


def rows_about(rows: list[LedgerRow], version: int) -> list[LedgerRow]:
    return [row for row in rows if row.version == version]


HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]
BATCH = 21  # lives of one trial: the first of a batch is always the simplest one


@pytest.mark.slow
@pytest.mark.case(24)
def test_lives(trials: Trials) -> None:
    """Hypothesis shrinks and prints a failing sequence."""
    of_batch = settings(
        max_examples=BATCH if trials.soak else 3,
        stateful_step_count=12,
        deadline=None,
        database=None,
        suppress_health_check=HEALTH,
    )
    for trial in trials(short=1, full=100):
        Lives.lived = 0
        run_state_machine_as_test(seeded(trial.random.randrange(2**32))(Lives), settings=of_batch)
        trial.note(lives=Lives.lived - 1, broken=0)
