"""Networks that the tests of the trace share, and what a trace sees of them."""

from typing import Any

import torch
import torch.nn.functional as F
from samples import signed
from torch import Tensor, nn

from sipp_bench.network.tracing import Call, tracing


def trace_calls(network: nn.Module, *args: Any, **kwargs: Any) -> tuple[list[Call], Any]:
    calls: list[Call] = []
    with torch.no_grad(), tracing(network, lambda call, output: calls.append(call)):
        output = network(*args, **kwargs)
    return calls, output


class Functional(nn.Module):
    """Linear maps in every spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(signed(4, 3)), nn.Parameter(signed(2, 4, 3))
        self.bias = nn.Parameter(signed(4))
        self.c = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.a, self.bias) + F.linear(input=x, bias=None, weight=self.a)
        y = self.c(input=y)
        y = F.conv1d(y[:, :, None].expand(-1, -1, 5), weight=self.b, padding="same", dilation=2)
        return torch.conv1d(y, self.b.detach(), None, 1, 1, 1, 1) if y.shape[1] == 4 else y


def encoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, batch_first=True, **options)


def cross(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(6, 2, batch_first=True, **options)
