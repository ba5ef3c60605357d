"""The commands about the claims: what they are, and whether they hold on a user's network. cli.py registers them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sipp_bench.machine.files import write_atomically


def register(app: typer.Typer) -> None:
    """Add `claims` and `verify` to the command line."""
    app.command("claims", epilog="Example: sipp-bench claims")(_claims)
    app.command(
        "verify",
        epilog="Example: sipp-bench verify --model torchvision:resnet18 --checkpoint resnet18.safetensors "
        "--points images/ --fresh more-images/ --keep 0.1 --keep 0.2 --json verdicts.json",
    )(_verify)


def _claims(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """List the claims: number, kind, statement, assumption, and what each must reject."""
    from theory_checks.claims import claims

    found = claims().values()
    if as_json:
        keys = ("number", "title", "kind", "statement", "assumption", "rejects")
        typer.echo(json.dumps([{key: getattr(claim, key) for key in keys} for claim in found], indent=1))
        return
    for claim in found:
        typer.echo(f"{claim.number}  {claim.title} ({claim.kind.value})")
        typer.echo(f"    {claim.statement}")
        if claim.assumption != "none":
            typer.echo(f"    Assumes: {claim.assumption}.")
        typer.echo(f"    Rejects: {'; '.join(claim.rejects)}.")


def _verify(
    model: Annotated[str, typer.Option(help="A zoo network, torchvision:NAME, or package.module:factory.")],
    points: Annotated[
        Path,
        typer.Option(
            help="What the method looks at: an array (N, ...) in a .npy, .npz, .safetensors or .pt file, or a folder "
            "of images, which are scaled, centre-cropped, divided by 255, normalised as for ImageNet."
        ),
    ],
    fresh: Annotated[
        Path, typer.Option(help="Fresh points from the same source, in neither the points nor the training.")
    ],
    method: Annotated[str, typer.Option(help="See: sipp-bench list methods")] = "sipp-hybrid",
    keep: Annotated[
        list[float] | None, typer.Option(help="The fraction of weights to keep; may be repeated. By default 0.2.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Failure probability of the sampling bounds.")] = 0.05,
    alpha: Annotated[float, typer.Option(help="Of the printed intervals, whose confidence is 1 - alpha.")] = 0.05,
    claim: Annotated[
        list[str] | None, typer.Option(help="Only this claim, such as C7; may be repeated. By default all.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Trained weights: .safetensors, or a state dict by torch.save.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of all that is random.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the method; may be repeated.")
    ] = None,
    effort: Annotated[Literal["quick", "full"], typer.Option(help="How many trials.")] = "quick",
    draws: Annotated[int | None, typer.Option(min=1, help="Draw sets of the whole network (claim C11).")] = None,
    synthetic: Annotated[bool, typer.Option(help="The claims' own synthetic cases as well: minutes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a section of HTML to this file.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many of both; files sorted by class are no samples.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width that images are brought to.")] = 224,
) -> None:
    """Try to falsify the claims on a trained network. Exit code 0 only if nothing is falsified and something was
    checked.
    """
    from sipp_bench.cli.prune import load_model, note_labels, parse_options, require_writable
    from sipp_bench.methods import check_options
    from sipp_bench.network.point_files import read_points
    from theory_checks import verify
    from theory_checks.claims import FULL, QUICK

    for path in (json_file, html_file):
        if path is not None:
            require_writable(path)
    options = parse_options(option or [])
    check_options(method, options)
    looked_at, others = (read_points(path, image_size=image_size, limit=limit) for path in (points, fresh))
    note_labels(method, looked_at)
    report = verify(
        load_model(model, looked_at, checkpoint), looked_at, others, claims=claim or None, method=method,
        keep=keep or 0.2, delta=delta, alpha=alpha, seed=seed, effort=FULL if effort == "full" else QUICK, draws=draws,
        synthetic=synthetic, options=options, progress=sys.stderr.isatty(),
    )  # fmt: skip
    typer.echo(report.to_text(), nl=False)
    if json_file is not None:
        write_atomically(json_file, report.to_json())
    if html_file is not None:
        write_atomically(html_file, report.to_html())
    if not report.ok:
        raise typer.Exit(1)
