"""The command line, one file a group of commands."""

from sipp_bench.cli.commands import app, main

__all__ = ["app", "main"]
