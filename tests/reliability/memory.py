"""How much memory a measurement takes, in one pass and in several: writes reports/reliability/memory.json.

    python tests/reliability/memory.py

Each case runs in a process of its own (Linux only: it reads /proc), which prints by how much its resident memory rose
above what it held before: the network, the points and one forward.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sipp_bench import measure_sensitivity
from sipp_bench.machine.system import describe_system
from sipp_bench.network.points import digest

LAYERS, WIDTH, POINTS = 3, 4096, 8
BOUNDS = (None, 750_000_000, 600_000_000, 420_000_000, 300_000_000)


def resident(peak: bool) -> int:
    """Bytes of this process in memory now, or the most since the peak was reset."""
    field = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure(memory: int | None) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    model, points = nn.Sequential(*layers), torch.randn(POINTS, WIDTH)
    with torch.no_grad():
        model(points)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident(peak=False)
    try:
        sens = measure_sensitivity(model, points, memory=memory)
    except ValueError as error:
        return {"memory": memory, "refused": str(error)}
    grown = resident(peak=True) - before
    return {
        "memory": memory,
        "passes": sens.passes,
        "counted_peak_bytes": sens.peak_bytes,
        "resident_growth_bytes": grown,
        "values_sha256": digest(*(layer.values for layer in sens.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", help="one case in this process: bytes, or 'none'")
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/reliability/memory.json"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(None if arguments.one == "none" else int(arguments.one))))
        return
    cases = []
    for bound in BOUNDS:
        command = [sys.executable, __file__, "--one", "none" if bound is None else str(bound)]
        cases.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(json.dumps(cases[-1]))
    network = {"layers": LAYERS, "width": WIDTH, "weights": LAYERS * WIDTH**2, "points": POINTS}
    found = {"network": network, "system": describe_system(), "cases": cases}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
