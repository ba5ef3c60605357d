"""What each registered method must do, on an MLP, a grouped convolutional network and an attention block."""

import copy
import math

import numpy as np
import pytest
import torch
from small_networks import KINDS, PRUNABLE, build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sipp_bench as sb
from sipp_bench.compression.changes import Masked
from sipp_bench.errors import ModelError, OptionError, PointsError

METHODS = sb.list_methods()
CLASSES = {name: type(sb.make_method(name)) for name in METHODS}
EXACT = [name for name, cls in CLASSES.items() if cls.budget == "exact"]
UNITS = [name for name, cls in CLASSES.items() if cls.budget == "unit"]
SINGLE = [name for name, cls in CLASSES.items() if cls.changes == (Masked,)]
KEEPS = [0.003, 0.02, 0.1, 0.25, 0.35, 0.5, 0.77, 0.9, 0.995]

pytestmark = pytest.mark.parametrize("method", METHODS)


def prunable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.ndim >= 2)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {
        n: t.detach().contiguous().view(torch.uint8).numpy().tobytes() for n, t in model.state_dict().items() if t.ndim
    }


def test_what_is_registered_says_what_it_is(method: str) -> None:
    assert sorted(METHODS) == METHODS
    assert {"magnitude", "random", "sipp-det", "sipp-hybrid", "sipp-mixture", "sipp-rand", "snip", "wanda"} <= set(
        METHODS
    )
    assert CLASSES[method].name == method
    assert method in EXACT or method in UNITS or CLASSES[method].budget == "expected"


@pytest.mark.parametrize("kind", KINDS)
def test_counts_masks_and_what_stays(method: str, kind: str) -> None:
    model, points = build(kind)
    fitted = sb.fit(model, points, method, batch_size=4)
    total = prunable(model)
    assert not fitted.skipped
    for keep in KEEPS:
        pruned = fitted.prune(keep, seed=3)
        assert pruned.weights == total
        assert pruned.requested == round(keep * total)
        assert len(pruned.masks) == PRUNABLE[kind]
        if method in EXACT:
            assert pruned.kept == pruned.requested
        assert method not in UNITS or pruned.kept <= pruned.requested
        new, old = dict(pruned.model.named_parameters()), dict(model.named_parameters())
        assert list(new) == list(old)
        for name, parameter in new.items():
            assert torch.isfinite(parameter).all()
            if name in pruned.masks:
                assert pruned.masks[name].dtype == torch.bool
                if method not in SINGLE:
                    assert not parameter[~pruned.masks[name]].any()
                    continue
                assert torch.equal(pruned.masks[name], parameter != 0)
                # Signs or zeros; and no new weights.
                assert (parameter * old[name] >= 0).all()
                assert (old[name][parameter != 0] != 0).all()
                if method in EXACT:
                    assert torch.equal(parameter[pruned.masks[name]], old[name][pruned.masks[name]])
            else:
                assert torch.equal(parameter, old[name])
        assert set(pruned.masks) == {n for n, p in old.items() if p.ndim >= 2}
        buffers = dict(model.named_buffers())
        assert all(torch.equal(b, buffers[n]) for n, b in pruned.model.named_buffers())
        assert sum(pruned.layer_requests.values()) == (pruned.kept if method in UNITS else pruned.requested)


@pytest.mark.parametrize("kind", KINDS)
def test_ends(method: str, kind: str) -> None:
    model, points = build(kind)
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = -0.0  # bit for bit, this one too
    fitted = sb.fit(model, points, method)
    everything = fitted.prune(1.0, seed=5)
    assert bits(everything.model) == bits(model)
    nothing = fitted.prune(0)
    assert nothing.kept == 0
    assert all((dict(nothing.model.named_parameters())[name] == 0).all() for name in nothing.masks)
    assert not any(mask.any() for mask in nothing.masks.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_and_global_state_stay_untouched(method: str, kind: str) -> None:
    model, points = build(kind)
    model.train()
    list(model.children())[-1].eval()
    first = next(model.parameters())
    first.grad = torch.full_like(first, 7.0)
    list(model.parameters())[-1].requires_grad_(False)
    before = bits(model)
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    identities = [id(p) for p in model.parameters()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002  # the one to leave alone
    given = points.clone()
    pruned = sb.fit(model, points, method).prune(0.3, seed=11)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))  # noqa: NPY002
    assert bits(model) == before
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in pruned.model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [p.requires_grad for p in pruned.model.parameters()] == flags
    assert [id(p) for p in model.parameters()] == identities
    assert torch.equal(points, given)
    assert (first.grad == 7).all()
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert not set(identities) & {id(p) for p in pruned.model.parameters()}


