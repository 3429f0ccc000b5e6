"""Editor for a person's params.yaml: adds blocks and keeps all other bytes (comments, order, indentation, line ends)."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from remint.errors import SettingsError
from remint.runtime.home import NAME_RULE, is_name
from remint.runtime.yaml import LARGEST, load_safe_yaml
from remint.settings.params import PARAMS, Params, load_params, validate_params


def add_pipeline(folder: Path, name: str, template: str, dataset: str, new: dict[str, Any] | None = None) -> Params:
    """Add pipeline ``name`` to params.yaml: a copy of ``template``, for ``dataset`` unless that is "".

    ``new``: block of that dataset, added as well. Returns the new settings. Raises SettingsError and leaves the file unchanged
    if a name is taken or not allowed, a template or dataset is unknown, or the result is invalid.
    """
    before = load_params(folder)
    before.pipeline(template)
    _check_new_name("pipelines", name, before.pipelines)
    dataset = dataset or before.pipelines[template].dataset
    if new is not None:
        _check_new_name("datasets", dataset, before.datasets)
    kind = before.dataset(dataset).kind if new is None else new["kind"]
    if kind != before.datasets[before.pipelines[template].dataset].kind:
        raise SettingsError(_kind_error(before, template, dataset, kind))
    path = (folder / PARAMS).resolve()  # a symbolic link stays one
    text = path.read_bytes().decode()
    content = load_safe_yaml(text)
    expected = {**content, "pipelines": {**content["pipelines"], name: {**content["pipelines"][template], "dataset": dataset}}}
    if new is not None:
        expected["datasets"] = {**content["datasets"], dataset: new}
    after = validate_params(expected)
    try:
        if new is not None:
            text = _insert(text, "datasets", dataset, _as_yaml(new))
        text = _insert(text, "pipelines", name, _copy_of(text, template, dataset))
        is_right = load_safe_yaml(text) == expected
    except (ValueError, LookupError):  # blocks in braces, merged blocks
        is_right = False
    if not is_right:
        raise SettingsError(f"{path}: cannot add to blocks of this layout: add pipelines.{name} by hand")
    _replace(path, text)
    return after


def _check_new_name(block: str, name: str, existing: dict[str, Any]) -> None:
    if not is_name(name):
        raise SettingsError(f"{name[:100]!r} is not a valid name in {block}: expected {NAME_RULE}")
    if name in existing:
        raise SettingsError(f"{PARAMS}: {block}.{name} already exists: choose another name")


def _kind_error(params: Params, template: str, dataset: str, kind: str) -> str:
    suitable = [name for name, pipeline in params.pipelines.items() if params.datasets[pipeline.dataset].kind == kind]
    start = f"start from {' or '.join(suitable)}" if suitable else f"no pipeline of {PARAMS} is of that kind"
    return f"dataset '{dataset}' is of kind {kind}, but pipeline '{template}' is for another kind: {start}"


def _copy_of(text: str, template: str, dataset: str) -> str:
    """Return the text of a pipeline's block, to put after a key, with another dataset."""
    _, block = _entries(text, "pipelines")[template]
    start, end = block.start_mark.index, _end(block)
    (value_node,) = [value for key, value in block.value if key.value == "dataset"]
    first, last = value_node.start_mark.index, value_node.end_mark.index
    space = " " if block.flow_style else _line_end(text) + " " * block.start_mark.column
    return space + text[start:first] + _scalar(dataset) + text[last:end]


def _scalar(name: str) -> str:
    """Return a name as a YAML string: 2024 and true get quotes."""
    return name if load_safe_yaml(name) == name else f'"{name}"'


def _as_yaml(block: dict[str, Any]) -> str:
    """Return a block as one line of YAML, to put after a key."""
    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.width = True, LARGEST
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(block, stream)
    return " " + stream.getvalue().strip()


def _insert(text: str, block: str, name: str, value: str) -> str:
    """Return ``text`` with an entry added after the last one of a block."""
    last, node = list(_entries(text, block).values())[-1]
    end, line = _end(node), _line_end(text)
    end = text.find("\n", end) if "\n" in text[end:] else len(text)  # after a comment on the last line
    end -= text[:end].endswith("\r")
    return f"{text[:end]}{line}{line}{' ' * last.start_mark.column}{_scalar(name)}:{value}{text[end:]}"


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _entries(text: str, block: str) -> dict[str, tuple[Node, Any]]:
    """Return the key and value nodes of each entry of a block, with their positions in the text."""
    root = YAML(typ="safe", pure=True).compose(text)
    (entries,) = [value for key, value in root.value if key.value == block]
    return {key.value: (key, value) for key, value in entries.value}


def _end(node: Node) -> int:
    """Return the end of a value in the text. (The parser reports the start of the next value as the end of a block.)"""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _replace(path: Path, text: str) -> None:
    """Replace the file atomically."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(path.stat().st_mode & 0o7777)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
