"""Write the pages that come from the code: python docs/generate.py

docs/settings.md, docs/commands.md and docs/drawings/rooms.svg. tests/unit/test_docs.py fails when one of them is stale.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from remint import cli
from remint.settings import dataset, judging, nodes, recipe, split
from remint.settings.base import Settings
from remint.settings.notify import NotifySettings
from remint.settings.params import PipelineSettings
from remint.settings.resources import Pool, ResourceSettings
from remint.settings.schedule import ScheduleSettings
from remint.settings.shadow import ServingSettings
from remint.settings.triggers import DataTrigger, DriftTrigger, TriggerSettings

HERE = Path(__file__).parent

BLOCKS: list[tuple[str, type[Settings]]] = [
    ("datasets.NAME", dataset.DatasetSettings),
    ("datasets.NAME.resize", dataset.ResizeSettings),
    ("datasets.NAME.split", split.SplitSettings),
    ("pipelines.NAME", PipelineSettings),
    *((f"pipelines.NAME.model (family: {name})", settings) for name, settings in recipe.MODEL_SETTINGS.items()),
    ("pipelines.NAME.model.critic (family: vaegan)", recipe.VaeGanCriticSettings),
    ("pipelines.NAME.training", recipe.TrainingSettings),
    ("pipelines.NAME.training.nodes", nodes.NodeRange),
    ("pipelines.NAME.evaluation", judging.EvaluationSettings),
    ("pipelines.NAME.evaluation.inception, .program", judging.FeatureFile),
    ("pipelines.NAME.promotion", judging.PromotionSettings),
    ("pipelines.NAME.promotion.require.METRIC", judging.Bound),
    ("pipelines.NAME.promotion.improve", judging.Improve),
    ("pipelines.NAME.schedule", ScheduleSettings),
    ("pipelines.NAME.serving", ServingSettings),
    ("pipelines.NAME.triggers", TriggerSettings),
    ("pipelines.NAME.triggers.data_changed", DataTrigger),
    ("pipelines.NAME.triggers.drift", DriftTrigger),
    ("pipelines.NAME.resources", ResourceSettings),
    ("pipelines.NAME.resources.STEP", Pool),
    ("notify", NotifySettings),
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
            given = field.default.model_dump(exclude_defaults=True) if isinstance(field.default, Settings) else field.default
            default = "required" if field.is_required() else repr(given)
            fields[node.target.id] = (kind, default.replace("'", ""))
    return fields


SETTINGS = """# Settings

Every key of `params.yaml`, written from the code by `python docs/generate.py`. The keys `dataset` and `family` and those below
`model` and `training` decide the weights: a change of one retrains. A change of another key does not. `--set` takes the path
below the pipeline's name: `--set training.steps=20`.
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
        "Written from the code by `python docs/generate.py`. Every command has `--help`. Commands that report take `--json`.",
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


ROOMS = {
    "cli": "the command line and its tables",
    "flows": "Prefect flows and tasks, the local stack",
    "maintenance": "audit, gc, rebuild, doctor",
    "promotion": "the gate, decisions, reports of a decision",
    "pipelines": "entry points of the steps that DVC runs",
    "serving": "a registered model in use",
    "training": "training loop, checkpoints, recovery",
    "evaluation": "metrics, intervals, plots",
    "distributed": "several processes on one machine",
    "models": "the families and their networks",
    "data": "readers, schema, splits, arrays",
    "stores": "git, DVC, MLflow, S3, the ledger",
    "settings": "params.yaml as typed classes",
    "runtime": "home, jobs, processes, events",
    "records": "what one step hands to the next",
    "errors": "the tree of errors",
    "redaction": "secrets out of messages",
}
DOORS = {"flows": "Prefect", "stores": "MLflow, DVC, boto3"}  # the only rooms that import these packages

ROOMS_STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #44515d; } .t { font-weight: 600; font-size: 13px; fill: #1c2733; }
    .p { fill: #e8eef7; stroke: #3f5b8c; } .d { fill: #b3450b; } path { stroke: #37474f; stroke-width: 1.4; fill: none; }
    marker path { fill: #37474f; stroke: none; }
"""


def rooms_drawing() -> str:
    """The layers of pyproject.toml's import contract, the highest first, as an SVG."""
    contracts = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = [[name.strip().removeprefix("remint.") for name in layer.split("|")] for layer in layers]
    width, high, step = 1000, 42, 52
    height = step * len(rows) + 20
    body = [f'<path d="M24 20 V{height - 16}" marker-end="url(#head)"/>']
    for row, names in enumerate(rows):
        wide = (width - 60 - 10 * (len(names) - 1)) / len(names)
        for column, name in enumerate(names):
            x, y = 48 + column * (wide + 10), 14 + row * step
            door = f' <tspan class="d">[{DOORS[name]}]</tspan>' if name in DOORS else ""
            body += [
                f'<rect class="p" x="{x:.0f}" y="{y}" width="{wide:.0f}" height="{high}" rx="6"/>',
                f'<text class="t" x="{x + 10:.0f}" y="{y + 17}">{name}{door}</text>',
                f'<text x="{x + 10:.0f}" y="{y + 34}">{ROOMS[name]}</text>',
            ]
    marker = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>The rooms of remint: imports go down only</title>",
            f'<defs>{marker}<path d="M0 0 L8 4 L0 8 z"/></marker></defs><style>{ROOMS_STYLE}</style>',
            f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


PAGES = {"settings.md": settings_page, "commands.md": commands_page, "drawings/rooms.svg": rooms_drawing}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (HERE / page).write_text(write())
