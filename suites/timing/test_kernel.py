"""The max-times product against torch's matrix product of the same shape with twice the columns."""

import pytest
import torch
from networks import Pair

from sipp_bench.maxtimes import chunked, native
from sipp_bench.maxtimes.triton_kernel import max_product as triton_product
from sipp_bench.network.patches import Windows

CPU = torch.device("cpu")
# name -> patches, columns n, neurons M
SHAPES = {
    "LeNet fc1": (256, 784, 300),
    "ResNet 16 channels": (64 * 1024, 144, 16),
    "ResNet 64 channels": (4096, 576, 64),
    "VGG 512 channels": (1024, 4608, 512),
    "transformer 384 x 1536": (1024, 384, 1536),
}
NATIVE = native.variants() if native.unavailable(CPU, torch.float32) is None else ()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", [*(f"native {v}" for v in NATIVE), "torch", "triton"])
def test_kernel(shape: str, backend: str, pair: Pair) -> None:
    patches, n, neurons = SHAPES[shape]
    if backend == "triton" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    if backend == "torch" and patches * n * neurons > 3e8:
        pytest.skip("the torch backend takes minutes for this shape")
    device = torch.device("cuda" if backend == "triton" else "cpu")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, n, patches, generator=generator).to(device)
    z = (torch.rand(1, 1, 2 * neurons, patches, generator=generator) + 0.1).to(device)
    positive = (torch.rand(1, neurons, n, generator=generator) < 0.5).to(device)
    out, windows = torch.zeros(1, neurons, n, device=device), Windows(x)
    a, r = x[0].t().contiguous(), z[0, 0].t().contiguous()

    def product() -> None:
        if backend == "triton":
            triton_product(windows, z, positive, out)
        elif backend == "torch":
            chunked.max_product(windows, z, positive, out)
        else:
            native.max_product(windows, z, positive, out, backend.removeprefix("native "))

    pair(
        product, lambda: torch.mm(a.t(), r), device, 9,
        table="kernel / mm with 2M columns", row=shape, column=backend, patches=patches, n=n, neurons=neurons,
    )  # fmt: skip
