"""One measurement by 1, 2 and 3 ranks, and what happens when a rank dies: writes reports/reliability/ranks.json.

    python tests/reliability/ranks.py

Each case is started by torchrun with one thread a rank; a rank compares the result with what it measures by itself. A
death is tried without torchrun too, whose agent ends the other processes before they need to notice.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sipp_bench import Sensitivity, measure_sensitivity
from sipp_bench.errors import RankError
from sipp_bench.machine.system import describe_system
from sipp_bench.zoo.models import build

NETWORK, POINTS, BATCH, REPEATS = "resnet-20", 48, 8, 3


def equal(one: Sensitivity, other: Sensitivity) -> bool:
    """Every number of both, to the last bit."""
    counts = (one.num_points, one.num_patches, list(one), one.skipped)
    if counts != (other.num_points, other.num_patches, list(other), other.skipped):
        return False
    layers = [(layer, other[name]) for name, layer in one.items()]
    return all(torch.equal(a.values, b.values) and torch.equal(a.active, b.active) for a, b in layers)


def measure(folder: Path) -> None:
    """On each rank: seconds of a measurement by all, and whether it equals one by itself."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, points = build(NETWORK, (3, 32, 32), 10), torch.randn(POINTS, 3, 32, 32)
    together, seconds = measure_sensitivity(model, points, batch_size=BATCH, group="world"), []
    for _ in range(REPEATS):
        dist.barrier()
        start = time.perf_counter()
        measure_sensitivity(model, points, batch_size=BATCH, group="world")
        seconds.append(time.perf_counter() - start)
    found: dict[str, Any] = {"rank": dist.get_rank(), "seconds": seconds, "num_points": together.num_points}
    dist.barrier()
    for reduction in ("max", "mean"):
        alone = measure_sensitivity(model, points, batch_size=BATCH, patch_reduction=reduction)  # type: ignore[arg-type]
        sens = measure_sensitivity(model, points, batch_size=BATCH, patch_reduction=reduction, group="world")  # type: ignore[arg-type]
        found[f"bitwise equal, {reduction}"] = equal(sens, alone)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


class Deadly(nn.Linear):
    """The last rank is killed in the middle of its points; it writes down when."""

    folder = Path()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if dist.get_rank() == dist.get_world_size() - 1:
            (self.folder / "killed").write_text(str(time.time()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def die(folder: Path, rank: int, size: int) -> None:
    """On each rank, without torchrun: the sentence that the others get; they then live on for five seconds."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.manual_seed(0)
    layer = Deadly(3, 2)
    layer.folder = folder
    try:
        measure_sensitivity(layer, torch.ones(size, 3), batch_size=1, group="world")
    except RankError as error:
        found = {"rank": rank, "at": time.time(), "sentence": str(error)}
        (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        time.sleep(5)


def torchrun(ranks: int) -> list[dict[str, Any]]:
    """What each rank of one case found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, __file__, "--measure", folder], check=True, env=environment)
        return [json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def deaths(ranks: int) -> dict[str, Any]:
    """Seconds from the death of the last rank until each of the others raised."""
    with tempfile.TemporaryDirectory() as name:
        folder, command = Path(name), [sys.executable, __file__, "--die", name]
        started = [subprocess.Popen([*command, str(rank), str(ranks)]) for rank in range(ranks)]
        for process in started:
            process.wait()
        killed = float((folder / "killed").read_text(encoding="utf-8"))
        found = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks - 1)]
    return {
        "ranks": ranks,
        "seconds until the others raised": [one["at"] - killed for one in found],
        "sentence": found[0]["sentence"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=Path, help="one rank of a case; used by this program itself")
    parser.add_argument("--die", nargs=3, help="one rank of a death; used by this program itself")
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/reliability/ranks.json"))
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    elif arguments.die:
        die(Path(arguments.die[0]), int(arguments.die[1]), int(arguments.die[2]))
    else:
        task = {"network": NETWORK, "points": POINTS, "batch_size": BATCH, "threads_per_rank": 1, "backend": "gloo"}
        found: dict[str, Any] = {"task": task, "system": describe_system(), "cases": []}
        for ranks in (1, 2, 3):
            load = os.getloadavg()[0]
            found["cases"].append({"ranks": ranks, "load_before": load, "found": torchrun(ranks)})
        found["deaths"] = [deaths(ranks) for ranks in (3, 5)]
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
