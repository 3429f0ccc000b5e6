"""Mailbox of a training on several machines: a Ray actor on the job's machine. Ray sends this module by value, as node.py."""

from __future__ import annotations

from typing import Any


class Mailbox:
    """Actor through which the job and the machines of one training speak."""

    def __init__(self, code: list[Any], checkpoints: dict[str, list[Any]]) -> None:
        self.code = code[0]
        self.checkpoints = {name: one for name, (one,) in checkpoints.items()}  # by name, as they are on the machine that leads
        self.stop = False
        self.messages: list[tuple[Any, ...]] = []

    def begin(self, leads: bool, size: int) -> tuple[Any, dict[str, Any]]:
        """Return the code, and the checkpoints for the machine that leads, by reference. ``size``: number of machines."""
        if leads:
            self.messages.append(("begin", size))
        return self.code, self.checkpoints if leads else {}

    def put(self, kind: str, *content: Any) -> None:
        """Take a message of a machine. Files stay in the store of this machine: that of the sender may be lost."""
        import ray

        content = tuple(ray.put(each) if isinstance(each, bytes) else each for each in content)
        if kind == "checkpoint":
            name, archive, names = content
            self.checkpoints = {each: one for each, one in self.checkpoints.items() if each in names} | {name: archive}
        self.messages.append((kind, *content))

    def stopping(self) -> bool:
        """Return whether the job was asked to stop."""
        return self.stop

    def take(self, stop: bool) -> list[tuple[Any, ...]]:
        """Return the messages since the last call. ``stop``: the job was asked to stop."""
        self.stop, messages, self.messages = stop, self.messages, []
        return messages
