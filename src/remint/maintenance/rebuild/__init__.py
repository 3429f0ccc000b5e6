"""Rebuild: build a version again from its own records only, and compare the result with the registered version.

record.py       fetch and verify the records of a version
build.py        check out its commit, data and settings, and run the steps
environment.py  compare the packages, Python and machine with the recorded ones
compare.py      compare the two results (tolerances: promotion/tolerance.py)
rebuild.py      do all of this, in order
"""

from remint.maintenance.rebuild.rebuild import Rebuild, rebuild

__all__ = ["Rebuild", "rebuild"]
