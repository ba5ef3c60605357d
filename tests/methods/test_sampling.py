"""Claims C9 and C6: the draws, by enumerating every outcome on small blocks through the code that methods run."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import patches, quadrant_sums, sensitivity
from samples import linear
from scipy import stats
from small_networks import build
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression.honoured import block_errors
from sipp_bench.methods.sampling import BlockSampler, Chances, Streams, reweighted, whole_draws


def outcomes(weights: int, draws: int) -> list[tuple[int, ...]]:
    """All count vectors of `draws` draws."""
    return [c for c in itertools.product(range(draws + 1), repeat=weights) if sum(c) == draws]


class ScriptedChances(Chances):
    """One row that gives the scripted counts."""

    script: Tensor

    def draw(self, draws: Tensor, streams: Streams, *_: object) -> Tensor:
        return self.script


class Scripted(BlockSampler):
    """A sampler whose one row gives the scripted counts."""

    script: Tensor

    def chances(self, rows: slice) -> Chances:
        chances = ScriptedChances(self.s[rows], self.positive[rows], self.rest[rows], self.totals[rows])
        chances.script = self.script
        return chances


def signed_layer(seed: int, points: int) -> tuple[nn.Linear, Tensor]:
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, 1, (1, 6)) * np.array([1, -1, 1, 1, -1, -1])
    x = rng.lognormal(0, 1, (points, 6)) * rng.choice([-1.0, 0.0, 1.0], (points, 6), p=[0.3, 0.2, 0.5])
    return linear(weight, torch.float64), torch.from_numpy(x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("draws", [(1, 3), (3, 1), (4, 2)])
def test_c9_mean_variance_and_covariance_by_enumeration(seed: int, draws: tuple[int, int]) -> None:
    layer, x = signed_layer(seed, 4)
    weight = layer.weight.detach()
    sens = sb.measure_sensitivity(layer, x)["weight"]
    s = sensitivity(weight, patches(layer, x))
    sampler = Scripted(sens.values, sens.positive, torch.ones_like(sens.positive))
    sampler.script = torch.zeros(1, 6)
    plus, minus = [0, 2, 3], [1, 4, 5]
    np.testing.assert_allclose(sampler.totals.numpy(), s.totals, rtol=1e-14)
    for block in (plus, minus):
        assert float(sampler.q[0, block].sum()) == pytest.approx(1, rel=1e-14)
    mean, second, chance = 0.0, 0.0, 0.0
    for up, down in itertools.product(outcomes(3, draws[0]), outcomes(3, draws[1])):
        counts = torch.zeros(1, 6, dtype=torch.int64)
        counts[0, plus], counts[0, minus] = torch.tensor(up), torch.tensor(down)
        sampler.script = counts
        drawn = reweighted(sampler, weight, torch.tensor([draws]), np.random.default_rng(0))
        p = 1.0
        for block, outcome in ((plus, up), (minus, down)):
            q = s.values[0, block] / s.values[0, block].sum()
            p *= math.factorial(sum(outcome)) * math.prod(
                float(qj) ** n / math.factorial(n) for qj, n in zip(q, outcome, strict=True)
            )
        z = quadrant_sums(drawn, patches(layer, x))[:, 0, 0]  # (points, sigma, tau)
        products = np.concatenate([z**2, z[..., :1] * z[..., 1:]], -1)
        mean, second, chance = mean + p * z, second + p * products, chance + p
    dense = quadrant_sums(weight, patches(layer, x))[:, 0, 0]
    assert chance == pytest.approx(1, abs=1e-13)
    # At most 150 outcomes, each of some 20 operations in float64.
    np.testing.assert_allclose(mean, dense, rtol=1e-12)
    variance = second[..., :2] - mean**2
    covariance = second[..., 2] - mean[..., 0] * mean[..., 1]
    for column, block in enumerate((plus, minus)):
        m, t = draws[column], s.totals[0, column]
        for i, tau in itertools.product(range(len(x)), range(2)):
            a = np.maximum((1, -1)[tau] * x.numpy()[i, block], 0)
            total = dense[i, column, tau]
            g = np.abs(weight.numpy()[0, block]) * a / (total or 1)
            expected = (t * (g**2 / s.values[0, block]).sum() - 1) / m * total**2 if total else 0.0
            scale = t * total**2
            assert variance[i, column, tau] == pytest.approx(expected, abs=1e-11 * scale)
            assert variance[i, column, tau] <= (t - 1) / m * total**2 + 1e-11 * scale
        cross = -dense[:, column, 0] * dense[:, column, 1] / m
        np.testing.assert_allclose(covariance[:, column], cross, atol=1e-11 * dense.max() ** 2 * t)


def test_counts_are_multinomial() -> None:
    s = torch.tensor([[0.5, 0.9, 0.1, 0.0, 0.3, 0.8], [1.0, 0.2, 0.2, 0.6, 0.4, 0.01]], dtype=torch.float64)
    positive = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 0]]).bool()
    sampler = BlockSampler(s, positive, torch.ones_like(positive))
    draws = torch.tensor([[7, 4], [1, 0]])
    rng = np.random.default_rng(5)
    trials = 4000
    counts = torch.stack([sampler.draw(draws, rng) for _ in range(trials)])
    for row, column in ((0, 0), (0, 1), (1, 0)):
        sign = positive[row] if column == 0 else ~positive[row]
        assert (counts[:, row, sign].sum(1) == draws[row, column]).all()
        q = s[row, sign] / s[row, sign].sum()
        seen = counts[:, row, sign].sum(0)[q > 0].numpy()
        # Draws are independent: all counts together are one multinomial. False alarms 1e-8 for each of three.
        assert stats.chisquare(seen, (q[q > 0] * trials * draws[row, column]).numpy()).pvalue > 1e-8
    assert (counts[:, 1, ~positive[1]] == 0).all()
    assert (counts[:, 0, 3] == 0).all()


def test_rounding_of_probabilities_never_draws_what_has_none() -> None:
    # numpy's multinomial hands what rounding leaves over to the last category: here one with q = 0.
    s = torch.rand(1, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s[0, -1] = 0
    s[0, -2] = 1e-18
    sampler = BlockSampler(s, torch.ones_like(s).bool(), torch.ones_like(s).bool())
    draws = torch.tensor([[2**60, 0]])
    for seed in range(20):
        counts = sampler.draw(draws, np.random.default_rng(seed))
        assert counts.sum() == 2**60
        assert counts[0, -1] == 0
        weight = reweighted(sampler, torch.ones(1, 3000), draws, np.random.default_rng(seed))
        assert torch.isfinite(weight).all()
    # 2^60 draws: each weight is drawn as expected within 8 standard deviations and float64's 2^-52 of the row's sum.
    expected = sampler.q * 2**60
    assert ((counts - expected).abs() <= 8 * expected.sqrt() + 20 + 2**60 * 1e-12 * sampler.q.max()).all()


@pytest.mark.parametrize("ratio", [1e-6, 1e-15, 1e-30])
@pytest.mark.parametrize("method", ["sipp-rand", "sipp-hybrid", "sipp-mixture"])
def test_tiny_weights_give_finite_networks(method: str, ratio: float) -> None:
    model, points = build("mlp")
    with torch.no_grad():
        model[0].weight[:, ::3] *= ratio
    fitted = sb.fit(model, points, method)
    for keep in (0.6, 0.8, 0.9, 0.97):
        pruned = fitted.prune(keep)
        assert all(torch.isfinite(p).all() for p in pruned.model.parameters())
        assert all((d >= 0).all() for d in pruned.guarantee.draws.values())


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12), st.data())
def test_draws_for_inverts_the_expectation(parts: list[int], data) -> None:
    s = torch.tensor([parts], dtype=torch.float64)
    sampler = BlockSampler(s, torch.ones_like(s).bool(), torch.ones_like(s).bool())
    distinct = data.draw(st.integers(0, len(parts) - 1))
    draws = sampler.draws_for(torch.tensor([[distinct, 0]]))
    assert draws[0, 1] == 0
    q = np.array(parts) / sum(parts)
    assert (1 - (1 - q) ** float(draws[0, 0])).sum() == pytest.approx(distinct, abs=1e-7)
    assert draws[0, 0] >= distinct * (1 - 1e-12)
    expected = sampler.expected_distinct(torch.tensor([[5, 0]]))[0, 0]
    assert float(expected) == pytest.approx(sb.bounds.expected_distinct(q, 5), rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6))
def test_whole_draws_meet_the_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samplers, targets = {}, {}
    for name in "ab":
        s = torch.from_numpy(rng.random((5, 9)) ** 3)
        positive = torch.from_numpy(rng.random((5, 9)) < 0.5)
        samplers[name] = BlockSampler(s, positive, torch.ones_like(positive))
        sizes = torch.stack([positive.sum(1), (~positive).sum(1)], 1)
        targets[name] = torch.from_numpy(rng.integers(0, np.maximum(sizes.numpy(), 1)))
    draws = whole_draws(samplers, targets)
    total = sum(float(samplers[n].expected_distinct(draws[n]).sum()) for n in "ab")
    assert abs(total - sum(int(t.sum()) for t in targets.values())) <= 1 + 1e-6
    for name in "ab":
        assert draws[name].dtype == torch.int64
        assert (draws[name] >= targets[name]).all()  # m distinct weights take at least m draws
        assert ((draws[name] == 0) == (targets[name] == 0)).all()


def test_one_point_identity() -> None:
    # Claim C9: S of one active (x, p, tau): Zhat = Z on every draw.
    rng = np.random.default_rng(0)
    layer = linear(rng.normal(size=(8, 40)), torch.float64)
    x = torch.from_numpy(rng.lognormal(0, 1, (1, 40)))
    fitted = sb.fit(layer, x, "sipp-rand")
    drawn = 0
    for seed in range(50):
        pruned = fitted.prune(0.4, seed)
        error = block_errors(layer, pruned.model, x, ["weight"])["weight"].largest
        blocks = pruned.guarantee.draws["weight"] > 0
        drawn += int(blocks.sum())
        # Sums of at most 40 products, two roundings for each reweighted weight: 44 u.
        assert (error[blocks] < 44 * 2**-53 * 4).all()
    assert drawn > 500


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("method", ["sipp-rand", "sipp-hybrid", "sipp-mixture"])
def test_what_is_drawn_is_decided_before_the_draw(method: str, kind: str) -> None:
    model, points = build(kind)
    fitted = sb.fit(model, points, method)
    for keep in (0.2, 0.6, 0.95):
        first, *others = [fitted.prune(keep, seed) for seed in range(8)]
        for other in others:
            for name, draws in first.guarantee.draws.items():
                assert torch.equal(draws, other.guarantee.draws[name])
                assert torch.equal(first.guarantee.epsilon[name], other.guarantee.epsilon[name])
                still = torch.stack([draws == 0, draws == 0], 2)[..., 0]
                w = dict(model.named_parameters())[name].flatten(1)
                at = torch.where(w > 0, still[:, :1], still[:, 1:])
                assert torch.equal(first.masks[name].flatten(1)[at], other.masks[name].flatten(1)[at])
                assert other.layer_requests == first.layer_requests


def test_few_draws_are_multinomial_too() -> None:
    """Blocks large enough to invert their distribution: counts against q, and never a weight with q = 0."""
    rng = np.random.default_rng(3)
    s = torch.from_numpy(rng.random((2, 200)))
    s[:, ::3] = 0
    s[0, 0], s[0, -1] = 0, 0
    positive = torch.from_numpy(rng.random((2, 200)) < 0.5)
    sampler = BlockSampler(s, positive, torch.ones_like(positive))
    draws = torch.tensor([[150, 700], [799, 0]])
    trials = 400
    counts = torch.stack([sampler.draw(draws, rng) for _ in range(trials)])
    assert (counts[:, s == 0] == 0).all()
    for row, column in ((0, 0), (0, 1), (1, 0)):
        sign = (positive[row] == (column == 0)) & (s[row] > 0)
        assert (counts[:, row, sign].sum(1) == draws[row, column]).all()
        expected = sampler.q[row, sign] * trials * draws[row, column]
        large = expected > 20
        # Draws are independent: all counts together are one multinomial; rare weights are one category.
        seen = counts[:, row, sign].sum(0)
        both = [torch.cat([values[large].double(), values[~large].sum()[None].double()]) for values in (seen, expected)]
        assert stats.chisquare(both[0][both[1] > 0], both[1][both[1] > 0]).pvalue > 1e-8
        # A single weight's count varies as a binomial's: its variance over the trials, within 8 standard errors.
        weight = int(torch.where(sign, s[row], 0).argmax())
        q, m = float(sampler.q[row, weight]), int(draws[row, column])
        assert float(counts[:, row, weight].double().var()) == pytest.approx(
            m * q * (1 - q), rel=8 * (2 / trials) ** 0.5
        )


class _Edges:
    """Uniform numbers at both ends of [0, 1)."""

    def random(self, size: int) -> np.ndarray:
        return np.resize([0.0, np.nextafter(1, 0)], size)

    def spawn(self, count: int) -> "list[_Edges]":
        return [self] * count

    def multinomial(self, draws: np.ndarray, q: np.ndarray) -> np.ndarray:
        assert draws.size == 0, "a few draws are made by uniform numbers"
        return np.zeros(q.shape, dtype=np.int64)


def test_uniform_numbers_at_their_ends_draw_a_live_weight() -> None:
    s = torch.rand(1, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s[0, :5], s[0, -5:] = 0, 0
    sampler = BlockSampler(s, torch.ones_like(s).bool(), torch.ones_like(s).bool())
    counts = sampler.draw(torch.tensor([[20, 0]]), _Edges())
    assert counts[0, 5] == counts[0, -6] == 10


@pytest.mark.parametrize("method", sb.list_methods())
def test_any_number_of_threads_gives_the_same_network(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = build("mlp")
    fitted = sb.fit(model, points, method)
    monkeypatch.setattr("sipp_bench.machine.parts.PART", 20)
    pruned = {}
    for threads in (1, 3):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        pruned[threads] = fitted.prune(0.4, 7)
    for name, value in pruned[1].model.state_dict().items():
        assert torch.equal(value, pruned[3].model.state_dict()[name]), name


def test_a_part_that_fails_ends_the_work_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    s = torch.rand(9, 70, generator=torch.Generator().manual_seed(0))
    sampler = BlockSampler(s, torch.ones_like(s).bool(), torch.ones_like(s).bool())
    monkeypatch.setattr("sipp_bench.machine.parts.PART", 70)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    chances = sampler.chances

    def failing(rows: slice) -> Chances:
        if rows.start == 4:
            raise MemoryError("no more")
        return chances(rows)

    monkeypatch.setattr(sampler, "chances", failing)
    with pytest.raises(MemoryError, match="no more"):
        reweighted(sampler, s, torch.full((9, 2), 5), np.random.default_rng(0))


@pytest.mark.parametrize("numbers", [1, 100, 1000])
@pytest.mark.parametrize("method", sb.list_methods())
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_parts_of_any_size_give_the_same_network(
    kind: str, method: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, points = build(kind)
    fitted = sb.fit(model, points, method)
    whole = fitted.prune(0.4, 7)
    monkeypatch.setattr("sipp_bench.machine.parts.PART", numbers)
    parts = fitted.prune(0.4, 7)
    if whole.guarantee is not None:
        for name, draws in whole.guarantee.draws.items():
            assert torch.equal(parts.guarantee.draws[name], draws)
            torch.testing.assert_close(parts.guarantee.epsilon[name], whole.guarantee.epsilon[name], rtol=1e-14, atol=0)
    assert parts.mask_sha256 == whole.mask_sha256
