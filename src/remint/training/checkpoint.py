"""Checkpoints on disk: HOME/checkpoints/DIGEST/step-00000500/, whole or not at all, verified before use.

DIGEST is that of everything which decides the weights (data, recipe, code), so that no training ever takes up
another's. One process writes in a folder at a time. The last two checkpoints are kept: a damaged one is found by
its manifest and set aside under another name, for a person to look at, and the one before is used. When the model that
they led to is safely written they are deleted, so that a training which is asked for again is a training and not a memory.

    step-00000500/     a checkpoint
    damaged-00000500/  one that was set aside
    diverged/          what is known of a training that failed (divergence.py)
    PREEMPTED          it was stopped by a signal, in good order: JSON, the step and the seconds that it took
    lock               who writes here
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from remint.errors import IntegrityError, RunError
from remint.runtime.events import emit
from remint.runtime.locks import locked_if_free
from remint.runtime.manifest import verify, whole_folder

KEPT = 2
TENSORS, NOTES, LOCK = "tensors.safetensors", "notes.json", "lock"
DIVERGED, PREEMPTED, DAMAGED = "diverged", "PREEMPTED", "damaged-"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training."""

    root: Path
    digest: str

    @property
    def folder(self) -> Path:
        return self.root / self.digest

    @property
    def diverged(self) -> Path:
        return self.folder / DIVERGED

    @property
    def preempted(self) -> Path:
        return self.folder / PREEMPTED

    def at(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, damaged or not, the newest last."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    @contextmanager
    def held(self, who: str) -> Iterator[None]:
        """Keeps the folder to this process while the block runs. Raises RunError, which says who else has it."""
        with _locked(self.folder / LOCK, who):
            for leftover in self.folder.glob(".*.tmp"):  # of a writer that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def write(self, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], keep: Collection[int] = ()) -> None:
        """Writes one, and deletes all but the last two and those of the steps ``keep``.

        Raises StorageError where the disk is full; the checkpoints before are then as they were.
        """
        with whole_folder(self.at(step), digest=self.digest, step=step) as folder:
            # Not save_file: it reports a full disk as an error of its own that has no errno.
            (folder / TENSORS).write_bytes(save(dict(tensors)))
            (folder / NOTES).write_text(json.dumps(notes))  # a curve that is NaN comes back as it was
        for old in self.steps()[:-KEPT]:
            if old not in keep:
                self._remove(self.at(old))

    def newest(self, among: Collection[int] | None = None) -> int | None:
        """The step of the newest checkpoint (of these steps) that is intact, None where there is none.

        Damaged ones are set aside, and named to whoever watches.
        """
        for step in reversed(self.steps()):
            if among is None or step in among:
                try:
                    self._verify(step)
                except IntegrityError as error:
                    emit("damaged_checkpoint", step=step, kept=str(self._set_aside(step)), message=str(error))
                else:
                    return step
        return None

    def _set_aside(self, step: int) -> Path:
        """Renames a damaged checkpoint, in place of one of the same step. It outlives the training, until ``remint gc``."""
        aside = self.folder / f"{DAMAGED}{step:08d}"
        if aside.exists():
            self._remove(aside)
        self.at(step).rename(aside)
        return aside

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._remove(self.at(later))

    def _remove(self, path: Path) -> None:
        """Deletes a folder, which is never seen with half of its files: ``held`` takes care of what a kill leaves."""
        going = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.rename(going)
        shutil.rmtree(going)

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors (on the CPU) and notes. Raises IntegrityError where a byte is not as it was written."""
        self._verify(step)
        folder = self.at(step)
        try:
            return load((folder / TENSORS).read_bytes()), json.loads((folder / NOTES).read_text())
        except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError, MemoryError) as error:  # sealed, and not by us
            raise IntegrityError(f"{folder} holds no checkpoint, though its manifest holds: {type(error).__name__}") from error

    def _verify(self, step: int) -> None:
        manifest = verify(self.at(step))
        if manifest.get("digest") != self.digest or manifest.get("step") != step:
            raise IntegrityError(
                f"{self.at(step)} belongs to another training or step: its manifest says {manifest.get('digest')}"
            )

    def mark_preempted(self, seconds: float | None) -> None:
        """Says that the newest checkpoint is that of a stop in good order, so many seconds after the signal, if it came here."""
        about = {"step": self.steps()[-1], "seconds": None if seconds is None else round(seconds, 3)}
        self.preempted.write_text(json.dumps(about) + "\n")

    def delete(self) -> None:
        """Deletes the folder, but for what was set aside. Only while it is held."""
        for path in self.folder.iterdir():
            if not path.name.startswith(DAMAGED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with suppress(OSError):  # something was set aside
            self.folder.rmdir()


@contextmanager
def _locked(path: Path, who: str) -> Iterator[None]:
    """The lock of a training's folder, with its holder's name in it. The holder may delete both."""
    with ExitStack() as stack:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # its last holder deleted the folder just now
                free = stack.enter_context(locked_if_free(path))
                break
        if not free:
            holder = path.read_text(errors="replace")[:500].strip() if path.exists() else ""
            raise RunError(
                f"this training is already under way: {holder or 'another process'} writes its checkpoints; "
                "wait for it or stop it"
            )
        path.write_text(f"{who}, process {os.getpid()} on {socket.gethostname()}\n")
        yield
