"""The result of pruning: a changed network, its changes and guarantee; layer by layer, held, saved, exported."""

import copy
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sipp_bench.compression.changes import Change
from sipp_bench.compression.guarantee import Guarantee
from sipp_bench.errors import OptionError
from sipp_bench.machine.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Pruned:
    """A pruned copy of a network.

    model: the copy. changes: by weight name, what became of it (`changes.Change`). requested: values asked for,
    round(keep * N); layer_requests: the same by name. guarantee: None for methods without one.
    Zeros do not make dense kernels faster: a masked network takes the same time and memory as before.
    """

    model: nn.Module
    changes: Mapping[str, Change]
    requested: int
    layer_requests: Mapping[str, int]
    guarantee: Guarantee | None = field(default=None)

    @classmethod
    def from_changes(
        cls,
        model: nn.Module,
        changes: Mapping[str, Change],
        layer_requests: Mapping[str, int],
        requested: int,
        guarantee: Guarantee | None,
    ) -> "Pruned":
        """A copy of `model` with these changes, whose weights it takes over; `model` stays as it is."""
        # The new weights stand in for the old ones while copying, so that no second copy of the old ones is made.
        memo, taken = {}, dict(changes)
        for name, parameter in model.named_parameters():
            if name in changes:
                weight = changes[name].effective().detach()
                if weight.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
                    weight = weight.clone()
                    taken[name] = dataclasses.replace(changes[name], weight=weight)
                memo[id(parameter)] = nn.Parameter(weight, parameter.requires_grad)
        return cls(copy.deepcopy(model, memo), taken, requested, dict(layer_requests), guarantee)

    def on(self, model: nn.Module, guarantee: Guarantee | None = None) -> "Pruned":
        """The same changes on a copy of `model`, whose weights are brought to their masks, channels or ranks."""
        model = copy.deepcopy(model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            changes = {name: change.on(parameters[name].detach()) for name, change in self.changes.items()}
        return dataclasses.replace(self, model=model, changes=changes, guarantee=guarantee)

    @functools.cached_property
    def masks(self) -> Mapping[str, Tensor]:
        """By weight name, bool of its shape: False where the pruned weight is 0 and stays so."""
        return {name: change.mask for name, change in self.changes.items()}

    @property
    def kept(self) -> int:
        """Values of prunable weights that are stored; for single weights those that are not 0."""
        return sum(change.numbers() for change in self.changes.values())

    @property
    def weights(self) -> int:
        """Prunable weights in all, N."""
        return sum(change.effective().numel() for change in self.changes.values())

    @property
    def parameters(self) -> int:
        """Parameters of the whole network, those that stay dense included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def layers(self) -> "pd.DataFrame":
        """One row a weight: layer, weights, requested, kept, achieved_keep, epsilon_max, epsilon_mean, vacuous.

        epsilon: over what the weight's bound speaks of (blocks, a layer); vacuous: the share of them that removing
        everything would keep as well; NaN without a guarantee.
        """
        import pandas as pd

        rows = []
        promised = {} if self.guarantee is None or self.guarantee.void else self.guarantee.bounds
        for name, change in self.changes.items():
            kept, weights, bound = change.numbers(), change.effective().numel(), promised.get(name)
            row: dict[str, Any] = {
                "layer": name,
                "weights": weights,
                "requested": self.layer_requests[name],
                "kept": kept,
                "achieved_keep": kept / weights,
            }
            row["epsilon_max"] = float("nan") if bound is None else float(bound.epsilon.max())
            row["epsilon_mean"] = float("nan") if bound is None else float(bound.epsilon.mean())
            row["vacuous"] = float("nan") if bound is None else float(bound.vacuous.double().mean())
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def mask_sha256(self) -> str:
        """SHA-256 over the names, masks and values of the pruned weights: equal for equal results."""
        digest = hashlib.sha256()
        parameters = dict(self.model.named_parameters())
        for name, mask in self.masks.items():
            values = parameters[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(mask.shape)} {values.dtype}\n".encode())
            digest.update(mask.cpu().numpy().tobytes())
            digest.update(values.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def apply_masks(self, step: Callable[..., Any] | None = None) -> Callable[..., Any] | None:
        """Bring `model` to its masks (or channels, or ranks) now, or after each step of an optimizer.

            step = pruned.apply_masks(optimizer.step)     # then call step() where you called optimizer.step()

        With `step`: returns a function that runs it and masks again; the guarantee is void from its first call, since
        it speaks of weights as they were pruned, not of retrained ones. Without: masks now, returns None.
        """
        if step is not None:

            @functools.wraps(step)
            def masked_step(*args: Any, **kwargs: Any) -> Any:
                result = step(*args, **kwargs)
                self.apply_masks()
                if self.guarantee is not None:
                    self.guarantee.void = "the weights were retrained after pruning"
                return result

            return masked_step
        with torch.no_grad():
            parameters = dict(self.model.named_parameters())
            for name, change in self.changes.items():
                change.hold(parameters[name])
        return None

    def to_torch_prune(self) -> nn.Module:
        """A copy of `model` whose masks are carried by torch.nn.utils.prune (weight_orig times weight_mask).

        Its tools then work: `prune.is_pruned`, further methods on top, and `prune.remove` to make masks permanent.
        Torch computes masked weights before a module is called, but nn.MultiheadAttention reads its out_proj's weight
        without calling it: to retrain attention use `apply_masks`.
        """
        model = copy.deepcopy(self.model)
        parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        holders = [
            (module, attribute, parameters[id(parameter)])
            for module in model.modules()
            for attribute, parameter in module._parameters.items()
            if parameter is not None and parameters.get(id(parameter)) in self.masks
        ]
        for module, attribute, name in holders:
            HeldMask.apply(module, attribute, mask=self.masks[name])
        return model

    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the pruned network's state dict, which loads into the original architecture.

        .safetensors: `model.load_state_dict(safetensors.torch.load_file(path))`; .pt or .pth:
        `model.load_state_dict(torch.load(path, weights_only=True))`. Atomic. Raises OptionError for another ending,
        StoreError where the file cannot be written.
        """
        path = Path(path)
        # Cloned: tied weights are written out in full, so that the plain loaders find every key.
        state = {name: t.detach().cpu().contiguous().clone() for name, t in self.model.state_dict().items()}
        if path.suffix == ".safetensors":
            import safetensors.torch

            notes = {"sipp-bench": json.dumps(dict(metadata or {}), sort_keys=True)}
            return write_atomically(path, safetensors.torch.save(state, notes))
        if path.suffix in (".pt", ".pth"):
            buffer = io.BytesIO()
            torch.save(state, buffer)
            return write_atomically(path, buffer.getvalue())
        raise OptionError(f"{path} should end in .safetensors, .pt or .pth: the ending says how to write it.")


class HeldMask(BasePruningMethod):
    """A mask made elsewhere, as a method of torch.nn.utils.prune."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """The held mask on top of what is masked already."""
        return default_mask * self.mask.to(default_mask)

    @classmethod
    def apply(cls, module: nn.Module, name: str, mask: Tensor) -> "HeldMask":  # type: ignore[override]  # torch's own methods narrow it too
        """Reparametrise `module.name` by the mask; see torch.nn.utils.prune.BasePruningMethod.apply."""
        method: HeldMask = super().apply(module, name, mask=mask)  # type: ignore[no-untyped-call]  # torch gives no types
        return method
