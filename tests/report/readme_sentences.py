"""Sentences of the README outside its sections of results, computed from the raw data in reports/."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from scipy import stats

REPORTS = Path(__file__).parents[2] / "reports"
PASSES = {
    "lenet-300-100": "| LeNet-300-100, 256 points | {} | 5 |",
    "lenet-5": "| LeNet-5, 64 points | {} | 3.5 |",
    "resnet-20": "| ResNet-20, 64 points of 32x32 | {} | 3.5 |",
    "vgg16-bn": "| VGG16-BN, 64 points of 32x32 | {} | 4.5 |",
    "resnet-18": "| ResNet-18, 8 points of 224x224 | {} | 3.5 |",
    "vit-b-16": "| ViT-B/16, 1 point of 224x224 | {} | - |",
}
KERNELS = {
    "LeNet fc1": "LeNet fc1",
    "ResNet 16 channels": "ResNet, 16 channels",
    "ResNet 64 channels": "ResNet, 64 channels",
    "VGG 512 channels": "VGG, 512 channels",
    "transformer 384 x 1536": "transformer, 384 x 1536",
}


def benchmarks(name: str) -> dict[str, dict[str, Any]]:
    found = json.loads((REPORTS / "timing" / f"{name}.json").read_text(encoding="utf-8"))["benchmarks"]
    return {each["name"]: each["extra_info"] for each in found}


def ratio(info: dict[str, Any]) -> float:
    """The median ratio over pairs, from the raw samples."""
    pairs = zip(info["subject_seconds"], info["reference_seconds"], strict=True)
    return median(subject / reference for subject, reference in pairs)


def shown(value: float) -> str:
    return f"{value:.2g}"


def timing() -> Iterator[str]:
    timed, threads = benchmarks("timing"), benchmarks("threads-and-memory")
    for network, row in PASSES.items():
        yield row.format(shown(ratio(timed[f"test_pass[cpu-1-{network}]"])))
    for name, row in KERNELS.items():
        kinds = ("native avx512", "native avx2", "native sse2", "torch")
        found = [timed.get(f"test_kernel[{kind}-{name}]") for kind in kinds]
        yield f"| {row} | {' | '.join('-' if each is None else shown(ratio(each)) for each in found)} |"

    def seconds(network: str, count: int) -> float:
        return median(threads[f"test_pass[cpu-{count}-{network}]"]["subject_seconds"])

    networks = ("vgg16-bn", "resnet-20", "lenet-5", "lenet-300-100")
    gains = {name: seconds(name, 1) / seconds(name, 2) for name in networks}
    alone, both = (seconds("vgg16-bn", count) for count in (1, 2))
    lenets = sorted({f"{gains[name]:.1f}" for name in ("lenet-5", "lenet-300-100")})
    yield (
        f"With two threads a pass over VGG16 takes {both:.1f} s instead of {alone:.1f} ({gains['vgg16-bn']:.1f} times "
        f"as fast), ResNet-20 {gains['resnet-20']:.1f}, the LeNets {' and '.join(lenets)} times (wanted: 1.6)."
    )

    def peak(network: str) -> str:
        measured = threads[f"test_peak_memory[{network}]"]["peak_bytes"]
        return f"{median(a / b for a, b in zip(measured['pass'], measured['forward'], strict=True)):.1f}"

    small = sorted(map(peak, ("lenet-5", "resnet-20", "vgg16-bn", "resnet-18")))
    yield (
        "Peak memory beyond the network's, against the peak of a forward with its network (wanted: 2): "
        f"{small[0]} to {small[-1]} for LeNet-5, ResNet-20, VGG16 and ResNet-18; {peak('vit-b-16')} for ViT-B/16 and "
        f"{peak('lenet-300-100')} for LeNet-300-100, whose weights, of which a pass holds the magnitudes of both signs "
        "and the sensitivities, outweigh their activations."
    )
    split = timed["test_allocation_against_a_conic_solver[20000]"]
    yield (
        f"Splitting a budget over 20,000 blocks takes {1e3 * median(split['subject_seconds']):.0f} ms (a conic solver: "
        f"{float(shown(1 / ratio(split))):g} times as long), over 1,000,000 blocks "
        f"{median(timed['test_a_million_blocks']['subject_seconds']):.1f} s."
    )
    vgg = timed["test_kernel[native avx512-VGG 512 channels]"]
    flops = 2 * vgg["patches"] * vgg["n"] * 2 * vgg["neurons"]
    yield (
        "On Intel's cores both kinds of 512-bit instruction share the same two ports, and `torch.mm` runs near their "
        f"peak ({flops / median(vgg['reference_seconds']) / 1e9:.0f} GFLOP/s for the VGG shape)."
    )


def theory() -> Iterator[str]:
    run = json.loads((REPORTS / "theory" / "data" / "theory.json").read_text(encoding="utf-8"))
    matrix = pd.read_csv(REPORTS / "theory" / "data" / "matrix.csv").query("required")
    falsified = sum(finding["verdict"] == "falsified" for finding in run["findings"])
    alarms, seeds = len(run["false alarms"]["alarms"]), run["false alarms"]["seeds"]
    (repeats,) = matrix["repeats"].unique()
    assert (matrix["rejected"] == repeats).all()
    low = stats.binomtest(int(repeats), int(repeats)).proportion_ci().low
    high = stats.binomtest(alarms, seeds).proportion_ci().high
    yield (
        f"[reports/theory](reports/theory) is such a run: {falsified} of {len(run['findings'])} claims falsified, "
        f"{alarms} alarms in {seeds} runs on correct code (95 % interval of the rate: 0 to {high:.2f}), and each of "
        f"{matrix['known_bad'].nunique()} wrong pruners (a halved bound, a forgotten union bound, points reused, ...) "
        f"rejected {repeats} of {repeats} times by every claim that must reject it, {len(matrix)} pairs; of one pair "
        f"alone that leaves a detection rate from {low:.2f} up (95 % interval)."
    )
    power = pd.read_csv(REPORTS / "theory" / "data" / "power.csv")
    every = power[power["rejected"] == power["repeats"]].groupby("claim")["shrink"].max()
    yield (
        f"Bounds of C10, C11 and C13 are rejected every time only if shrunk to {every['C10']:g}, {every['C11']:g} and "
        f"{every['C13']:g}: those bounds are not tight, so that a bound a little smaller is true as well."
    )


def false_alarms() -> Iterator[str]:
    found = json.loads((REPORTS / "baselines" / "false-alarms.json").read_text(encoding="utf-8"))
    same, slower = (found["repetitions_with"][side] for side in ("same", "slower"))
    one, every, turns, single = same
    of = found["repetitions"]
    none = [same[kind][what]["count"] for kind in (one, every, turns) for what in ("regression", "better")]
    assert not any(none)
    high = stats.binomtest(0, of).proportion_ci().high
    yield (
        f"Measured, three sides in turns, {of} times on two cores ([raw samples](reports/baselines/false-alarms.json), "
        "made by `python -m sipp_bench.compare.false_alarms`): for equal code no false regression and no false "
        f"improvement, by ratios or by seconds of runs in turns (of {of} each; 95 % interval 0 to {100 * high:.1f} %)."
    )
    yield (
        f"Code that is {100 * found['slower_by']:.0f} % slower was found in {slower[one]['regression']['count']} of "
        f"{of} by ratios of one run a side ({found['rounds_a_run']} rounds), in {slower[every]['regression']['count']} "
        f"of {of} by those of six, in {slower[turns]['regression']['count']} by seconds of six runs in turns."
    )
    wrong = sum(same[single][what]["count"] for what in ("regression", "better"))
    yield f"Seconds of one run a side would have given {wrong} false alarms."


def reliability() -> Iterator[str]:
    soak = json.loads((REPORTS / "reliability" / "soak.json").read_text(encoding="utf-8"))
    yield (
        f"Full disks, fuzzing and a soak of {len(soak['cells']):,} cells: "
        "[reports/reliability.md](reports/reliability.md); scripts in `tests/reliability`."
    )


def sentences() -> list[str]:
    return [*timing(), *theory(), *false_alarms(), *reliability()]


if __name__ == "__main__":
    print("\n".join(sentences()))
