"""The method itself is drawn: what it draws wrongly is seen by verify, by the claims and by check_method."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planted_draws import ALIKE, PLANTED, ROWS_ALIKE
from sampling_claims import SMALL
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench import methods
from sipp_bench.methods.protocol import Selection
from sipp_bench.methods.sipp_rand import SippRand
from theory_checks import check_method, verify
from theory_checks.cases.drawn_networks import branches, draw_network
from theory_checks.claims import Verdict, claims
from theory_checks.evidence.finding import QUICK
from theory_checks.evidence.own_draws import Law, OwnDraws
from theory_checks.on_network.drawn_blocks import seeds_for
from theory_checks.subjects.known_bad import KNOWN_BAD

EFFORT = replace(QUICK, cases=5, trials=400)
METHOD = "sipp_bench.methods.sipp.reweighted"


def network(width: int = 60) -> nn.Sequential:
    """Three layers, of which sipp-rand draws from each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(width, 30), nn.ReLU(), nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 8)
        return nn.Sequential(*layers).eval()


def check(model: nn.Module, **options: Any) -> Verdict:
    points, fresh = (
        torch.rand((count, model[0].in_features), generator=torch.Generator().manual_seed(count)) for count in (40, 60)
    )
    report = verify(model, points, fresh, keep=0.3, effort=EFFORT, claims=["C9"], **options)
    return report.findings[0].verdict


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["sipp-rand", "sipp-mixture"])
def test_sound_draws_pass_verify(method: str) -> None:
    for seed in range(3):
        assert check(network(400), method=method, seed=seed) is Verdict.NOT_FALSIFIED


@pytest.mark.statistical
@pytest.mark.parametrize("bug", PLANTED)
def test_verify_falsifies_what_the_method_draws(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHOD, PLANTED[bug])
    assert check(network(), method="sipp-rand") is Verdict.FALSIFIED


@pytest.mark.statistical
def test_verify_falsifies_rows_that_draw_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHOD, ROWS_ALIKE)
    assert check(network(400), method="sipp-rand") is Verdict.FALSIFIED


@pytest.mark.statistical
@pytest.mark.parametrize("bug", PLANTED | ALIKE)
def test_the_claims_network_and_check_method_see_it_too(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHOD, (PLANTED | ALIKE)[bug])
    model, points = branches(np.random.default_rng(3))
    fitted = sb.fit(model, points, "sipp-rand")
    own = draw_network(lambda seed: fitted.prune(0.3, seed), model, points, range(20), keeps_some=False)
    assert own.broken() or own.p_value() < SMALL.level / 20
    with pytest.raises(AssertionError, match=r"own_draws|exact_keep|same_seed"):
        check_method("sipp-rand")


@pytest.mark.statistical
@pytest.mark.parametrize("number", ["C9", "C13"])
@pytest.mark.parametrize("name", ["later layers drawn too small", "larger of two draws", "layers drawn alike"])
def test_the_network_is_among_what_the_claims_check(number: str, name: str) -> None:
    finding = claims()[number].check(KNOWN_BAD[name], SMALL, 5)
    assert finding.verdict is Verdict.FALSIFIED
    assert "a network" in finding.detail


class TooLarge(SippRand):
    """A third party's method, whose drawn weights are one and a half times too large."""

    name = "too-large"

    def select(self, *given: Any) -> Selection:
        found = super().select(*given)
        return found.with_weights({n: torch.where(w != given[1][n], 1.5 * w, w) for n, w in found.weights.items()})


class Unknown(methods.Method):
    """Another one, that shares nothing with the library's but its guarantee."""

    name = "unknown"
    budget = "expected"
    factor = 1.0

    @property
    def needs(self) -> Any:
        return SippRand().needs

    def observe(self, look: Any) -> Any:
        return SippRand().observe(look)

    def select(self, *given: Any) -> Selection:
        found = SippRand().select(*given)
        return found.with_weights({n: torch.where(w != 0, self.factor * w, w) for n, w in found.weights.items()})


class UnknownTooLarge(Unknown):
    name = "unknown-too-large"
    factor = 1.5


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("cls", "verdict"),
    [
        (TooLarge, Verdict.FALSIFIED),
        (Unknown, Verdict.NOT_FALSIFIED),
        (UnknownTooLarge, Verdict.FALSIFIED),
    ],
)
def test_methods_of_third_parties(cls: Any, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods._REGISTRY.classes, cls.name, cls)
    assert check(network(), method=cls.name) is verdict
    if verdict is Verdict.FALSIFIED:
        with pytest.raises(AssertionError, match="own_draws"):
            check_method(cls)


def one_block(counts: Tensor, draws: int = 4) -> tuple[Law, Tensor]:
    """Four weights of s = 1, 1, 1 and 1/2, of which 2, 1, 1 and none... : what = w n / (m q) for these counts."""
    w, s = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.5]])
    law = Law(w, s, torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[draws, 0]]))
    return law, (w * counts / (draws * s / 3.5)).float()


@pytest.mark.identity
def test_counts_are_read_off_weights_by_hand() -> None:
    law, pruned = one_block(torch.tensor([2, 0, 1, 1]))
    assert law.q[0].tolist() == pytest.approx([2 / 7, 2 / 7, 2 / 7, 1 / 7])
    assert pruned[0].tolist() == pytest.approx([2 * 3.5 / 4, 0, 3 * 3.5 / 4, 4 * 7 / 4])
    counts, wrong = law.read(pruned)
    assert counts.tolist() == [[2, 0, 1, 1]]
    assert not wrong.any()
    for other in (
        1.001 * pruned,
        torch.where(pruned > 1.8, pruned, 0),
        pruned + torch.tensor([0, 1e-3, 0, 0]),
        -pruned,
    ):
        assert law.read(other)[1].tolist() == [[True, False]]
    for counts in ([2, 0, 1, 0], [2, 1, 1, 1], [0, 0, 0, 0]):  # one draw short, one too many, none
        assert law.read(one_block(torch.tensor(counts))[1])[1].tolist() == [[True, False]]


@pytest.mark.identity
def test_p_values_by_hand() -> None:
    """Four draws with ten seeds, all of them of the first weight: (2/7)^40, twice, for each of four weights."""
    law, pruned = one_block(torch.tensor([4, 0, 0, 0]))
    own = OwnDraws({"a": law})
    guarantee = type("Guarantee", (), {"draws": {"a": law.draws}})
    model = nn.Linear(4, 1, bias=False)
    model.weight = nn.Parameter(pruned)
    net = nn.ParameterDict({"a": model.weight})
    for _ in range(10):
        own.add(type("Pruned", (), {"model": net, "guarantee": guarantee}))
    found = own.p_values()
    assert found["a, counts"] == pytest.approx(2 * 4 * (2 / 7) ** 40, rel=1e-9)
    # One distinct weight each time, 2.40 expected, with variance 0.74 at most: Bernstein for 14 too few, two tests.
    chance = np.array([1 - (5 / 7) ** 4] * 3 + [1 - (6 / 7) ** 4])
    off, variance = 10 * (chance.sum() - 1), 10 * (chance * (1 - chance)).sum()
    assert found["a, distinct weights"] == pytest.approx(2 * 3 * np.exp(-(off**2) / 2 / (variance + off / 3)), rel=1e-9)


@pytest.mark.identity
def test_fewer_seeds_for_larger_networks() -> None:
    assert seeds_for(2000, 266_200) == 40
    assert seeds_for(20_000, 266_200) == 400
    assert seeds_for(2000, 11_000_000) == 8
    assert seeds_for(20_000, 11_000_000) == 18
