"""A small network of each kind, with points for it."""

import torch
from oracle import Array, patches
from torch import Tensor, nn

PRUNABLE = {"mlp": 2, "conv": 3, "attention": 4}
KINDS = sorted(PRUNABLE)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        attended, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.norm(x + attended).mean(1))


def build(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network and 9 points."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "mlp":
            model, points = nn.Sequential(nn.Linear(12, 14), nn.ReLU(), nn.Linear(14, 4)), torch.randn(9, 12)
        elif kind == "conv":
            model = nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
                nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4),
            )  # fmt: skip
            nn.init.uniform_(model[1].running_var, 0.5, 2)
            nn.init.normal_(model[1].running_mean)
            points = torch.randn(9, 2, 5, 5)
        else:
            model, points = Attention(), torch.randn(9, 6, 5)
    return model.to(dtype), points.to(dtype)


def layer_patches(model: nn.Module, points: Tensor) -> dict[str, tuple[nn.Module, Array]]:
    """For mlp and conv in eval mode, by weight name: the layer and the patches that reach it."""
    assert isinstance(model, nn.Sequential)
    found: dict[str, tuple[nn.Module, Array]] = {}
    with torch.no_grad():
        for index, module in enumerate(model.eval()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[f"{index}.weight"] = (module, patches(module, points))
            points = module(points)
    return found
