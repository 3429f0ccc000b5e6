"""Writes docs/settings.md and docs/commands.md from the code, so that they cannot drift: python docs/generate.py

tests/unit/test_docs.py fails where they are stale.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from remint import cli
from remint.settings import judging, recipe
from remint.settings.params import PipelineSettings, ScheduleSettings
from remint.settings.recipe import Settings

HERE = Path(__file__).parent

BLOCKS: list[tuple[str, type[Settings]]] = [
    ("datasets.NAME", recipe.DatasetSettings),
    ("datasets.NAME.resize", recipe.ResizeSettings),
    ("datasets.NAME.split", recipe.SplitSettings),
    ("pipelines.NAME", PipelineSettings),
    *((f"pipelines.NAME.model (family: {name})", settings) for name, settings in recipe.MODEL_SETTINGS.items()),
    ("pipelines.NAME.model.critic (family: vaegan)", recipe.VaeGanCriticSettings),
    ("pipelines.NAME.training", recipe.TrainingSettings),
    ("pipelines.NAME.evaluation", judging.EvaluationSettings),
    ("pipelines.NAME.evaluation.inception, .program", judging.FeatureFile),
    ("pipelines.NAME.promotion", judging.PromotionSettings),
    ("pipelines.NAME.promotion.require.METRIC", judging.Bound),
    ("pipelines.NAME.promotion.improve", judging.Improve),
    ("pipelines.NAME.schedule", ScheduleSettings),
]


def sources(settings: type[Settings]) -> list[str]:
    """The code of the class and of those that it inherits settings from, these first."""
    return [inspect.getsource(part) for part in reversed(settings.__mro__) if issubclass(part, Settings) and part is not Settings]


def comments(settings: type[Settings]) -> dict[str, str]:
    """The comment behind each field."""
    found = {}
    for source in sources(settings):
        for line in source.splitlines():
            match = re.match(r"    (\w+):.*?#\s(.*)$", line)
            if match:
                found[match[1]] = match[2]
    return found


def declared(settings: type[Settings]) -> dict[str, tuple[str, str]]:
    """Type and default of each field, as the code says them."""
    bodies = [node for source in sources(settings) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    fields = {}
    for node in [line for body in bodies for line in body.body]:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in settings.model_fields:
            kind = re.sub(r"Annotated\[(\w+), Field\((.*?)\)\]", r"\1 (\2)", ast.unparse(node.annotation))
            field = settings.model_fields[node.target.id]
            default = "required" if field.is_required() else "{}" if isinstance(field.default, Settings) else repr(field.default)
            fields[node.target.id] = (kind, default.replace("'", ""))
    return fields


SETTINGS = """# Settings

Every key of `params.yaml`, written from the code by `python docs/generate.py`. What stands below `dataset`, `family`,
`model` and `training` decides the weights: changing it retrains. Changing the rest does not. `--set` takes the path below
the pipeline's name: `--set training.steps=20`.
"""


def settings_page() -> str:
    lines = [SETTINGS]
    for path, settings in BLOCKS:
        said = comments(settings)
        lines += [
            f"## `{path}`",
            "",
            inspect.getdoc(settings) or "",
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for name, (kind, default) in declared(settings).items():
            lines.append(f"| `{name}` | {kind.replace('|', 'or')} | {default} | {said.get(name, '').replace('|', 'or')} |")
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "Written from the code by `python docs/generate.py`. Every command has `--help`; those that report take `--json`.",
        "",
    ]
    for name, command in _commands(typer.main.get_command(cli.app)):
        lines += [f"## `remint {name}`", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["| argument | meaning |", "|---|---|"]
        for parameter in command.params:
            label = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
            if "--help" not in label:
                lines.append(f"| `{label}` | {getattr(parameter, 'help', '') or ''} |")
        lines.append("")
    return "\n".join(lines)


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Each command, those of a group by the group's name and theirs."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {of_group}", each) for of_group, each in _commands(command))
        else:
            yield name, command


PAGES = {"settings.md": settings_page, "commands.md": commands_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (HERE / page).write_text(write())
