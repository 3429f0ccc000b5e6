"""YAML from outside as plain values, by the YAML 1.2 rules that dvc reads it with; no tag makes anything else of it.

Aliases and merged blocks are written out by whoever walks through the values: a file of a kilobyte can hold more of them than
any memory. So they are counted first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

LARGEST = 1 << 20  # bytes of a file, and values and characters in it where each alias is written out
DEEPEST = 50  # blocks in blocks
GROWS = "its aliases and blocks grow without end"


def load_safe_yaml(text: str) -> Any:
    """YAML as plain values. Raises ValueError, in one line, for what is not, and for what would grow when it is written out."""
    yaml = YAML(typ="safe", pure=True)
    try:
        if len(text) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} characters")
        if ("<<" in text or "merge" in text) and _grows(yaml.compose(text), _parts_of_node):
            raise ValueError(GROWS)  # before blocks are merged, which writes them out
        content = yaml.load(text)
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError, LookupError) as error:  # of tags and dates, too
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None
    if _grows(content, _parts):
        raise ValueError(GROWS)
    return content


def _grows(root: Any, parts: Callable[[Any], list[Any]]) -> bool:
    """Whether there is more than LARGEST or DEEPEST of something where each alias is written out."""
    todo, seen = [(root, 0)], 0
    while todo:
        value, depth = todo.pop()
        todo += [(part, depth + 1) for part in parts(value)]
        seen += len(value) if isinstance(value, str | bytes) else 1
        if depth > DEEPEST or seen > LARGEST:
            return True
    return False


def _parts(value: Any) -> list[Any]:
    if isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("it holds a number of more than 64 bits")
    if isinstance(value, dict):
        return [part for pair in value.items() for part in pair]
    return list(value) if isinstance(value, list | tuple | set) else []


def _parts_of_node(node: Any) -> list[Any]:
    """The same of what the parser has not made values of yet (ruamel.yaml.nodes)."""
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else [node.value] if isinstance(node, ScalarNode) else []
