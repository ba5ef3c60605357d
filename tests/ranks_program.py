"""What several ranks check together; started by torchrun from test_ranks.py, prints one JSON object a rank."""

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_networks import KINDS, build
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

import sipp_bench as sb
from sipp_bench.errors import ModelError, OptionError, PointsError, RankError, SippBenchError
from sipp_bench.network.points import digest


class Stream(IterableDataset[Tensor]):
    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.points


def same(one: sb.Sensitivity, other: sb.Sensitivity) -> None:
    assert list(one) == list(other)
    assert (one.num_points, one.num_patches, one.skipped) == (other.num_points, other.num_patches, other.skipped)
    for name, layer in one.items():
        assert torch.equal(layer.values, other[name].values), name
        assert torch.equal(layer.active, other[name].active), name
        assert torch.equal(layer.positive, other[name].positive), name
        assert torch.equal(layer.totals, other[name].totals), name
        assert layer.num_patches == other[name].num_patches


def refused(kind: type[Exception], sentence: str, *arguments: Any, **options: Any) -> None:
    """Every rank raises this class with this sentence in it."""
    with pytest.raises(kind, match=re.escape(sentence)):
        sb.measure_sensitivity(*arguments, **options)


def three_ranks_and_two() -> None:
    pair = dist.new_group([0, 1])
    for kind in KINDS:
        model, points = build(kind)
        for reduction in ("max", "mean"):
            # Five batches: 2, 2 and 1 on three ranks, 3 and 2 on two.
            alone = sb.measure_sensitivity(model, points, batch_size=2, patch_reduction=reduction)
            options: Any = {"batch_size": 2, "patch_reduction": reduction}
            same(sb.measure_sensitivity(model, points, group="world", **options), alone)
            if dist.get_rank() < 2:
                same(sb.measure_sensitivity(model, points, group=pair, **options), alone)
    if dist.get_rank() == 2:
        refused(OptionError, "Process 2 is not in the given group", model, points, group=pair)


def empty_shards() -> None:
    model, points = build("conv")
    for size in (5, 9):  # two batches, and one, for three ranks
        sens = sb.measure_sensitivity(model, points, batch_size=size, group="world")
        same(sens, sb.measure_sensitivity(model, points, batch_size=size))
    refused(PointsError, "There are no points", model, points[:0], group="world")


