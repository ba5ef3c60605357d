"""What the SiPP methods promise: claims C2, C3, C10, C11, C12, C13 on the networks they give back."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracle import relative_errors, sensitivity
from samples import linear
from scipy import stats
from small_networks import build, layer_patches
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench import bounds
from sipp_bench.methods.sipp import Plan, SippObservation
from sipp_bench.methods.splits import descending, rest_totals, split_for_draws, split_for_dropping

WEIGHTS = ["uniform", "layer", "downstream"]


def blocks(values: np.ndarray, weight: Tensor) -> np.ndarray:
    """Sums over each block: (neurons, 2)."""
    sign = np.sign(weight.detach().numpy().reshape(len(weight), -1))
    rows = values.reshape(len(weight), -1)
    return np.stack([np.where(sign == s, rows, 0).sum(1) for s in (1, -1)], 1)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_c2_holds_on_every_point_patch_and_sign(kind: str, weights: str) -> None:
    model, points = build(kind, torch.float64)
    fitted = sb.fit(model, points, "sipp-det", weights=weights)
    layers = layer_patches(model, points)
    for keep in (0.05, 0.3, 0.6, 0.9):
        pruned = fitted.prune(keep)
        guarantee = pruned.guarantee
        assert guarantee.claims == ("C2",)
        assert guarantee.delta == 0
        assert guarantee.deterministic
        for name, (layer, a) in layers.items():
            s = sensitivity(layer.weight, a)
            dropped = ~pruned.masks[name].numpy()
            expected = np.minimum(1, blocks(s.values * dropped, layer.weight))
            epsilon = guarantee.epsilon[name].numpy()
            # Sensitivities and errors are sums of at most 36 products in float64, and as many sensitivities.
            np.testing.assert_allclose(epsilon, expected, atol=1e-13)
            largest, _ = relative_errors(layer.weight, dict(pruned.model.named_parameters())[name], a)
            assert (largest <= epsilon + 1e-13).all()
            # Claim C8: not larger than needed either, up to the largest single one dropped.
            single = (s.values * dropped).reshape(len(layer.weight), -1).max(1)
            assert (largest.max(1) >= single - 1e-13).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_c3_is_the_best_subset(weights: str) -> None:
    rng = np.random.default_rng(1)
    layers = [linear(rng.normal(size=shape), torch.float64) for shape in ((3, 2), (2, 3))]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    fitted = sb.fit(model, torch.from_numpy(rng.normal(size=(5, 2))), "sipp-det", weights=weights)
    names = ["0.weight", "2.weight"]
    costs = []
    for name, layer in zip(names, layers, strict=True):
        c, s = fitted.observation.block_weights[name].numpy(), fitted.observation.scores[name].numpy()
        costs.append((np.where(layer.weight.detach().numpy() > 0, c[:, :1], c[:, 1:]) * s).ravel())
    cost = np.concatenate(costs)
    for budget in range(13):
        best = min(cost.sum() - cost[list(kept)].sum() for kept in itertools.combinations(range(12), budget))
        pruned = fitted.prune(budget / 12)
        mask = np.concatenate([pruned.masks[name].numpy().ravel() for name in names])
        assert mask.sum() == budget
        assert cost[~mask].sum() <= best + 1e-14 * cost.sum()


COPIES, PRUNINGS = 20, 100


def repeated(rows: np.ndarray) -> nn.Linear:
    """20 copies of 3 neurons, one after the other."""
    return linear(np.tile(rows, (COPIES, 1)), torch.float64)


def one_hot_instance() -> tuple[nn.Linear, Tensor]:
    """THEORY section 5's hardest family: g in {0, 1}, Zhat/Z = (T/m) Bin(m, 1/T), here T = 30."""
    return repeated(np.random.default_rng(0).lognormal(0, 1, (3, 30))), torch.eye(30, dtype=torch.float64)


def mixed_instance() -> tuple[nn.Linear, Tensor]:
    """Many weights of like sensitivity: T about 2, where bounds below 1 are had with draws."""
    rng = np.random.default_rng(3)
    return repeated(rng.lognormal(0, 0.5, (3, 150))), torch.from_numpy(rng.lognormal(0, 0.45, (25, 150)))


def failures(fitted: sb.Fitted, x: Tensor, keep: float, prunings: int) -> Tensor:
    """Whether each drawn block failed at each point: (prunings, points, blocks). Positive weights and inputs only."""
    weight = fitted.model.weight.detach()
    first = fitted.prune(keep).guarantee
    drawn = first.draws["weight"][:, 0] > 0
    limit = first.epsilon["weight"][drawn, 0]
    z = x @ weight[drawn].T
    failed = []
    for seed in range(prunings):
        zhat = x @ fitted.prune(keep, seed).model.weight.detach()[drawn].T
        failed.append((zhat - z).abs() > limit * z * (1 + 1e-12))
    return torch.stack(failed)


