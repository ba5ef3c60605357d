"""The mode in which networks are measured."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def eval_mode(*models: nn.Module, fast_path: bool = False) -> Iterator[None]:
    """Eval mode without gradients while the block runs; every module's training flag is as before when it ends.

    fast_path: whether attention may take torch's fused path, which rounds differently and hides its operations.
    """
    flags = [(module, module.training) for model in models for module in model.modules()]
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        for module, _ in flags:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(before and fast_path)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for module, flag in flags:
            module.training = flag
