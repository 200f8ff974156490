"""The `medseg` command: thin verbs that parse, call one function and print."""

from medseg.cli.app import app, main

__all__ = ["app", "main"]
