"""Latency: the order of the calls and the summaries; never how long anything took."""

import pytest
import torch
from torch import Tensor, nn

from sipp_bench.errors import OptionError, PointsError
from sipp_bench.measures import latency
from sipp_bench.measures.latency import Latency, latency_pair


class Noting(nn.Module):
    """Takes `seconds` on a clock of its own."""

    def __init__(self, name: str, seconds: float, calls: list[str], clock: list[float]) -> None:
        super().__init__()
        self.name, self.seconds, self.calls, self.clock = name, seconds, calls, clock

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append(self.name)
        self.clock[0] += self.seconds
        return x


def test_pairs_are_interleaved_and_samples_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, clock = list[str](), [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    dense, pruned = Noting("d", 2.0, calls, clock), Noting("p", 0.5, calls, clock)
    found = latency_pair(dense, pruned, torch.ones(1), repeats=4, warmup=2)
    assert "".join(calls) == "dppd" * 3
    assert found == Latency((2.0,) * 4, (0.5,) * 4), "the warm-up doesn't count"
    assert found.quartiles()["ratio"] == (4.0, 4.0, 4.0)
    assert dense.training


def test_quartiles_by_hand() -> None:
    found = Latency((4.0, 1.0, 3.0, 2.0, 5.0), (1.0, 1.0, 1.0, 1.0, 10.0)).quartiles()
    assert found == {"dense": (2, 3, 4), "pruned": (1, 1, 1), "ratio": (1, 2, 3)}


def test_real_samples() -> None:
    found = latency_pair(nn.Linear(8, 8), nn.Linear(8, 8), torch.ones(2, 8), repeats=3)
    assert len(found.dense) == len(found.pruned) == 3
    assert all(sample > 0 for sample in found.dense + found.pruned)


def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(OptionError, match="repeats"):
        latency_pair(nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2), repeats=0)
    with pytest.raises(PointsError, match="cannot process"):
        latency_pair(nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 3))
