"""Choosing the largest scores: exact counts, ties, scopes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import build
from torch import nn

import sipp_bench as sb
from sipp_bench.errors import OptionError
from sipp_bench.methods.scores import keep_largest, largest

values = st.sampled_from([0.0, 0.5, 0.5, 1.0, 2.0])


@given(st.lists(st.tuples(values, values), max_size=40), st.integers(-2, 45))
def test_keep_largest_is_a_sort(pairs: list[tuple[float, float]], count: int) -> None:
    scores, ties = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    order = sorted(range(len(pairs)), key=lambda j: (-scores[j], -ties[j], j))
    expected = np.zeros(len(pairs), dtype=bool)
    expected[order[: max(count, 0)]] = True
    assert keep_largest(scores, ties, count).tolist() == expected.tolist()


@settings(deadline=None)
@given(st.data())
def test_largest_is_exact_in_every_scope(data) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4))
    weights, scores = {}, {}
    for index, (rows, columns) in enumerate(shapes):
        numbers = st.lists(values, min_size=rows * columns, max_size=rows * columns)
        weights[str(index)] = torch.tensor(data.draw(numbers)).reshape(rows, columns)
        scores[str(index)] = torch.tensor(data.draw(numbers)).reshape(rows, columns)
    size = sum(w.numel() for w in weights.values())
    budget = data.draw(st.integers(0, size))
    scope = data.draw(st.sampled_from(["global", "layer", "output"]))
    masks = largest(scores, weights, budget, scope)
    assert sum(int(mask.sum()) for mask in masks.values()) == budget
    # As many weights as asked for are left non-zero wherever the network has them.
    nonzero = sum(int((w != 0).sum()) for w in weights.values())
    assert sum(int((weights[n] != 0)[mask].sum()) for n, mask in masks.items()) == min(budget, nonzero)
    groups = [[*masks]] if scope == "global" else [[name] for name in masks]
    for names in groups:
        for part in range(shapes[int(names[0])][0]) if scope == "output" else [slice(None)]:
            live = [(scores[n][part], masks[n][part]) for n in names]
            alive = [weights[n][part] != 0 for n in names]
            kept = torch.cat([s[m & a].flatten() for (s, m), a in zip(live, alive, strict=True)])
            dropped = torch.cat([s[~m & a].flatten() for (s, m), a in zip(live, alive, strict=True)])
            if kept.numel() and dropped.numel():
                assert kept.min() >= dropped.max()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from(["global", "layer", "output"]))
def test_largest_is_a_sort_in_every_scope(seed: int, budget: int, scope: str) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = 6, 10
    score, weight = (rng.choice([0.0, 0.5, 0.5 + 2**-20, 1.0], (rows, columns)) for _ in range(2))
    mask = largest({"w": torch.from_numpy(score)}, {"w": torch.from_numpy(weight)}, budget, scope)["w"].numpy()
    for part in range(rows) if scope == "output" else [slice(None)]:
        s, w, kept = score[part].ravel(), weight[part].ravel(), mask[part].ravel()
        order = sorted(range(len(s)), key=lambda j: (w[j] == 0, -s[j] if w[j] else 0, -w[j], j))
        assert sorted(order[: kept.sum()]) == np.flatnonzero(kept).tolist()


@pytest.mark.parametrize("method", ["magnitude", "random", "snip", "wanda", "sipp-det"])
@pytest.mark.parametrize("keep", [0.001, 0.1, 1 / 3, 0.5, 0.999])
def test_equal_weights_are_counted_exactly(method: str, keep: float) -> None:
    model = nn.Sequential(nn.Linear(31, 17), nn.ReLU(), nn.Linear(17, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    for scope in ("global",) if method == "sipp-det" else ("global", "layer", "output"):
        options = {} if method == "sipp-det" else {"scope": scope}
        pruned = sb.prune(model, torch.ones(3, 31), method=method, keep=keep, **options)
        assert pruned.kept == pruned.requested == round(keep * (31 * 17 + 17 * 5))


def test_scopes_share_the_budget() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 20), nn.Linear(20, 10))
    with torch.no_grad():
        model[0].weight.mul_(100)
        model[1].weight[0].mul_(1000)
    points = torch.randn(3, 40)
    layers = {
        s: sb.prune(model, points, method="magnitude", keep=0.5, scope=s).masks for s in ("global", "layer", "output")
    }
    assert layers["global"]["0.weight"].sum() > 450
    assert [int(m.sum()) for m in layers["layer"].values()] == [400, 100]
    assert layers["layer"]["1.weight"][0].sum() == 20
    for mask in layers["output"].values():
        assert (mask.sum(1) == mask.shape[1] // 2).all()


def test_magnitude_keeps_the_largest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    pruned = sb.prune(model, torch.randn(2, 30), method="magnitude", keep=0.25)
    kept = torch.cat([p.abs()[pruned.masks[n]] for n, p in model.named_parameters() if n in pruned.masks])
    dropped = torch.cat([p.abs()[~pruned.masks[n]] for n, p in model.named_parameters() if n in pruned.masks])
    assert kept.min() >= dropped.max()


def test_random_is_uniform() -> None:
    model = nn.Sequential(nn.Linear(5, 4, bias=False))
    fitted = sb.fit(model, torch.randn(2, 5), "random")
    counts = sum(fitted.prune(0.25, seed=seed).masks["0.weight"].long() for seed in range(2000))
    # Each weight is kept Bin(2000, 1/4) often: Hoeffding, 2 exp(-2 d^2 / 2000) = 1e-8 / 20 at d = 149.
    assert (counts - 500).abs().max() < 149
    assert counts.unique().numel() > 3


def test_unknown_scope() -> None:
    with pytest.raises(OptionError, match="global, layer, output"):
        sb.make_method("magnitude", scope="neuron")


@pytest.mark.parametrize("method", ["magnitude", "random", "snip", "wanda", "sipp-det"])
def test_masks_grow_with_keep(method: str) -> None:
    model, points = build("conv")
    fitted = sb.fit(model, points, method, **({"scope": "global"} if method == "wanda" else {}))
    masks = [fitted.prune(keep / 40, seed=4).masks for keep in range(41)]
    for smaller, larger in itertools.pairwise(masks):
        assert all((larger[name] | ~smaller[name]).all() for name in smaller)
