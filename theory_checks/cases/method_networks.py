"""The networks that every method is checked on, with points for each."""

import torch
from torch import Tensor, nn


def mlp() -> tuple[nn.Module, Tensor]:
    """Two Linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 5)), torch.randn(12, 20)


def conv() -> tuple[nn.Module, Tensor]:
    """A convolution with batch-norm, one in groups, and a Linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(),
            nn.Conv2d(6, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip
        state = model.state_dict()
        state["1.running_var"].uniform_(0.5, 2)
        return model, torch.randn(7, 2, 6, 6)
