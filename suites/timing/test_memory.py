"""Peak memory of the pass beside that of a forward; bytes, not seconds, under the same harness."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, Pair

# Each program starts with this: the largest memory the process has held so far, in KiB.
PEAK = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
"""

PROGRAM = """
import sys, torch
from networks import network
from sipp_bench import measure_sensitivity

torch.set_num_threads(1)
model, points = network(sys.argv[1], torch.device("cpu"))
with torch.no_grad():
    model(points[:1])
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    measure_sensitivity(model, points, batch_size=len(points)) if sys.argv[2] == "pass" else model(points)
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print((peak() - before) * 1024, weights)
"""

STREAM = """
import sys, torch
from torch.utils.data import DataLoader, Dataset
from networks import network
from sipp_bench import measure_sensitivity

class Points(Dataset):
    def __len__(self):
        return int(sys.argv[1])
    def __getitem__(self, index):
        return torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(index))

torch.set_num_threads(1)
model, _ = network("lenet-300-100", torch.device("cpu"))
measure_sensitivity(model, torch.rand(256, 1, 28, 28), batch_size=256)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
measure_sensitivity(model, DataLoader(Points(), batch_size=256))
print((peak() - before) * 1024)
"""


def printed(program: str, *arguments: str) -> list[int]:
    """The numbers that a program prints in a process of its own."""
    command = [sys.executable, "-c", PEAK + program, *arguments]
    folder = Path(__file__).parent
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return [int(number) for number in result.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", NETWORKS)
def test_peak_memory(name: str, pair: Pair, request: pytest.FixtureRequest) -> None:
    found: dict[str, list[int]] = {"pass": [], "forward": []}

    def run(what: str) -> None:
        extra, weights = printed(PROGRAM, name, what)
        # A forward's peak is its network and its activations.
        found[what].append(extra + (weights if what == "forward" else 0))

    pair(
        lambda: run("pass"), lambda: run("forward"), torch.device("cpu"), 1, elsewhere=True,
        table="memory", row=name, column="cpu", peak_bytes=found,
    )  # fmt: skip
    benchmark = request.getfixturevalue("benchmark")
    low = sorted(p / f for p, f in zip(found["pass"], found["forward"], strict=True))
    benchmark.extra_info.update(
        table="extra peak memory of the pass / peak of a forward, network included",
        ratio_quartiles=[low[0], low[len(low) // 2], low[-1]],
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_streamed_points_take_constant_memory(pair: Pair) -> None:
    found: dict[int, list[int]] = {100_000: [], 5_000: []}

    def run(points: int) -> None:
        found[points] += printed(STREAM, str(points))

    pair(
        lambda: run(100_000), lambda: run(5_000), torch.device("cpu"), 1, elsewhere=True,
        table="time of a streamed pass (generating the points included)", row="100,000 / 5,000 points",
        column="LeNet-300-100, 256 a batch", growth_bytes={str(points): sizes for points, sizes in found.items()},
    )  # fmt: skip
