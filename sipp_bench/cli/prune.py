"""The command that prunes, and what the commands on a user's network share. cli.py registers it."""

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sipp_bench.errors import OptionError, StoreError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sipp_bench.compression.pruned import Pruned


def register(app: typer.Typer) -> None:
    """Add `prune` to the command line."""
    app.command(
        "prune",
        epilog="Example: sipp-bench prune --model torchvision:resnet18 --checkpoint resnet18.safetensors "
        "--points images/ --method sipp-hybrid --keep 0.2 -o pruned.safetensors",
    )(_prune)


def _prune(
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
    from sipp_bench.methods import check_options, fit
    from sipp_bench.network.point_files import read_points

    require_writable(output)
    if output.suffix not in (".safetensors", ".pt", ".pth"):
        raise OptionError(f"{output} should end in .safetensors, .pt or .pth: the ending says how to write it.")
    options = parse_options(option or [])
    check_options(method, options)
    if not 0 <= keep <= 1:
        raise OptionError(f"keep is a fraction from 0 to 1, not {keep}.")
    images = read_points(points, image_size=image_size, limit=limit)
    network = load_model(model, images, checkpoint, pretrained)
    fitted = fit(network, images, method=method, **options)
    note_labels(method, images)
    pruned = fitted.prune(keep=keep, seed=seed)
    pruned.save(output)
    typer.echo(_describe(pruned, dict(fitted.skipped)))
    typer.echo(f"Saved to {output}.")


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


def note_labels(method: str, points: "Tensor | dict[str, Tensor]") -> None:
    """Say what stands for labels, where a method wants them and the points have none."""
    if method == "snip" and not (isinstance(points, dict) and {"label", "labels"} & points.keys()):
        typer.echo("Note: --points has no labels, so snip takes the network's own predictions for them.", err=True)


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
    whole = pruned.parameters
    lines = [
        pruned.layers.to_string(index=False, na_rep="-"),
        f"Kept {pruned.kept} of {pruned.weights} weights, {pruned.kept / pruned.weights:.2%}.",
        f"Of all {whole} parameters of the network, {pruned.weights / whole:.2%} can be pruned, and "
        f"{(whole - pruned.weights + pruned.kept) / whole:.2%} are left.",
    ]
    lines += [f"{name} stays dense: {reason}" for name, reason in skipped.items()]
    if pruned.guarantee is None:
        lines.append("This method gives no guarantee.")
    else:
        lines.append(pruned.guarantee.statement())
    return "\n".join(lines)