def worst(failed: Tensor, fitted: sb.Fitted, keep: float, delta: float) -> float:
    """The smallest p-value against a rate of delta, over neurons and points, times their number (Bonferroni).

    The unit is one draw set of one block: copies of a neuron are drawn independently of each other, and each of them
    fails with probability at most delta at x, so that together they fail no more often than a binomial.
    """
    neuron = torch.arange(3 * COPIES)[fitted.prune(keep).guarantee.draws["weight"][:, 0] > 0] % 3
    values = []
    for which in neuron.unique():
        mine = failed[:, :, neuron == which]
        counts, trials = mine.sum((0, 2)), mine.shape[0] * mine.shape[2]
        values.append(stats.binom.sf(int(counts.max()) - 1, trials, delta))
    return min(values) * 3 * failed.shape[1]


INSTANCES = [
    ("sipp-rand", one_hot_instance, 0.96, 0.5),
    ("sipp-rand", one_hot_instance, 0.8, 0.1),
    ("sipp-rand", mixed_instance, 0.3, 0.5),
    ("sipp-hybrid", mixed_instance, 0.3, 0.5),
    ("sipp-mixture", mixed_instance, 0.3, 0.5),
    ("sipp-mixture", mixed_instance, 0.6, 0.1),
]


@pytest.mark.parametrize(("method", "instance", "keep", "delta"), INSTANCES)
def test_c10_and_c13_fail_no_more_often_than_delta(method: str, instance, keep: float, delta: float) -> None:
    layer, x = instance()
    fitted = sb.fit(layer, x, method, delta=delta)
    failed = failures(fitted, x, keep, PRUNINGS)
    assert failed.shape[2] == 3 * COPIES, "a block was not drawn: fewer than 2,000 draws of each neuron"
    if instance is mixed_instance:
        assert (fitted.prune(keep).guarantee.epsilon["weight"][:, 0] < 1).all(), "useless bounds can't fail"
    assert worst(failed, fitted, keep, delta) > 1e-8


