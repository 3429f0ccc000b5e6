"""Typer application of the commands, and the parts that they share."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from remint.cli import completion, terminal
from remint.errors import RemintError
from remint.redaction import redacted
from remint.runtime import json_log
from remint.runtime.addresses import loopback_without_proxy
from remint.runtime.home import Home
from remint.settings.params import Params, load_params
from remint.stores import git

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ModelRef = Annotated[
    str,
    typer.Argument(help="NAME (its champion), NAME@champion, NAME@challenger or NAME/7.", autocompletion=completion.model_refs),
]
Served = Annotated[
    str,
    typer.Argument(
        help="NAME (its champion), NAME@challenger or NAME/7; or the address of a published model.",
        autocompletion=completion.model_refs,
    ),
]


def main() -> None:
    """Run the command line. A RemintError becomes one or two lines and an exit status, not a traceback."""
    os.environ.update(loopback_without_proxy())  # for this process and all its children
    signal.signal(signal.SIGTERM, _terminate)  # so that temporary files are removed, as on Ctrl-C
    try:
        app()
    except RemintError as error:
        terminal.error(str(error))
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        terminal.err.print("interrupted", soft_wrap=True)
        raise SystemExit(1) from None
    except Exception:  # noqa: BLE001  a bug of remint: print the traceback without secrets
        sys.stderr.write(redacted(traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        gc.freeze()  # avoids a last garbage collection at exit


def _terminate(sign: int, _: object) -> None:
    raise SystemExit(128 + sign)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"remint {metadata.version('remint')}\n")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Retrains generative models on schedule and promotes only what is shown to be better."""
    json_log.check()


def here() -> tuple[Home, Params]:
    """Return the home of the repository around the current folder and its settings, both checked."""
    repository = git.repository_of(Path.cwd())
    return Home.of(repository).ensure(), load_params(repository)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
