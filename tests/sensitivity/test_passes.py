"""Several passes for lack of memory: the same bits, as many passes as must be, no point that changes between them."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import KINDS, build
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sipp_bench as sb
from sipp_bench.errors import OptionError, PointsError
from sipp_bench.machine import memory
from sipp_bench.sensitivity import footprint

WIDTHS = (60, 300, 500, 400, 200)


def deep() -> tuple[nn.Module, Tensor]:
    """Four Linear layers of 18,000, 150,000, 200,000 and 80,000 weights, and 10 points."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())]), torch.randn(10, 60)


def allowed(model: nn.Module, *names: str, before: tuple[str, ...] = ()) -> int:
    """Bytes for these layers in one pass, when `before` are finished; with room for workspace, not for a layer."""
    weights = dict(model.named_parameters())
    finished = sum(5 * weights[name].numel() + 16 * len(weights[name]) for name in before)
    return finished + sum(footprint.held_bytes(weights[name]) for name in names) + (1 << 20) + 500_000


def same(one: sb.Sensitivity, other: sb.Sensitivity) -> None:
    assert list(one) == list(other)
    assert (one.num_points, one.num_patches, one.skipped) == (other.num_points, other.num_patches, other.skipped)
    for name, layer in one.items():
        assert torch.equal(layer.values, other[name].values)
        assert torch.equal(layer.active, other[name].active)
        assert torch.equal(layer.positive, other[name].positive)
        assert layer.num_patches == other[name].num_patches