def test_c10_sees_weights_that_are_not_reweighted(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(sampler, weight, draws, rng):
        return torch.where(sampler.draw(draws, rng) > 0, weight, 0)

    monkeypatch.setattr("sipp_bench.methods.sipp.reweighted", plain)
    layer, x = mixed_instance()
    fitted = sb.fit(layer, x, "sipp-rand", delta=0.5)
    assert worst(failures(fitted, x, 0.3, PRUNINGS), fitted, 0.3, 0.5) < 1e-8


def test_c11_all_at_once() -> None:
    layer, x = one_hot_instance()
    fitted = sb.fit(layer, x, "sipp-rand", delta=0.5, simultaneous=True)
    guarantee = fitted.prune(0.96).guarantee
    assert guarantee.simultaneous
    assert guarantee.delta == 0.5
    # 60 blocks at 30 points, one activation sign.
    draws, totals = guarantee.draws["weight"], fitted.observation.sensitivity["weight"].totals
    drawn = draws > 0
    expected = bounds.bernstein_epsilon(totals[drawn], draws[drawn], 0.5 / 1800)
    torch.testing.assert_close(guarantee.epsilon["weight"][drawn], expected, rtol=1e-14, atol=0)
    # One pruning is one trial.
    failed = failures(fitted, x, 0.96, 200).flatten(1).any(1).sum()
    assert stats.binom.sf(int(failed) - 1, 200, 0.5) > 1e-8


@pytest.mark.parametrize("simultaneous", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["sipp-rand", "sipp-hybrid", "sipp-mixture"])
def test_epsilon_is_the_closed_form_at_the_draws(method: str, weights: str, simultaneous: bool) -> None:
    model, points = build("conv", torch.float64)
    options = {"weights": weights, "delta": 0.2, "simultaneous": simultaneous}
    fitted = sb.fit(model, points, method, **options)
    layers = layer_patches(model, points)
    measured = {name: sensitivity(layer.weight, a) for name, (layer, a) in layers.items()}
    delta = 0.2 / sum(int(m.active.sum()) for m in measured.values()) if simultaneous else 0.2
    log = math.log(2 / delta)
    for keep in (0.1, 0.5, 0.9):
        pruned = fitted.prune(keep)
        guarantee = pruned.guarantee
        plan = fitted.method.plan(fitted.observation, fitted._weights(), pruned.requested)
        drew = False
        for name, (layer, _) in layers.items():
            kept = plan.kept[name].numpy().reshape(layer.weight.shape)
            rest = blocks(np.where(kept, 0, measured[name].values), layer.weight)
            m = guarantee.draws[name].numpy().astype(float)
            drew |= bool((m > 0).any())
            v = np.where(rest <= 2, rest**2 / 4, rest - 1) if method == "sipp-mixture" else rest
            a = rest * log / 3
            with np.errstate(divide="ignore", invalid="ignore"):
                expected = np.where(m > 0, (a + np.sqrt(a * a + 2 * v * log * m)) / m, np.minimum(1, rest))
            np.testing.assert_allclose(guarantee.epsilon[name].numpy(), expected, rtol=1e-10, atol=1e-12)
        assert guarantee.delta == (0.2 if drew else 0)
        assert guarantee.deterministic is not drew


def bound(plan: Plan, observation: SippObservation, name: str, delta: float, mixture: bool) -> Tensor:
    """Of each block, at the planned share."""
    s, positive = observation.rows(name)
    rest = torch.where(plan.kept[name], 0.0, s.double())
    total = torch.stack([torch.where(positive, rest, 0).sum(1), torch.where(positive, 0, rest).sum(1)], 1)
    m = plan.distinct[name]
    if mixture:
        return bounds.mixture_epsilon(total, m, delta)
    return torch.where(m > 0, bounds.bernstein_epsilon(total, m.clamp(min=1), delta), total.clamp(max=1))


@pytest.mark.parametrize("instance", [mixed_instance, one_hot_instance, lambda: build("mlp", torch.float64)])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.8, 0.97])
def test_c12_the_better_end_and_c13_no_worse(instance, keep: float) -> None:
    model, points = instance()
    hybrid = sb.fit(model, points, "sipp-hybrid", delta=0.5)
    mixture = sb.fit(model, points, "sipp-mixture", delta=0.5)
    observation = hybrid.observation
    weights = hybrid._weights()
    budget = round(keep * sum(w.numel() for w in weights.values()))
    plans = [fitted.method.plan(observation, weights, budget) for fitted in (hybrid, mixture)]
    final = hybrid.prune(keep).guarantee
    costs = [0.0, 0.0]
    for name in weights:
        s, positive = observation.rows(name)
        for plan in plans:
            kept_and_drawn = int(plan.kept[name].sum() + plan.distinct[name].sum())
            assert 0 <= kept_and_drawn <= s.numel()
        planned = [bound(plan, observation, name, 0.5, mixed) for plan, mixed in zip(plans, (False, True), strict=True)]
        costs = [c + float(p.sum()) for c, p in zip(costs, planned, strict=True)]
        kept = torch.stack([(plans[0].kept[name] & positive).sum(1), (plans[0].kept[name] & ~positive).sum(1)], 1)
        share = kept + plans[0].distinct[name]
        for i, column in itertools.product(range(len(s)), range(2)):
            block = s[i][positive[i] == (column == 0)].sort(descending=True).values.double()
            dropping = min(1.0, float(block[int(share[i, column]) :].sum()))
            m, live = int(share[i, column]), int((block > 0).sum())
            drawing = bounds.bernstein_epsilon(float(block.sum()), m, 0.5) if 0 < m < live else math.inf
            least = min(dropping, drawing)
            assert float(planned[0][i, column]) == pytest.approx(least, abs=1e-12)
            assert float(final.epsilon[name][i, column]) <= least + 1e-12
    assert costs[1] <= costs[0] + 1e-9
    # The hybrid's split is the better of the two that the ends would make.
    for split in (split_for_dropping(observation, weights, budget), split_for_draws(observation, budget, 0.5)):
        cost = 0.0
        for name, share in split.items():
            rest = rest_totals(descending(*observation.rows(name)))
            cost += float(hybrid.method._better_branch(rest, share, observation.live[name], 0.5)[1].sum())
        assert costs[0] <= cost + 1e-9


def test_mean_over_patches_is_another_promise() -> None:
    model, points = build("conv", torch.float64)
    pruned = sb.prune(model, points, method="sipp-det", keep=0.5, patch_reduction="mean")
    assert pruned.guarantee.per_patch is False
    assert "averaged over the patches" in pruned.guarantee.statement()
    for name, (layer, a) in layer_patches(model, points).items():
        _, average = relative_errors(layer.weight, dict(pruned.model.named_parameters())[name], a)
        assert (average <= pruned.guarantee.epsilon[name].numpy() + 1e-13).all()


def test_statements() -> None:
    model, points = build("mlp")
    det = sb.prune(model, points, method="sipp-det", keep=0.5).guarantee.statement()
    assert "always (claim C2)" in det
    assert "9 points" in det
    assert "36 blocks" in det
    rand = sb.fit(model, points, "sipp-rand", delta=0.25).prune(0.5).guarantee
    assert "for each with probability at least 0.75" in rand.statement()
    both = sb.fit(model, points, "sipp-rand", delta=0.25, simultaneous=True).prune(0.5).guarantee
    assert "all of them at once" in both.statement()
    assert rand.vacuous == pytest.approx(
        float(torch.cat([e.flatten() for e in rand.epsilon.values()]).ge(1).double().mean())
    )
    everything = sb.fit(model, points, "sipp-rand").prune(1.0).guarantee
    assert everything.deterministic
    assert everything.delta == 0
    assert all((e == 0).all() for e in everything.epsilon.values())
