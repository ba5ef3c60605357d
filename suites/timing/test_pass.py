"""The sensitivity pass against one forward of the same points."""

import pytest
import torch
from networks import NETWORKS, Pair, call, network

from sipp_bench import measure_sensitivity


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_pass(name: str, threads: int, device: torch.device, pair: Pair) -> None:
    model, points = network(name, device)
    pair(
        call(measure_sensitivity, model, points, batch_size=len(points)), call(model, points),
        device, NETWORKS[name][3],
        table="pass / forward", row=f"{name}, {len(points)} points", column=f"{device}, {threads} threads",
    )  # fmt: skip


@pytest.mark.parametrize("points", [64, 256, 1024])
def test_cost_is_linear_in_the_points(points: int, pair: Pair) -> None:
    model, some = network("lenet-5", torch.device("cpu"))
    many = some.repeat(points // len(some), 1, 1, 1)
    pair(
        call(measure_sensitivity, model, many), call(measure_sensitivity, model, some), torch.device("cpu"), 9,
        table="cost of a pass by the number of points, LeNet-5", row=f"{points} / 64 points", column="ratio",
    )  # fmt: skip


def test_a_large_layer(pair: Pair) -> None:
    layer, tokens = torch.nn.Linear(4096, 11008), torch.rand(2048, 4096)
    pair(
        call(measure_sensitivity, layer, tokens, batch_size=2048), call(layer, tokens), torch.device("cpu"), 3,
        table="pass / forward", row="Linear 4096 -> 11008, 2048 tokens", column="cpu, 1 threads",
    )  # fmt: skip
