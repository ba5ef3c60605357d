"""Measured times of a dense and a pruned network. Masks alone give no speed-up: both run the same dense kernels."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from sipp_bench.errors import OptionError
from sipp_bench.measures.modes import eval_mode
from sipp_bench.network.points import Inputs, call_model, model_device

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Latency:
    """Seconds of each forward pass, as measured; the i-th samples of both are of one pair, next to each other."""

    dense: tuple[float, ...]
    pruned: tuple[float, ...]

    def quartiles(self) -> dict[str, tuple[float, float, float]]:
        """Lower quartile, median and upper quartile of `dense`, of `pruned`, and of `ratio`: dense / pruned by pair."""
        samples = {"dense": np.array(self.dense), "pruned": np.array(self.pruned)}
        samples["ratio"] = samples["dense"] / samples["pruned"]
        quartiles = {name: np.percentile(values, [25, 50, 75]).tolist() for name, values in samples.items()}
        return {name: (low, middle, high) for name, (low, middle, high) in quartiles.items()}


def latency_pair(dense: nn.Module, pruned: nn.Module, inputs: Inputs, repeats: int = 30, warmup: int = 3) -> Latency:
    """Time `repeats` pairs of forward passes on `inputs`, interleaved, after `warmup` pairs that don't count.

    Which network goes first alternates from pair to pair, so that a machine that slows down or warms up meets both
    alike. In eval mode, attention's fast path allowed; on a GPU, until its work is done. These are samples of a noisy
    quantity: report medians and quartiles with the machine, and expect a ratio of 1 for masked weights.
    """
    if repeats < 1 or warmup < 0:
        raise OptionError(f"repeats is at least 1 and warmup at least 0, not {repeats} and {warmup}.")
    pairs: list[tuple[float, float]] = []
    with eval_mode(dense, pruned, fast_path=True):
        for number in range(-warmup, repeats):
            if number % 2 == 0:
                first = _seconds(dense, inputs)
                pair = (first, _seconds(pruned, inputs))
            else:
                first = _seconds(pruned, inputs)
                pair = (_seconds(dense, inputs), first)
            if number >= 0:
                pairs.append(pair)
    return Latency(tuple(one for one, _ in pairs), tuple(other for _, other in pairs))


def reference_samples(repeats: int = 11) -> list[float]:
    """Seconds of a product of two float32 matrices of 256 x 256 on the CPU, `repeats` times after a first one.

    What is timed next to it in the same run compares as a ratio to it across machines and busy hours.
    """
    matrix = torch.ones(256, 256)
    torch.mm(matrix, matrix)
    return [timed(lambda: torch.mm(matrix, matrix))[1] for _ in range(repeats)]


def timed(work: Callable[[], _Result], device: torch.device | str = "cpu") -> tuple[_Result, float]:
    """The result and its seconds; on a GPU from when `device` has nothing else to do until it is done."""
    _wait(torch.device(device))
    start = time.perf_counter()
    result = work()
    _wait(torch.device(device))
    return result, time.perf_counter() - start


def _seconds(model: nn.Module, inputs: Inputs) -> float:
    return timed(lambda: call_model(model, inputs), model_device(model))[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
