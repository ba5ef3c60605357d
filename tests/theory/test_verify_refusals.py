"""verify where a network or its points are unusual: one claim's reason or a sentence, never the end of everything."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from odd_networks import VECTORS, build, mlp, sample
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sipp_bench.errors import ModelError, PointsError
from sipp_bench.network.point_sets import PointSet, plain
from theory_checks import Report, verify
from theory_checks.certificate.certify import certify
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.on_network import identities as network_identities
from theory_checks.on_network.audit import shared_points
from theory_checks.on_network.held import Held

EFFORT = replace(QUICK, cases=5, trials=300)


def run(model: nn.Module, points: Any = None, fresh: Any = None, **options: Any) -> Report:
    points = sample(50, VECTORS, 1) if points is None else points
    fresh = sample(60, VECTORS, 2) if fresh is None else fresh
    return verify(model, points, fresh, **({"keep": 0.5, "effort": EFFORT, "draws": 4, "method": "sipp-det"} | options))


def reasons(report: Report) -> dict[str, str]:
    return {entry["claim"]: entry["reason"] for entry in report.skipped if entry["claim"] not in DRAWN}


DRAWN = ("C9", "C10", "C11", "C12", "C13")


class Noisy(nn.Module):
    """What is added, or dropped, in eval mode as well."""

    def __init__(self, size: float = 0.0, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.head, self.size, self.drop = nn.Linear(20, 30), nn.Linear(30, 5), size, drop

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.first(x)), self.drop)
        y: Tensor = self.head(x + self.size * torch.randn_like(x))
        return y


class Converting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(nn.Linear(20, 30))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.float())
        return y


class Lengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 6, 5, stride=2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.conv(x)).mean(2))
        return y


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(12, 10), nn.Linear(10, 12)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.head((self.table(ids) * mask[..., None]).mean(1))
        return y


@pytest.mark.parametrize(("options", "place"), [({"drop": 0.2}, "head.weight"), ({"size": 1e-3}, "head.weight")])
def test_a_network_that_is_random_is_refused(options: dict[str, float], place: str) -> None:
    model = build(lambda: Noisy(**options)).eval()
    state = torch.get_rng_state()
    with pytest.raises(ModelError, match=f"random in eval mode: the input of '{place}'"):
        run(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert run(build(Noisy).eval()).ok


def test_a_network_that_converts_its_input_has_no_certificate_and_all_else() -> None:
    model, points = build(Converting), sample(9, VECTORS, 1)
    report = run(model)
    assert report.ok
    assert set(reasons(report)) == {"C7"}
    assert "copy of the network in torch.float64" in reasons(report)["C7"]
    with pytest.raises(PointsError, match="shape"):  # these points are to blame
        certify(model, model, points[:, :9])


@pytest.mark.parametrize("dims", [1, 2])
def test_batch_norm_without_statistics(dims: int) -> None:
    norm = nn.BatchNorm1d(30, track_running_stats=False)
    layers = [nn.Linear(20, 30), norm, nn.ReLU(), nn.Linear(30, 5)]
    if dims == 2:  # its points can be run one by one, and are others then
        layers = [nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 30, 3), nn.BatchNorm2d(30, track_running_stats=False)]
        layers += [nn.ReLU(), nn.Flatten(), nn.Linear(180, 5)]
    report = run(build(lambda: nn.Sequential(*layers)), keep=0.1, method="magnitude", options={"scope": "layer"})
    assert report.ok
    assert set(reasons(report)) == {"C7", "C14", "C15", "C16"}
    assert "others in its batch" in reasons(report)["C14"]


def test_points_of_different_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [
        DataLoader([torch.rand((1, 20 + i % 7), generator=generator) for i in range(30)], batch_size=1)  # type: ignore[arg-type]  # a list has what it needs
        for _ in range(2)
    ]
    report = run(build(Lengths), *samples, keep=0.9)
    assert report.ok
    assert report.settings["points"] == 30
    assert not reasons(report)


def test_points_by_name() -> None:
    def rows(count: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 12, (count, 7), generator=generator)
        kept = (torch.rand((count, 7), generator=generator) < 0.8).float()
        return DataLoader([{"ids": a, "mask": b} for a, b in zip(ids, kept, strict=True)], batch_size=16)  # type: ignore[arg-type]  # as above

    report = run(build(Named), rows(50, 1), rows(60, 2))
    assert report.ok
    assert report.settings["points"] == 50
    assert shared_points(rows(50, 1), rows(9, 2)) == 0
    assert shared_points(rows(50, 1), rows(50, 1)) == 50


def test_held_points() -> None:
    x = torch.arange(10.0).reshape(10, 1)
    loader = DataLoader(TensorDataset(x, torch.zeros(10)), batch_size=3)
    held = Held.of(loader, nn.Linear(1, 1))  # whose forward takes one input: the other tensor is a label
    assert torch.equal(held.points(4), x)  # type: ignore[arg-type]  # a tensor, as one that was given
    assert len(held[2:7]) == 5
    mixed = Held((x[:4], torch.zeros(3, 2), x[4:]))
    assert len(mixed) == 13
    assert [tuple(one.groups[0].shape) for one in mixed.singles()][3:8] == [(1, 1)] + [(1, 2)] * 3 + [(1, 1)]  # type: ignore[union-attr]  # tensors
    assert [len(part) for part in (mixed[:5], mixed[5:], mixed[4:7], mixed[20:])] == [5, 8, 3, 0]
    assert [len(batch) for batch in plain(mixed.points(3))] == [3, 1, 3, 3, 3]  # type: ignore[arg-type]  # a loader


def test_held_points_of_several_tensors_keep_them_all_and_their_positions() -> None:
    ids, mask = torch.arange(12).reshape(4, 3), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    held = Held.of(PointSet(TensorDataset(ids, mask), labelled=False, positions=1))
    assert len(held) == 4
    again = held[1:3].points(2)
    assert isinstance(again, PointSet)
    (batch,) = plain(again)  # type: ignore[misc]  # a loader
    assert [tensor.tolist() for tensor in batch] == [ids[1:3].tolist(), mask[1:3].tolist()]
    assert again.counted(batch).tolist() == [[True, True, False], [True, False, False]]  # type: ignore[union-attr]


def test_a_check_that_breaks_down_is_no_pass_and_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_identities, "certify", lambda *networks: {}["no such layer"])
    report = run(build(lambda: mlp(nn.Linear(20, 30))), claims=["C1", "C7"])
    assert [finding.verdict for finding in report.findings] == [Verdict.HOLDS]
    assert "KeyError: 'no such layer'" in reasons(report)["C7"]
    assert "certify" in report.skipped[0]["error"]
    assert not report.ok
    assert "A CHECK BROKE DOWN" in report.to_text()


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    run(build(lambda: mlp(nn.Linear(20, 30))), claims=["C1"])
    assert not capsys.readouterr().err
    run(build(lambda: mlp(nn.Linear(20, 30))), claims=["C1"], progress=True)
    assert "verify: 100%" in capsys.readouterr().err
