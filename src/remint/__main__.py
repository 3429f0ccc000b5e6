"""``python -m remint``: the command line."""

from remint.cli import main

main()
