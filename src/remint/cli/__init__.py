"""Command line of remint.

Exit status: 0 the command was carried out (a refusal to promote is a result), 1 a run failed, 2 the input is wrong.
With ``--json`` exactly one JSON document goes to standard output; progress goes to standard error.
"""

# ruff: noqa: E402, F401, I001 (each adds its commands to the application, in the order in which --help lists them)
import gc

# Before the large imports: repeated collections of long-lived objects take a third of a short command's time.
gc.set_threshold(50_000, 20, 100)

from remint.cli.app import app, main
from remint.cli import retrain
from remint.cli import registry
from remint.cli import use
from remint.cli import scoring
from remint.cli import derive
from remint.cli import serve
from remint.cli import maintenance
from remint.cli import stack
from remint.cli import new

__all__ = ["app", "main"]
