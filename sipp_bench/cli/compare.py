"""The commands that compare two runs and keep a baseline. cli.py registers them."""

from pathlib import Path
from typing import Annotated

import typer

from sipp_bench.machine.files import write_atomically


def register(app: typer.Typer) -> None:
    """Add `compare` and `baseline` to the command line."""
    app.command("compare", epilog="Example: sipp-bench compare reports/baselines/regression runs/regression")(_compare)
    app.command(
        "baseline",
        epilog='Example: sipp-bench baseline runs/regression -o reports/baselines/regression --reason "..."',
    )(_baseline)


def _compare(
    base: Annotated[
        Path,
        typer.Argument(metavar="BASE", help="A run folder, a JSON file of pytest-benchmark, or a folder of several."),
    ],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="What is compared with it, of the same kind.")],
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all findings to this file.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write Markdown, for a CI job's page, to this file.")] = None,
) -> None:
    """Is NEW as good as BASE? Exit code 0: the same or better; 1: a regression; 2: not comparable.

    Equal checkpoints must give equal masks, counts and verdicts. Accuracies are tested in pairs by seed, times by
    Mann-Whitney and a difference above 10 %; false alarms 1 % a family.
    """
    from sipp_bench.cli.prune import require_writable
    from sipp_bench.compare import compare, output

    for path in (junit, json_file, summary):
        if path is not None:
            require_writable(path)
    comparison = compare(base, new)
    typer.echo(output.as_text(comparison))
    for path, write in ((junit, output.as_junit), (json_file, output.as_json), (summary, output.as_markdown)):
        if path is not None:
            write_atomically(path, write(comparison))
    if comparison.exit_code:
        raise typer.Exit(comparison.exit_code)


def _baseline(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder without failed cells.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The baseline's folder, new or to be replaced.")],
    reason: Annotated[str, typer.Option(help="What changed and why that is right; kept in its history.json.")],
) -> None:
    """Make a run the baseline that later runs are compared with, and record why."""
    from sipp_bench.compare import baseline

    typer.echo(f"Baseline: {baseline.update(run, output, reason)}")