def every_form_of_points() -> None:
    model, points = build("mlp")
    alone = sb.measure_sensitivity(model, points, batch_size=2)
    forms: list[Any] = [
        points.numpy(),
        TensorDataset(points, torch.arange(9)),
        DataLoader(TensorDataset(points), batch_size=2),
        DataLoader(Stream(points), batch_size=2),
    ]
    for form in forms:
        same(sb.measure_sensitivity(model, form, batch_size=2, group="world"), alone)
    # Each rank shuffles in its own way: all take the ascending order.
    torch.manual_seed(dist.get_rank())
    shuffled = DataLoader(TensorDataset(points), batch_size=2, shuffle=True)
    same(sb.measure_sensitivity(model, shuffled, group="world"), alone)
    # All shuffle in one way: that order.
    once, again = (DataLoader(TensorDataset(points), 2, True, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    same(sb.measure_sensitivity(model, once, group="world"), sb.measure_sensitivity(model, again, memory=1 << 30))


class Sometimes(nn.Module):
    """A second layer that only points with a positive first number reach."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.always(x)
        return self.sometimes(hidden) if bool(x[0, 0] > 0) else hidden


def a_layer_that_one_ranks_points_reach() -> None:
    torch.manual_seed(0)
    model, points = Sometimes(), torch.randn(3, 3)
    points[:, 0] = torch.tensor([-1.0, 1.0, -1.0])
    sens = sb.measure_sensitivity(model, points, batch_size=1, group="world")
    assert list(sens) == ["always.weight", "sometimes.weight"]
    assert list(sens.skipped) == ["never.weight"]
    assert sens["sometimes.weight"].num_patches == 1
    same(sens, sb.measure_sensitivity(model, points, batch_size=1))


class Failing(Dataset[Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        if index == 3:
            raise KeyError("no file for this point")
        return torch.ones(12) * index


def one_rank_fails() -> None:
    model, points = build("mlp")
    bad = points.index_fill(0, torch.tensor(5), torch.nan)
    # Batches 0, 1, 2 of two points: the last is rank 2's.
    own = dist.get_rank() == 2
    sentence = "Point 5 holds NaN"
    refused(PointsError, sentence if own else f"On rank 2: {sentence}", model, bad, batch_size=2, group="world")
    kind, sentence = (KeyError, "no file") if dist.get_rank() == 1 else (RankError, "Rank 1 failed with KeyError")
    refused(kind, sentence, model, Failing(), batch_size=2, group="world")
    # Nothing is out of step afterwards.
    same(sb.measure_sensitivity(model, points, group="world"), sb.measure_sensitivity(model, points))


def what_differs_between_ranks() -> None:
    rank = dist.get_rank()
    model, points = build("mlp")
    other, _ = build("mlp", seed=rank // 2)
    refused(ModelError, "ranks 0 and 2 differ in '0.weight'", other, points, group="world")
    size = 4 if rank == 1 else 5
    refused(OptionError, "Rank 1 was given other options", model, points, batch_size=size, group="world")
    refused(PointsError, "Rank 1 has other points", model, points + rank, group="world")
    refused(PointsError, "Rank 1 has other points", model, TensorDataset(points + rank), group="world")
    refused(PointsError, "Rank 2 has other points", model, DataLoader(Stream(points + rank // 2)), group="world")
    data = TensorDataset(points)
    split = DataLoader(data, sampler=DistributedSampler(data))
    refused(PointsError, "Rank 1 has other points", model, split, group="world")
    wrapped = nn.parallel.DistributedDataParallel(model)
    refused(ModelError, "model.module", wrapped, points, group="world")
    refused(OptionError, "group is None, 'world'", model, points, group="all")


def without_a_group_each_rank_is_alone() -> None:
    model, points = build("mlp")
    rank = dist.get_rank()
    # As many measurements as the rank's number, each of other points: whoever waited for another would wait for ever.
    for _ in range(rank):
        sens = sb.measure_sensitivity(model, points[rank:])
        assert sens.num_points == 9 - rank
        sums = [(sign * points[rank:]).clamp(min=0) @ model[0].weight.clamp(min=0).T for sign in (1, -1)]
        assert torch.equal(sens["0.weight"].active[:, 0], (torch.stack(sums) > 0).sum((0, 1)))


def several_passes_on_each_rank() -> None:
    torch.manual_seed(0)
    model, points = nn.Sequential(nn.Linear(60, 300), nn.Linear(300, 500), nn.Linear(500, 400)), torch.randn(10, 60)
    sens = sb.measure_sensitivity(model, points, batch_size=3, memory=5_000_000, group="world")
    alone = sb.measure_sensitivity(model, points, batch_size=3)
    assert (sens.passes, alone.passes) == (2, 1)
    assert sens.peak_bytes <= 5_000_000
    same(sens, alone)


def measured_together_pruned_alike() -> None:
    model, points = build("conv")
    sens = sb.measure_sensitivity(model, points, batch_size=2, group="world")
    for method in ("sipp-det", "sipp-rand", "sipp-hybrid"):
        pruned = sb.fit(model, points, method, sensitivity=sens).prune(keep=0.3, seed=4)
        mine = digest(*(weight for _, weight in sorted(pruned.model.named_parameters())))
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        alone = sb.fit(model, points, method, batch_size=2).prune(keep=0.3, seed=4)
        assert everyone == [digest(*(weight for _, weight in sorted(alone.model.named_parameters())))] * 3


CHECKS = (
    three_ranks_and_two,
    empty_shards,
    every_form_of_points,
    a_layer_that_one_ranks_points_reach,
    one_rank_fails,
    what_differs_between_ranks,
    without_a_group_each_rank_is_alone,
    several_passes_on_each_rank,
    measured_together_pruned_alike,
)


class Deadly(nn.Linear):
    """The last rank ends in the middle of its points."""

    def forward(self, x: Tensor) -> Tensor:
        if dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def main() -> None:
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        rank, size = int(sys.argv[2]), int(sys.argv[3])
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        torch.manual_seed(0)
        try:
            sb.measure_sensitivity(Deadly(3, 2), torch.ones(3, 3), batch_size=1, group="world")
        except SippBenchError as error:
            (folder / f"{rank}.json").write_text(json.dumps({"kind": type(error).__name__, "sentence": str(error)}))
        return
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    found = {}
    for check in CHECKS:
        try:
            check()
            found[check.__name__] = "ok"
        except Exception:
            found[check.__name__] = traceback.format_exc()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
