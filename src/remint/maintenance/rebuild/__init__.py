"""A version built again from what it carries alone, and held against what was registered.

record.py       what a version carries, and that it is what was registered
build.py        its commit, its data, its settings; then the steps, really run
environment.py  what is installed here and what was there
tolerance.py    what a metric may differ by where the machine is another
compare.py      both sides, thing by thing
rebuild.py      all of it, in order
"""

from remint.maintenance.rebuild.rebuild import Rebuild, rebuild

__all__ = ["Rebuild", "rebuild"]
