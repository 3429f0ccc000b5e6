"""Checkpoints on disk: HOME/checkpoints/DIGEST/step-00000500/, written atomically, verified before use.

DIGEST is the digest of everything that decides the weights (data, recipe, code): a training never resumes from another's
checkpoint. One process at a time writes to a folder. The last two checkpoints are kept. A damaged one fails its manifest;
it is renamed for inspection, and the one before is used. After the trained model is written the checkpoints are deleted,
so that a repeated run trains again.

    step-00000500/     a checkpoint
    damaged-00000500/  a damaged checkpoint
    diverged/          record of a training that failed (divergence.py)
    PREEMPTED          the training was stopped by a signal after a checkpoint: JSON with the step and the seconds to stop
    lock               lock of the writing process, with its name
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
        """Return the steps with a checkpoint, damaged or not, the newest last."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    @contextmanager
    def held(self, who: str) -> Iterator[None]:
        """Lock the folder while the block runs. Raises RunError, with the holder's name, if another process has it."""
        with _locked(self.folder / LOCK, who):
            for leftover in self.folder.glob(".*.tmp"):  # of a writer that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def write(self, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], keep: Collection[int] = ()) -> None:
        """Write a checkpoint, and delete all but the last two and those of the steps ``keep``.

        Raises StorageError if the disk is full; the earlier checkpoints are then unchanged.
        """
        with whole_folder(self.at(step), digest=self.digest, step=step) as folder:
            # Not save_file: its own error for a full disk has no errno.
            (folder / TENSORS).write_bytes(save(dict(tensors)))
            (folder / NOTES).write_text(json.dumps(notes))  # NaN in a curve is kept: Python's json reads it back
        for old in self.steps()[:-KEPT]:
            if old not in keep:
                self._remove(self.at(old))

    def newest(self, among: Collection[int] | None = None) -> int | None:
        """Return the step of the newest intact checkpoint (among these steps), or None.

        Damaged ones are renamed, with an event.
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

    def intact(self) -> list[Path]:
        """Return the folders of the intact checkpoints, the newest last. Damaged ones are set aside, with an event."""
        found: list[Path] = []
        steps = self.steps()
        while (newest := self.newest(steps)) is not None:
            found.insert(0, self.at(newest))
            steps = [step for step in steps if step < newest]
        return found

    def _set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, replacing an earlier one of the same step. It is kept until ``remint gc``."""
        aside = self.folder / f"{DAMAGED}{step:08d}"
        if aside.exists():
            self._remove(aside)
        self.at(step).rename(aside)
        return aside

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._remove(self.at(later))

    def _remove(self, path: Path) -> None:
        """Rename a folder, then delete it: it never appears with half of its files. ``held`` removes leftovers of a kill."""
        going = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.rename(going)
        shutil.rmtree(going)

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read tensors (on the CPU) and notes. Raises IntegrityError if the files do not match the manifest."""
        self._verify(step)
        folder = self.at(step)
        try:
            return load((folder / TENSORS).read_bytes()), json.loads((folder / NOTES).read_text())
        except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError, MemoryError) as error:  # sealed by other code
            raise IntegrityError(
                f"{folder} matches its manifest but is not a readable checkpoint: {type(error).__name__}"
            ) from error

    def _verify(self, step: int) -> None:
        manifest = verify(self.at(step))
        if manifest.get("digest") != self.digest or manifest.get("step") != step:
            raise IntegrityError(
                f"{self.at(step)} belongs to another training or step: the digest in its manifest is {manifest.get('digest')}"
            )

    def mark_preempted(self, seconds: float | None) -> None:
        """Record a clean stop at the newest checkpoint, ``seconds`` after the signal; None: another rank got the signal."""
        about = {"step": self.steps()[-1], "seconds": None if seconds is None else round(seconds, 3)}
        self.preempted.write_text(json.dumps(about) + "\n")

    def delete(self) -> None:
        """Delete the folder except for damaged checkpoints. Call it only while the folder is locked (``held``)."""
        for path in self.folder.iterdir():
            if not path.name.startswith(DAMAGED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with suppress(OSError):  # not empty: it has a damaged checkpoint
            self.folder.rmdir()


@contextmanager
def _locked(path: Path, who: str) -> Iterator[None]:
    """Lock a training's folder and write the holder's name into the lock file. The holder may delete both."""
    with ExitStack() as stack:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # its last holder deleted the folder just now
                free = stack.enter_context(locked_if_free(path))
                break
        if not free:
            holder = path.read_text(errors="replace")[:500].strip() if path.exists() else ""
            raise RunError(
                f"this training already runs: {holder or 'another process'} writes its checkpoints; wait for it or stop it"
            )
        path.write_text(f"{who}, process {os.getpid()} on {socket.gethostname()}\n")
        yield