def test_as_many_passes_as_must_be_with_the_same_bits() -> None:
    model, points = deep()
    full = sb.measure_sensitivity(model, points, batch_size=4)
    assert full.passes == 1
    expected = sum(footprint.held_bytes(weight) for name, weight in model.named_parameters() if "weight" in name)
    assert full.peak_bytes == expected
    names = list(full)
    bounds = {
        allowed(model, *names): 1,
        # The first three beside each other; then the last.
        allowed(model, *names[:3]): 2,
        # The first two; the third by itself beside what they left; the last.
        allowed(model, names[2], before=tuple(names[:2])): 3,
    }
    for bound, passes in bounds.items():
        sens = sb.measure_sensitivity(model, points, batch_size=4, memory=bound)
        assert sens.passes == passes
        assert sens.peak_bytes < bound
        same(sens, full)
    assert sens.peak_bytes < full.peak_bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_every_kind_of_layer_in_a_pass_of_its_own(kind: str, reduction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = build(kind)
    full = sb.measure_sensitivity(model, points, batch_size=4, patch_reduction=reduction)
    monkeypatch.setattr("sipp_bench.sensitivity.passes.workspace_bytes", lambda *args, **kwargs: 0)
    weights = dict(model.named_parameters())
    last = list(full)[-1]
    # Enough for each layer beside what is finished by then, and not for all at once.
    least = max(
        sum(full[done].values.nbytes * 5 // 4 + full[done].active.nbytes for done in list(full)[:index])
        + footprint.held_bytes(weights[name])
        for index, name in enumerate(full)
    )
    sens = sb.measure_sensitivity(model, points, batch_size=4, patch_reduction=reduction, memory=least)
    assert sens.passes > 1
    assert sens.peak_bytes <= least
    same(sens, full)
    with pytest.raises(OptionError, match=r"no room to measure '.*', not even by itself.*memory="):
        sb.measure_sensitivity(
            model, points, patch_reduction=reduction, memory=footprint.held_bytes(weights[last]) // 2
        )


class Stream(IterableDataset[Tensor]):
    """Points that can be read `times` times, and are others each time if `fresh`."""

    def __init__(self, points: Tensor, times: int = 9, fresh: bool = False) -> None:
        self.points, self.times, self.fresh = points, times, fresh

    def __iter__(self) -> Iterator[Tensor]:
        self.times -= 1
        yield from self.points + (self.times if self.fresh else 0) if self.times >= 0 else ()


class Augmented(Dataset[Tensor]):
    """A point moves a little each time it is read."""

    def __init__(self, points: Tensor) -> None:
        self.points, self.reads = points, 0

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.points[index] + 1e-3 * self.reads


def test_each_pass_sees_the_same_points_or_none_is_trusted() -> None:
    model, points = deep()
    full = sb.measure_sensitivity(model, points, batch_size=4)
    bound = allowed(model, *list(full)[:3])
    for good in (points.numpy(), TensorDataset(points), DataLoader(Stream(points), batch_size=4)):
        sens = sb.measure_sensitivity(model, good, batch_size=4, memory=bound)
        assert sens.passes == 2
        same(sens, full)
    # An order drawn once: two passes see the same points, and all of them.
    torch.manual_seed(3)
    shuffled = sb.measure_sensitivity(model, DataLoader(TensorDataset(points), 4, shuffle=True), memory=bound)
    assert (shuffled.passes, shuffled.num_points) == (2, 10)
    torch.testing.assert_close(shuffled["6.weight"].values, full["6.weight"].values, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(shuffled["0.weight"].values, full["0.weight"].values, rtol=1e-5, atol=1e-7)
    bad = {
        "read once": DataLoader(Stream(points, times=1), batch_size=4),
        "other points": DataLoader(Stream(points, fresh=True), batch_size=4),
        "augmented": Augmented(points),
        "a last batch more": DataLoader(Growing(points), batch_size=5),
    }
    for name, loader in bad.items():
        # Measured in one pass, they are as good as any.
        fresh: Any = DataLoader(Stream(points, times=1), batch_size=4) if name == "read once" else loader
        assert sb.measure_sensitivity(model, fresh, memory=1 << 30).passes == 1
        with pytest.raises(PointsError, match="second pass are not those of the first"):
            sb.measure_sensitivity(model, loader, memory=bound)


class Growing(Stream):
    def __iter__(self) -> Iterator[Tensor]:
        self.times -= 1
        yield from self.points[: 5 if self.times % 2 else 10]


def test_a_point_changed_by_the_network_itself_is_noticed() -> None:
    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = deep()[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mul_(2))

    model, points = Hungry(), deep()[1]
    bound = allowed(model.inner, "0.weight", "2.weight", "4.weight")
    with pytest.raises(PointsError, match="second pass"):
        sb.measure_sensitivity(model, points, memory=bound)


def test_what_cannot_be_had_in_several_passes_is_refused() -> None:
    model, points = deep()
    bound = allowed(model, "0.weight", "2.weight", "4.weight")
    with pytest.raises(OptionError, match="derive_outputs needs the sums of all layers in one pass"):
        sb.measure_sensitivity(model, points, memory=bound, derive_outputs=True)
    for bad in (0, -5, True, 1.5):
        with pytest.raises(OptionError, match="memory is a whole number of bytes"):
            sb.measure_sensitivity(model, points, memory=bad)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(PointsError, match="no points"):
        sb.measure_sensitivity(model, points[:0], memory=bound)
    with pytest.raises(OptionError, match="batch_size"):
        sb.measure_sensitivity(model, points, memory=bound, batch_size=0)
    with pytest.raises(PointsError, match="Point 6 holds NaN"):
        sb.measure_sensitivity(model, points.index_fill(0, torch.tensor(6), torch.nan), memory=bound, batch_size=4)


def test_the_room_is_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, points = deep()
    cpu = torch.device("cpu")
    names = [name for name, _ in model.named_parameters() if "weight" in name]
    bound = allowed(model, *names[:3])
    free = memory.free_bytes
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * bound // 3 + 4)
    assert sb.measure_sensitivity(model, points).passes == 2
    assert memory.room(None, cpu, processes=2) == (bound + 3) // 2
    monkeypatch.setattr(memory, "free_bytes", free)
    assert 1 << 20 < memory.free_bytes(cpu) < 1 << 60
    # A container's limit, as control groups of version 2 say it: on the group itself, and on one around it.
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    for folder, limit, used, cached in ((group, "max", 700, 100), (group.parent, "2000", 900, 50)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 3\ninactive_file {cached}\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/outer/inner\n")
    assert memory.free_bytes(cpu) == 2000 - 900 + 50
    # Version 1, seen from within the container: the path is the host's.
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("5000\n")
    (old / "memory.usage_in_bytes").write_text("1000\n")
    (old / "memory.stat").write_text("total_inactive_file 500\n")
    (tmp_path / "membership").write_text("4:memory:/host/path\n2:cpu:/host/path\n")
    assert memory.free_bytes(cpu) == 4500
    (old / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.free_bytes(cpu) > 5000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_network_stays_below_the_memory_it_is_given() -> None:
    # 50 million weights, whose running maxima take 655 MB.
    program = Path(__file__).parents[2] / "tests" / "reliability" / "memory.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(sb.__file__).parents[1])}

    def case(bound: str) -> dict[str, Any]:
        command = [sys.executable, str(program), "--one", bound]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    grouped, plain = case("420000000"), case("none")
    assert (grouped["passes"], plain["passes"]) == (3, 1)
    assert grouped["counted_peak_bytes"] <= grouped["resident_growth_bytes"] <= 420_000_000
    assert plain["resident_growth_bytes"] > 655_000_000
    assert grouped["values_sha256"] == plain["values_sha256"]
