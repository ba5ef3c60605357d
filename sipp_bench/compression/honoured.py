"""Does a pruned network honour its bound on these points? In sentences, for tests: see the fixture in `pytest_sipp`."""

import torch
from torch import Tensor, nn

from sipp_bench.compression.checks import check_cell
from sipp_bench.compression.guarantee import Guarantee
from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import ModelError
from sipp_bench.machine.parts import block_sums
from sipp_bench.network.point_sets import Points, count_points
from sipp_bench.sensitivity.measure import measure_sensitivity


def bound_problems(model: nn.Module, pruned: Pruned | nn.Module, points: Points) -> list[str]:
    """What is wrong, a sentence each: one a layer with a broken bound, or one that says why nothing was checked.

    A `Pruned` is held to its guarantee on the points that its method looked at, which must be given. Blocks that were
    drawn may exceed theirs now and then, so that one draw decides nothing: `theory_checks.verify` is for those. A
    plain network is held to claim C2 for what it dropped: each block has relative error at most the sum of the dropped
    sensitivities, measured here, always; a network whose kept weights changed after pruning breaks it.
    """
    if isinstance(pruned, Pruned):
        if why := _no_guarantee(pruned, points):
            return [f"Nothing was checked: {why}"]
    else:
        try:
            pruned = _as_dropped(model, pruned, points)
        except ModelError as error:
            return [f"Nothing was checked: {error}"]
    try:
        rows, arrays = check_cell(model, pruned, points, "S")
    except ModelError as error:  # a changed sign
        return [f"The bounds do not hold: {error}"]
    problems = [_broken(row, arrays[row["layer"]]) for row in rows if row["exceeding_certain"]]
    if not problems and not any(_telling(array).any() for array in arrays.values()):
        problems = [
            "Nothing was checked: every block that lost weights was drawn, or has a bound of 1 or more, which any "
            "pruning keeps. Keep more weights, or use theory_checks.verify for bounds of drawn blocks."
        ]
    return problems


def _no_guarantee(pruned: Pruned, points: Points) -> str | None:
    guarantee = pruned.guarantee
    if guarantee is None:
        return "this method gives no guarantee. Give the network, pruned.model, to hold it to claim C2."
    if guarantee.void:
        return f"the guarantee is void, {guarantee.void}."
    given = count_points(points)
    if given is not None and given != guarantee.num_points:
        return f"the bounds speak of the {guarantee.num_points} points that the method looked at; {given} were given."
    return None


def _as_dropped(model: nn.Module, pruned: nn.Module, points: Points) -> Pruned:
    """A plain network with the guarantee of claim C2 for what it dropped of `model`."""
    sensitivity = measure_sensitivity(model, points)
    dense, left = dict(model.named_parameters()), dict(pruned.named_parameters())
    masks: dict[str, Tensor] = {}
    epsilon: dict[str, Tensor] = {}
    for name, layer in sensitivity.items():
        if name not in left or left[name].shape != dense[name].shape:
            raise ModelError(
                f"the pruned network has no {name!r} of shape {tuple(dense[name].shape)}. "
                "Masks of torch.nn.utils.prune must be made permanent first (prune.remove)."
            )
        masks[name] = left[name].detach() != 0
        dropped = ~masks[name].to(layer.values.device)
        epsilon[name] = block_sums(torch.where(dropped, layer.values, 0.0), layer.positive).clamp(max=1)
    requests = {name: int(mask.sum()) for name, mask in masks.items()}
    draws = {name: torch.zeros_like(values, dtype=torch.int64) for name, values in epsilon.items()}
    guarantee = Guarantee(("C2",), 0.0, False, epsilon, draws, sensitivity.num_points)
    return Pruned(pruned, masks, sum(requests.values()), requests, guarantee)


def _telling(arrays: dict[str, Tensor]) -> Tensor:
    """Blocks whose bound holds with certainty, and could be broken."""
    return (arrays["draws"] == 0) & (arrays["epsilon"] > 0) & (arrays["epsilon"] < 1)


def _broken(row: dict[str, object], arrays: dict[str, Tensor]) -> str:
    """The layer's block that is furthest above its bound."""
    above = (arrays["error_S"] - arrays["epsilon"]).masked_fill(arrays["draws"] > 0, -torch.inf)
    neuron, column = divmod(int(above.argmax()), 2)
    error, bound = (float(arrays[key][neuron, column]) for key in ("error_S", "epsilon"))
    sign = ("positive", "negative")[column]
    return (
        f"{row['layer']} breaks its bound of claim {row['claim']}: the block of neuron {neuron}'s {sign} weights has "
        f"error {error:.6g}, its bound is {bound:.6g} ({row['exceeding_certain']} of {row['blocks']} blocks are above)."
    )
