"""Example plug-ins. This is a package, so that a job imports the copy in its own checkout."""
