"""Safe YAML reader for untrusted files: plain values only, by the YAML 1.2 rules that dvc uses. Tags create no objects.

Code that walks through the values expands aliases and merged blocks: a file of one kilobyte can expand to more than any
memory holds. So they are counted first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

LARGEST = 1 << 20  # bytes of a file, and number of values and characters in it with all aliases expanded
DEEPEST = 50  # nested blocks
GROWS = "its aliases and nested blocks expand too far"


def load_safe_yaml(text: str) -> Any:
    """Return YAML as plain values. Raises ValueError (one line) for invalid YAML and for aliases that expand too far."""
    yaml = YAML(typ="safe", pure=True)
    try:
        if len(text) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} characters")
        if ("<<" in text or "merge" in text) and _grows(yaml.compose(text), _parts_of_node):
            raise ValueError(GROWS)  # before the parser merges blocks, which expands them
        content = yaml.load(text)
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError, LookupError) as error:  # invalid tags and dates too
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None
    if _grows(content, _parts):
        raise ValueError(GROWS)
    return content


def _grows(root: Any, parts: Callable[[Any], list[Any]]) -> bool:
    """Return whether the expanded content exceeds LARGEST or DEEPEST."""
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
    """Do the same as ``_parts`` for the parser's nodes (ruamel.yaml.nodes)."""
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else [node.value] if isinstance(node, ScalarNode) else []
