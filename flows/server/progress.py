"""Events of a running job: sent to the terminal, if there is one, and to Prefect's log and artifacts."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from flows.server import run_log

run_log.install()

Listener = Callable[[str, str, dict[str, Any]], None]  # pipeline, event, fields

listeners: list[Listener] = []

# Notices for a person. About data that is usable as a whole:
NOTICES = {
    "set_aside": "{files} of {of} image files could not be used and were set aside: {named}",
    "ignored": "{files} files that are not images were ignored; the first is {first}",
    "dropped_rows": "{rows} of {of} rows were dropped because of missing values",
    "drift": "column {column} has mean {mean:.4g}, {scales:.0f} standard deviations from its first import ({before:.4g})",
    "leakage": "of {checked} held-out examples, {exact} exactly and {near} nearly match a training example",
    "split_by_occurrence": "most of the {rows} rows equal another: copies are divided between the splits (split.by: occurrence)",
    "split_by_group": "no group is in two splits: of {groups} groups, {train:.0%} of the examples are training, "
    "{validation:.0%} validation, {held_out:.0%} held out",
    "split_by_time": "the {rows} rows from {start} on are held out (split.time)",
    "start_kept": "held-out rows begin at {start}, as in an earlier import, not at {asked}: older ones may have been trained on",
    "test_folder": "the folders {folders} are read as labels: to keep {part} apart, set split: {{held_out: {part}}}",
    "split_by_source": "the {rows} examples of {held_out} are held out; {left_out} others, which equal one of them or are of its "
    "group, are left out",
    "few_held_out": "class {label} has only {count} held-out examples: metrics say little about it",
    "decision": "{subject}: {decision}",
    "dark": "no value in 16-bit files is above {highest}, but the schema reads 16 bits, so images are nearly black: "
    "raise schema_version by one to read {bits} bits",
    "hot": "99.9% of the values in 16 bits need {bits} bits only, so images are nearly black: where the brighter values are "
    "faults, clip them to {most} in the files, and raise schema_version by one",
    "misnamed": "{files} files are read by their content, not by the end of their name: {first} is {format}",
    "encoding": "{file} is read as {encoding}",
    "separator": "{file} is separated by {separator}",
    "decimal_comma": "{file} is read with decimal commas",
    "schema": "the schema was learnt from {learnt_from}; {fits} fits it",
    "reads_from_disk": "the training split ({size}) is read from disk during the training: {message}",
    "compiling": "torch.compile makes the phases faster; this takes some minutes",
    "compiled": "compiled in {seconds:.0f} s, which the training's time includes",
    # About a training that continues after a problem:
    "damaged_checkpoint": "{message}; it was set aside as {kept}, and the checkpoint before it is used",
    "skipped": "step {step} was skipped, {skipped} in all so far: {message}",
    "rolled_back": "at step {step} {message}: returns to step {to}, learning rate times {learning_rate:.3g} ({time} of {times})",
    "diverged_before": "this training diverged before (its record: {record}); it is tried again from step {step}",
    "waiting": "the training waits for {machines} machines with {needs} each: the cluster has {free}",
    "machines": "trains on {machines} machines, {processes} processes",
    "machine_lost": "a machine or a process of the cluster was lost: {processes} processes continue from the last checkpoint",
    "restarted": "{message}: it was killed, and all {processes} continue from the last checkpoint",
}

_LOGGED = {"notice", "workspace", "step", "ran", "restored", "registered", "decided", "unchanged"}


def tell(pipeline: str, event: str, **fields: Any) -> None:
    """Send an event to the listeners and to Prefect's log. "progress" events skip the log: Prefect has its progress artifact."""
    for listener in listeners:
        listener(pipeline, event, fields)
    if event in _LOGGED:
        _logger().info("%s %s", event, " ".join(f"{key}={value}" for key, value in fields.items()))


def reporter(pipeline: str, name: str) -> Callable[[dict[str, Any]], None]:
    """Return a receiver of a step's events. It reports progress, and updates Prefect's progress artifact at most every 2 s."""
    artifact: UUID | None = None
    updated = 0.0

    def on_event(event: dict[str, Any]) -> None:
        nonlocal artifact, updated
        if event["event"] in NOTICES:
            tell(pipeline, "notice", text=NOTICES[event["event"]].format(**event))
        if event["event"] != "progress":
            return
        tell(pipeline, "progress", name=name, **{key: value for key, value in event.items() if key not in ("event", "at")})
        if "step" in event and time.monotonic() - updated > 2.0:
            updated = time.monotonic()
            percent = 100.0 * event["step"] / event["steps"]
            if artifact is None:
                key, description = artifact_key(pipeline, name), f"{name} {pipeline}"
                created = create_progress_artifact(progress=percent, key=key, description=description)
                artifact = created if isinstance(created, UUID) else None
            else:
                update_progress_artifact(artifact, progress=percent)

    return on_event


def artifact_key(*parts: str) -> str:
    """Return an artifact's key in Prefect's form: lower-case letters, numbers and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def _logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("remint")
