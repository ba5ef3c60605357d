"""The command line. Heavy imports are inside the commands, so that --help comes at once.

Exit codes: 0 fine; 1 a cell of the run failed or was lost with its worker, a claim is falsified, no claim was checked,
or a run is worse than its baseline; 2 bad usage or input, or runs that do not compare; 130 interrupted.
"""

import codecs
import contextlib
import io
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from sipp_bench.cli import compare as cli_compare
from sipp_bench.cli import prune as cli_prune
from sipp_bench.cli import results as cli_results
from sipp_bench.cli import theory as cli_theory
from sipp_bench.errors import OptionError, SippBenchError, WorkerError
from sipp_bench.machine.files import refuse_way_out

app = typer.Typer(
    name="sipp-bench",
    help="Measure, prune, check and report: provable neural-network pruning (SiPP) and its peers.",
    epilog="Example: sipp-bench run quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line on `arguments` (those of the process by default) and exit with its code."""
    codecs.register_error("sipp-bench", _as_bytes)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sipp-bench")
    try:
        app(args=arguments, prog_name="sipp-bench")
    except SippBenchError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except SystemExit as exit:
        if exit.code == 130:  # of every command, wherever it was interrupted
            typer.echo("\nStopped.", err=True)
        raise


def _as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """What a terminal's encoding lacks: the bytes of a path that are no letters as they are, other letters escaped."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"sipp-bench {metadata.version('sipp-bench')}")
        except metadata.PackageNotFoundError:
            typer.echo("sipp-bench from a folder that is not installed")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """What comes before a command."""


@app.command(epilog="Example: sipp-bench run quick -o runs/quick")
def run(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A suite file (.toml), or the name of a shipped suite.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The run folder; by default runs/NAME.")] = None,
    report: Annotated[bool, typer.Option(help="Build the report in the folder's report/ at the end.")] = True,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch data that is not on this machine (see SIPP_BENCH_DATA).")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that measure side by side on this machine.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Measure on the workers of this Dask scheduler: its address or its file."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads in each cell; the last bits of results depend on their number.")
    ] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda (workers take turns at the GPUs) or cuda:NUMBER.")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many cells there are and about how long they take.")
    ] = False,
) -> None:
    """Run a suite: every cell's results go to the run folder at once, and running again goes on."""
    from sipp_bench.bench.executors import dask_executor
    from sipp_bench.bench.runner import run as run_suite
    from sipp_bench.bench.suite import load_suite
    from sipp_bench.store.summary import summary

    if scheduler is not None and workers > 1:
        raise OptionError("--workers is for this machine, --scheduler for a cluster with workers of its own: give one.")

    loaded = load_suite(suite)
    if dry_run:
        from sipp_bench.bench.estimate import estimate

        typer.echo(f"{loaded.name}: {estimate(loaded, threads)}")
        return
    folder = output or Path("runs") / loaded.name
    if report:
        refuse_way_out(folder, folder / "report")  # before hours of work, not after them
    try:
        with contextlib.nullcontext() if scheduler is None else dask_executor(scheduler) as executor:
            finished = run_suite(
                loaded,
                folder,
                download=download,
                workers=workers,
                executor=executor,
                threads=threads,
                device=device,
            )
    except WorkerError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"\nFinished cells are in {folder}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    typer.echo(summary(finished))
    if report:
        _report([folder], folder / "report")
    if (finished.cells["status"] == "failed").any():
        raise typer.Exit(1)


@app.command(epilog="Example: sipp-bench report runs/quick -o quick-report")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, one or more.", metavar="RUN...")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The report's folder; by default RUN/report (first run)."),
    ] = None,
    theory: Annotated[
        Path | None, typer.Option(help="A folder made by python -m theory_checks -o, to include.")
    ] = None,
    images: Annotated[
        bool, typer.Option(help="Show test images whose predictions flipped, where the data is on this machine.")
    ] = True,
) -> None:
    """Build the report of one or more runs: a site of static pages with an explorer, figures, CSV and Markdown."""
    _report(runs, output or runs[0] / "report", theory, images)


@app.command("list", epilog="Example: sipp-bench list methods")
def list_names(
    kind: Annotated[
        Literal["methods", "networks", "data", "suites"] | None,
        typer.Argument(metavar="KIND", help="methods, networks, data or suites; by default all four."),
    ] = None,
) -> None:
    """List what suites and commands can name."""
    from sipp_bench.bench.suite import list_suites
    from sipp_bench.methods import list_methods
    from sipp_bench.zoo import data, models

    listers = {
        "methods": list_methods,
        "networks": models.list_models,
        "data": data.list_data,
        "suites": list_suites,
    }
    for name in [kind] if kind else listers:
        indent = "" if kind else "  "
        if not kind:
            typer.echo(f"{name}:")
        typer.echo("\n".join(f"{indent}{entry}" for entry in listers[name]()))


@app.command(epilog="Example: sipp-bench info")
def info() -> None:
    """Show the machine, the versions, and which backend of the max-times product would be used, and why."""
    import torch

    from sipp_bench import maxtimes
    from sipp_bench.machine.system import describe_system

    system = describe_system()
    for group in ("machine", "versions"):
        typer.echo(f"{group}:")
        typer.echo("\n".join(f"  {name}: {value}" for name, value in system[group].items()))
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        typer.echo(f"max-times backends on {device} ({maxtimes.VARIABLE}={maxtimes.requested(None)}):")
        typer.echo("\n".join(f"  {name}: {state}" for name, state in maxtimes.describe(torch.device(device))))


cli_prune.register(app)
cli_theory.register(app)
cli_compare.register(app)
cli_results.register(app)


def _report(runs: list[Path], output: Path, theory: Path | None = None, images: bool = True) -> None:
    from sipp_bench.report.build import build_report

    typer.echo(f"Report: {build_report(runs, output, theory=theory, images=images)}")