def test_seeds(method: str) -> None:
    model, points = build("mlp")
    fitted = sb.fit(model, points, method)
    hashes = [fitted.prune(0.4, seed=seed).mask_sha256 for seed in (0, 1, 2, 0)]
    assert hashes[0] == hashes[3]
    assert sb.prune(model, points, method=method, keep=0.4, seed=0).mask_sha256 == hashes[0]
    if method in ("random", "sipp-rand"):
        assert len(set(hashes)) == 3
    elif method in EXACT:
        assert len(set(hashes)) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(method: str, dtype: torch.dtype) -> None:
    model, points = build("mlp", dtype)
    pruned = sb.prune(model, points, method=method, keep=0.4)
    assert {p.dtype for p in pruned.model.parameters()} == {dtype}
    assert all(torch.isfinite(p).all() for p in pruned.model.parameters())
    assert pruned.requested == round(0.4 * prunable(model))
    if method in EXACT:
        assert pruned.kept == pruned.requested


def test_weights_that_are_zero_already_are_never_chosen_before_others(method: str) -> None:
    model, points = build("mlp")
    with torch.no_grad():
        model[0].weight[:, :8] = 0
    left = sum(int((p != 0).sum()) for p in model.parameters() if p.ndim >= 2)
    fitted = sb.fit(model, points, method)
    for keep in (0.1, 0.3, 0.5, left / prunable(model), 0.9, 1):
        pruned = fitted.prune(keep, seed=1)
        if method in EXACT:
            assert pruned.kept == min(pruned.requested, left)
        assert method in UNITS or pruned.kept <= left
    assert method in UNITS or fitted.prune(left / prunable(model)).kept == left


@pytest.mark.parametrize("keep", [-0.1, 1.1, math.nan, math.inf, True, "a", None, np.complex64(0.5)])
def test_bad_keeps(method: str, keep: object) -> None:
    model, points = build("mlp")
    with pytest.raises(OptionError, match="keep is the fraction"):
        sb.fit(model, points, method).prune(keep)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, None])
def test_bad_seeds(method: str, seed: object) -> None:
    model, points = build("mlp")
    with pytest.raises(OptionError, match="seed is a whole number"):
        sb.fit(model, points, method).prune(0.5, seed=seed)  # type: ignore[arg-type]  # on purpose


def test_numbers_of_numpy_are_numbers(method: str) -> None:
    model, points = build("mlp")
    fitted = sb.fit(model, points, method)
    assert fitted.prune(np.float32(0.5), np.int64(3)).mask_sha256 == fitted.prune(0.5, 3).mask_sha256


def in_place(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight.mul_(2)


def through_data(model: nn.Sequential) -> None:
    model[0].weight.data.mul_(2)


def replaced(model: nn.Sequential) -> None:
    version = model[0].weight._version
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
    for _ in range(version):  # nothing to tell the new one by but its values
        model[0].weight.data.mul_(1)


def loaded(model: nn.Sequential) -> None:
    model.load_state_dict({name: t * 1.5 for name, t in model.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, through_data, replaced, loaded])
def test_weights_changed_since_the_fit(method: str, change) -> None:
    model, points = build("mlp")
    fitted = sb.fit(model, points, method)
    change(model)
    with pytest.raises(ModelError, match=r"0\.weight.*fit again"):
        fitted.prune(0.5)


def test_unusable_networks_and_points(method: str) -> None:
    model, points = build("mlp")
    broken = copy.deepcopy(model)
    broken[0].weight.data[1, 1] = math.nan
    with pytest.raises(ModelError, match=r"0\.weight"):
        sb.fit(broken, points, method)
    with pytest.raises(ModelError, match="nothing to prune"):
        sb.fit(nn.Sequential(nn.ReLU()), points, method)
    with pytest.raises(PointsError, match="no points"):
        sb.fit(model, points[:0], method)
    with pytest.raises(PointsError, match="shape"):
        sb.fit(model, points[:, :5], method)


def test_unknown_option_names_the_allowed_ones(method: str) -> None:
    with pytest.raises(OptionError) as refused:
        sb.make_method(method, nonsense=1)
    for option in sb.make_method(method).options():
        assert option in str(refused.value)


def test_batches_and_loaders_make_no_difference_to_the_choice(method: str) -> None:
    model, points = build("mlp", torch.float64)
    reference = sb.fit(model, points, method).prune(0.4, seed=2)
    loader = DataLoader(TensorDataset(points), batch_size=4)
    for fitted in (sb.fit(model, points, method, batch_size=2), sb.fit(model, loader, method)):
        pruned = fitted.prune(0.4, seed=2)
        assert all(torch.equal(pruned.masks[n], m) for n, m in reference.masks.items())
