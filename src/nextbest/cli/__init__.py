"""The command line: thin commands over the jobs, with messages a person can act on."""

from nextbest.cli.program import app, main

__all__ = ["app", "main"]
