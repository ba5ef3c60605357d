"""C7: a certificate for each input, whatever the pruned weights."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theory_checks.cases.strategies import Residual, random_network_case
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim
from theory_checks.subjects.subject import Subject

PRUNINGS = ("drop", "drop", "reweight", "perturb", "flip", "drop all", "none")


@dataclass(frozen=True)
class PrunedCase:
    """A network, another with its other weights, and points. label: for people."""

    model: nn.Module
    pruned: nn.Module
    points: Tensor
    label: str

    def __str__(self) -> str:
        return self.label


class NetworkCertificate(IdentityClaim[PrunedCase]):
    """For any x and any pruned weights, biases and batch-norm statistics the same: let e bound |ahat - a| entry by
    entry, and propagate e' = |What| e + |(What - W) a| through linear maps; ReLU e; L e for an activation with
    Lipschitz constant L; e |gamma| / sqrt(var + eps) for batch-norm in eval mode; max e and mean e for pooling; the
    sum for a residual. Then |yhat - y| <= e at the output, and where y_c - y_k > e_c + e_k for the predicted class c
    and every other k, the pruned network predicts c as well.

    Proof: What ahat - W a = What (ahat - a) + (What - W) a; the other operations are Lipschitz in each entry.

    Tight, so that a bound shrunk by 0.99 is rejected: one layer, where e = |(What - W) a| is the error itself; and
    deep networks without a negative number in them whose weights are dropped, or enlarged, where all errors have one
    sign. Where weights are enlarged the bound needs |What|, not |W|, which is larger where they are dropped.
    """

    number = "C7"
    title = "Network certificate, a posteriori"
    statement = (
        "For any x and any pruned weights, e' = |What| e + |(What - W) a| (and its like for the other operations) "
        "bounds |ahat - a|; y_c - y_k > e_c + e_k for every other class k means that the predicted class c stays."
    )
    rejects = (
        "bound halved",
        "certificate: errors of earlier layers forgotten",
        "certificate: residual takes the larger",
        "certificate: batch-norm passed by",
        "certificate: runner-up only",
        "certificate: dense weights for the pruned",
    )

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[PrunedCase]:
        """Small networks of all sorts, and the tight ones."""
        for index in range(effort.cases):
            make = (_any_network, _one_layer, _without_negatives, _third_class)[index % 4]
            yield make(rng)

    def compare(self, subject: Subject, case: PrunedCase) -> Iterator[Comparison]:
        """Both networks run plainly in float64; the bound itself has the room for rounding."""
        certificate = subject.certify(case.model, case.pruned, case.points)
        dense, pruned = (_outputs(network, case.points) for network in (case.model, case.pruned))
        yield Comparison("|yhat - y| <= e", (pruned - dense).abs(), subject.shrink * certificate.error)
        moved = certificate.certified & (dense.argmax(1) != pruned.argmax(1))
        yield Comparison("certified inputs keep their class", moved, 0.0)
        earned = torch.tensor([_earned(y, e) for y, e in zip(dense, certificate.error, strict=True)])
        yield Comparison("certified as the claim says", certificate.certified != earned, 0.0)


CLAIM = NetworkCertificate()


def prune_somehow(model: nn.Module, how: str, rng: np.random.Generator) -> nn.Module:
    """A copy with other weights in its Linear and ConvNd layers."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for module in pruned.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                w = module.weight
                keep = torch.from_numpy(rng.random(tuple(w.shape)) < rng.choice([0.2, 0.6, 0.95, 0.999])).to(w)
                factor = {
                    "drop": keep,
                    "reweight": keep / keep.mean().clamp(min=0.1),
                    "perturb": 1 + 0.01 * torch.from_numpy(rng.standard_normal(tuple(w.shape))).to(w),
                    "flip": 2 * keep - 1,
                    "enlarge": 1 + keep,
                    "drop all": torch.zeros_like(w),
                    "none": torch.ones_like(w),
                }[how]
                w.mul_(factor)
    return pruned


def _outputs(network: nn.Module, points: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = copy.deepcopy(network).double().eval()(points.double())
    return outputs


def _earned(y: Tensor, e: Tensor) -> bool:
    """The definition, in plain numbers; a draw between margins within rounding of each other goes against it."""
    c = int(y.argmax())
    margins = [float((y[c] - y[k]) - (e[c] + e[k])) for k in range(len(y)) if k != c]
    return all(margin > 4 * torch.finfo(torch.float64).eps * float(y[c].abs() + e[c]) for margin in margins)


def _any_network(rng: np.random.Generator) -> PrunedCase:
    case = random_network_case(rng)
    how = str(rng.choice(PRUNINGS))
    if rng.random() < 0.3:
        with torch.no_grad():
            next(case.model.parameters()).mul_(10.0 ** rng.uniform(-20, 20))
    return PrunedCase(case.model, prune_somehow(case.model, how, rng), case.points, f"{case.label}; {how}")


def _one_layer(rng: np.random.Generator) -> PrunedCase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        layer: nn.Module = nn.Linear(7, 4).double()
        x = torch.randn(3, 7).double()
        if rng.random() < 0.5:
            layer = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1, groups=1).double(), nn.Flatten())
            x = torch.randn(3, 2, 5, 5).double()
    how = str(rng.choice(PRUNINGS))
    return PrunedCase(layer, prune_somehow(layer, how, rng), x, f"one layer; {how}")


def _without_negatives(rng: np.random.Generator) -> PrunedCase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU()), int(rng.integers(1, 3))),
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3),
        )  # fmt: skip
        x = torch.rand(3, 2, 6, 6)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_()
            state = model.state_dict()
            state["1.running_var"].uniform_(0.01, 0.9)
            state["1.running_mean"].uniform_(-1, 0)
    model = model.double().eval()
    how = str(rng.choice(["drop", "enlarge"]))
    return PrunedCase(model, prune_somehow(model, how, rng), x.double(), f"without negative numbers; {how}")


def _third_class(rng: np.random.Generator) -> PrunedCase:
    """One input, logits 1, 0.9 and 0.5: pruning leaves the first two alone and lifts the third above them."""
    model = nn.Linear(1, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.9], [0.5]])[torch.from_numpy(rng.permutation(3))])
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned.weight[pruned.weight == 0.5] = float(rng.uniform(1.01, 1.5))
    return PrunedCase(model, pruned, torch.ones(1, 1).double(), "the third class overtakes")
