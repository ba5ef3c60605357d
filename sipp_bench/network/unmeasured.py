"""Whether a network can be looked at, and which of its weights stay dense, and why.

Every parameter of two and more dimensions is measured or listed here.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sipp_bench.errors import ModelError
from sipp_bench.network.points import all_finite
from sipp_bench.network.tracing import Trace

_COMPUTED = (
    "it is computed from other parameters (a parametrization, weight norm or torch.nn.utils.prune): make it a plain "
    "parameter first"
)
_UNSEEN = "the forward pass never used it as a whole in F.linear or F.conv"
_SCRIPTED = "it is in a module of torch.jit, which runs unseen: give the network as it was before torch.jit"
_QUANTISED = "it is quantised: prune the network before it is"


def check_parameters(model: object) -> None:
    """Raise ModelError when this is no network, or a parameter is not initialised yet, or holds NaN or infinity."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"The network must be a torch.nn.Module, not a {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(f"Parameter {name!r} is not initialised: run the network once on a point first.")
        if parameter.is_meta:
            raise ModelError(f"Parameter {name!r} is on the meta device, without numbers: load a checkpoint first.")
        if not all_finite(parameter):
            raise ModelError(f"Parameter {name!r} holds NaN or infinity: repair or reload the network first.")


def unmeasured(model: nn.Module, trace: Trace) -> dict[str, str]:
    """Weights that can't be measured or pruned, each with the reason why it stays dense.

    All parameters of two and more dimensions that were not applied as linear maps, or in another way as well; and
    weights of layers that are no parameters: computed ones, by the name of what is computed, and quantised ones.
    """
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    reasons: dict[str, str] = {}
    for path, module in model.named_modules():
        for attribute, reason in _weights(module):
            # A parametrization is not asked for its weight: some (spectral norm) change the network when they are.
            weight = None if is_parametrized(module, attribute) else getattr(module, attribute, None)
            if weight is None and not is_parametrized(module, attribute):
                continue
            name = parameters.get(id(weight))
            if isinstance(weight, Tensor) and weight.is_complex():
                reasons[name or f"{path}.{attribute}".lstrip(".")] = "it is complex: its numbers have no sign"
            elif name is None:
                reasons[f"{path}.{attribute}".lstrip(".")] = reason or _COMPUTED
            elif name not in trace.applied and reason:
                reasons[name] = reason
    for name, parameter in model.named_parameters():
        if name in reasons or parameter.ndim < 2:
            continue
        if parameter.is_complex():
            reasons[name] = "it is complex: its numbers have no sign"
        elif name in trace.dense:
            reasons[name] = trace.dense[name]
        elif name not in trace.applied:
            reasons[name] = _UNSEEN
    return reasons


def _weights(module: nn.Module) -> Iterator[tuple[str, str]]:
    """(attribute, reason why it is never measured or "") for the weights of one module."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from ((name, _SCRIPTED) for name, p in module.named_parameters(recurse=False) if p.ndim >= 2)
    elif ".quantized" in type(module).__module__ and hasattr(module, "weight"):
        yield "weight", _QUANTISED
    elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        yield "weight", ""
    elif isinstance(module, nn.MultiheadAttention):
        yield from ((name, "") for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"))
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        yield "weight", "transposed convolutions are not supported"
    elif isinstance(module, nn.Bilinear):
        yield "weight", "bilinear maps are not supported"
    elif isinstance(module, nn.RNNBase):
        names = [name for name in module._parameters if "weight" in name]
        yield from ((name, "recurrent layers run inside one fused call and can't be seen") for name in names)
    elif isinstance(module, nn.RNNCellBase):
        yield from ((name, "recurrent cells run inside one fused call") for name in ("weight_ih", "weight_hh"))
