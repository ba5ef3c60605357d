"""Networks whose layers do more than their modules say: what is applied, and to what, only the forward pass tells."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm


class SamePadded(nn.Conv2d):
    """Pads as TensorFlow does: what is left over goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        (stride, _), size = self.stride, self.kernel_size[0]
        around = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [part for n in around for part in (n // 2, n - n // 2)]))


class Clipped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(0, 0.5))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


class Masked(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.get_buffer("mask"), self.bias)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = SamePadded(1, 6, 3, stride=2), nn.Conv2d(6, 8, 3), nn.Linear(288, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.second(F.relu(self.first(x)))).flatten(1))
        return y


class TiedHead(nn.Module):
    """The head's weight is the embedding's table: it stays dense."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(12, 10), nn.Linear(10, 10), nn.Linear(10, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.middle(self.table(tokens))).mean(1))
        return y


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(20, 30), nn.Conv1d(1, 3, 5), nn.Linear(78, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(input=x))
        y: Tensor = self.head(input=F.relu(self.second(input=x[:, None])).flatten(1))
        return y


class Twice(nn.Module):
    """One convolution on two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 12, 5, padding="same"), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.conv(x)).mean(2) + F.relu(self.conv(x[..., :11])).mean(2))
        return y


class InPlace(nn.Module):
    """The convolution's input is another one by the time that the network is done."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, dilation=2, groups=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x - 0.5
        y = self.conv(x)
        x.relu_()
        z: Tensor = self.head(F.relu(y).mean((2, 3)) + x.mean((1, 2, 3))[:, None])
        return z


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.cells(x.reshape(-1, 5, 4))[0][:, -1])
        return y


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 16, 4, stride=4), nn.Linear(16, 5)
        self.place = nn.Parameter(torch.randn(16, 16) / 10)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.block(self.patches(x).flatten(2).transpose(1, 2) + self.place).mean(1))
        return y


class Queries(nn.Module):
    """Cross-attention: one packed weight is applied in three parts to two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.randn(1, 3, 4))
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 5, 4)
        y: Tensor = self.head(self.attention(self.asked.expand(len(x), -1, -1), x, x)[0].flatten(1))
        return y


class ByVmap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(nn.Linear(20, 30))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.vmap(self.layers)(x)
        return y


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(20, 16, dtype=torch.complex64), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.first(x.to(torch.complex64)).abs())
        return y


def mlp(first: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.ReLU(), nn.Linear(30, 5))


def standardised() -> nn.Module:
    return nn.Sequential(Standardised(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5))


VECTORS, IMAGES, SOUNDS, TOKENS = (20,), (1, 16, 16), (1, 40), (7,)

# A builder, and the shape of a point.
ODD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "TensorFlow's padding": (Padded, IMAGES),
    "clipped input": (lambda: mlp(Clipped(20, 30)), VECTORS),
    "weight norm": (lambda: mlp(parametrizations.weight_norm(nn.Linear(20, 30))), VECTORS),
    "weight norm by hooks": (lambda: mlp(weight_norm(nn.Linear(20, 30))), VECTORS),
    "spectral norm": (lambda: mlp(parametrizations.spectral_norm(nn.Linear(20, 30))), VECTORS),
    "standardised weights": (standardised, IMAGES),
    "masked weights": (lambda: mlp(Masked(20, 30)), VECTORS),
    "tied head": (TiedHead, TOKENS),
    "called with input=": (ByKeyword, VECTORS),
    "called on two lengths": (Twice, SOUNDS),
    "input changed in place": (InPlace, IMAGES),
    "recurrent": (Recurrent, VECTORS),
    "transformer": (Transformer, IMAGES),
    "cross-attention": (Queries, VECTORS),
}


def build(builder: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network with weights by this seed, in training mode as it is when built."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return builder()


def sample(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Points of this shape, whole numbers for tokens."""
    generator = torch.Generator().manual_seed(seed)
    if shape == TOKENS:
        return torch.randint(0, 12, (count, *shape), generator=generator)
    return torch.rand((count, *shape), generator=generator) * 1.5 - 0.25
