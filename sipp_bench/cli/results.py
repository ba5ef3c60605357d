"""The commands that carry results elsewhere: other programs, the trends of many runs. cli.py registers them."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add `export` and `history` to the command line."""
    app.command("export", epilog="Example: sipp-bench export runs/quick -o tables --format parquet")(_export)
    app.command("history", epilog="Example: sipp-bench history runs/ timings/ -o history")(_history)


def _export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that the tables are written to.")],
    format: Annotated[Literal["csv", "parquet"], typer.Option(help="parquet needs pyarrow.")] = "csv",
) -> None:
    """Write a run's tables, cells, layers, checks and timings, as CSV or Parquet."""
    from sipp_bench.store.export import export_run

    for path in export_run(run, output, format):
        typer.echo(path)


def _history(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, JSON files of pytest-benchmark, or folders of either."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the page.")],
) -> None:
    """Draw many runs over time: accuracies, times, and where they took a step."""
    from sipp_bench.history.build import build_history

    typer.echo(f"History: {build_history(runs, output)}")
