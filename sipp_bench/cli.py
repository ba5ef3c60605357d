"""The command line. Heavy imports are inside the commands, so that --help comes at once.

Exit codes: 0 fine; 1 a cell of the run failed or was lost with its worker, a claim is falsified, no claim was checked,
or a run is worse than its baseline; 2 bad usage or input, or runs that do not compare; 130 interrupted.
"""

import contextlib
import os
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sipp_bench import cli_compare, cli_results, cli_theory
from sipp_bench.errors import OptionError, SippBenchError, StoreError, WorkerError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sipp_bench.pruned import Pruned

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
    try:
        app(args=arguments, prog_name="sipp-bench")
    except SippBenchError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)


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
    from sipp_bench.executors import dask_executor
    from sipp_bench.runner import run as run_suite
    from sipp_bench.suite import load_suite
    from sipp_bench.summary import summary

    if scheduler is not None and workers > 1:
        raise OptionError("--workers is for this machine, --scheduler for a cluster with workers of its own: give one.")

    loaded = load_suite(suite)
    if dry_run:
        from sipp_bench.estimate import estimate

        typer.echo(f"{loaded.name}: {estimate(loaded, threads)}")
        return
    folder = output or Path("runs") / loaded.name
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
        typer.echo(f"\nStopped. Finished cells are in {folder}; the same command goes on from there.", err=True)
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


@app.command(
    epilog="Example: sipp-bench prune --model torchvision:resnet18 --checkpoint resnet18.safetensors "
    "--points images/ --method sipp-hybrid --keep 0.2 -o pruned.safetensors"
)
def prune(
    model: Annotated[
        str, typer.Option(help="A zoo network, torchvision:NAME, timm:NAME, or package.module:factory for your own.")
    ],
    points: Annotated[
        Path,
        typer.Option(
            help="What the method looks at: arrays (N, ...) in a .npy, .npz, .safetensors or .pt file (several go to "
            "the network by their names), or a folder of images, which are scaled, centre-cropped, divided by 255, "
            "normalised as for ImageNet."
        ),
    ],
    keep: Annotated[float, typer.Option(help="The fraction of weights to keep, from 0 to 1.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The pruned weights: .safetensors, or .pt as by torch.save."),
    ],
    method: Annotated[str, typer.Option(help="See: sipp-bench list methods")] = "sipp-hybrid",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Trained weights: .safetensors, or a state dict by torch.save.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Published weights of a torchvision or timm network, downloaded once.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The seed of what is random in the method.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the method; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many points only.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width that images are brought to.")] = 224,
) -> None:
    """Prune a network and save its weights, for the same architecture to load."""
    import sipp_bench as sb
    from sipp_bench.point_files import read_points

    require_writable(output)
    if output.suffix not in (".safetensors", ".pt", ".pth"):
        raise OptionError(f"{output} should end in .safetensors, .pt or .pth: the ending says how to write it.")
    options = parse_options(option or [])
    sb.check_options(method, options)
    if not 0 <= keep <= 1:
        raise OptionError(f"keep is a fraction from 0 to 1, not {keep}.")
    images = read_points(points, image_size=image_size, limit=limit)
    network = load_model(model, images, checkpoint, pretrained)
    fitted = sb.fit(network, images, method=method, **options)
    pruned = fitted.prune(keep=keep, seed=seed)
    pruned.save(output)
    typer.echo(_describe(pruned, dict(fitted.skipped)))
    typer.echo(f"Saved to {output}.")


@app.command("list", epilog="Example: sipp-bench list methods")
def list_names(
    kind: Annotated[
        Literal["methods", "networks", "data", "suites"] | None,
        typer.Argument(metavar="KIND", help="methods, networks, data or suites; by default all four."),
    ] = None,
) -> None:
    """List what suites and commands can name."""
    import sipp_bench as sb
    from sipp_bench.suite import list_suites
    from sipp_bench.zoo import data, models

    listers = {
        "methods": sb.list_methods,
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
    from sipp_bench.system import describe_system

    system = describe_system()
    for group in ("machine", "versions"):
        typer.echo(f"{group}:")
        typer.echo("\n".join(f"  {name}: {value}" for name, value in system[group].items()))
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        typer.echo(f"max-times backends on {device} ({maxtimes.VARIABLE}={maxtimes.requested(None)}):")
        typer.echo("\n".join(f"  {name}: {state}" for name, state in maxtimes.describe(torch.device(device))))


cli_theory.register(app)
cli_compare.register(app)
cli_results.register(app)


def _report(runs: list[Path], output: Path, theory: Path | None = None, images: bool = True) -> None:
    from sipp_bench.report.build import build_report

    typer.echo(f"Report: {build_report(runs, output, theory=theory, images=images)}")


def load_model(
    name: str, points: "Tensor | dict[str, Tensor]", checkpoint: Path | None, pretrained: bool = False
) -> "nn.Module":
    """The network that --model names, with the weights of --checkpoint; points: of the shape that it will get."""
    from sipp_bench.zoo import models, training

    if models.is_known(name):
        shape = () if isinstance(points, dict) else tuple(points.shape[1:])
        network = models.build(
            name, input_shape=shape if len(shape) == 3 else None, weights="pretrained" if pretrained else None
        )
    elif ":" in name:
        network = models.load_factory(name).eval()
    else:
        known = ", ".join(models.list_models())
        raise OptionError(
            f"There is no network {name!r}. Give {known}, torchvision:NAME, timm:NAME or package.module:factory."
        )
    if checkpoint is not None:
        training.load_checkpoint(network, checkpoint)
    elif models.is_known(name) and not pretrained:
        typer.echo(f"Note: no --checkpoint, so the weights of {name} are random.", err=True)
    return network


def parse_options(texts: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value that is TOML (a number, true, "text") is read as such, any other is text."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise OptionError(f"--option {text!r} is not of the form KEY=VALUE.")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):  # not TOML; or a number of thousands of digits
            options[key] = value
    return options


def require_writable(path: Path) -> None:
    """Raise StoreError if `path` cannot be written, without writing anything: called before the work."""
    if path.is_dir():
        raise StoreError(f"{path} is a folder. Give the name of a file.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(f"Cannot write {path}: {folder} is not a folder that you may write to. Choose another.")


def _describe(pruned: "Pruned", skipped: dict[str, str]) -> str:
    lines = [
        pruned.layers.to_string(index=False, na_rep="-"),
        f"Kept {pruned.kept} of {pruned.weights} weights, {pruned.kept / pruned.weights:.2%}.",
    ]
    lines += [f"{name} stays dense: {reason}" for name, reason in skipped.items()]
    if pruned.guarantee is None:
        lines.append("This method gives no guarantee.")
    else:
        lines.append(pruned.guarantee.statement())
    return "\n".join(lines)
