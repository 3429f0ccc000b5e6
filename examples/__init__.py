"""Families of this repository's own. A package, so that a job imports the copy of its checkout before any other."""
