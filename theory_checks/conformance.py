"""What every pruning method must do: one suite for the registered ones and for those of third parties.

    import pytest
    from theory_checks import method_checks

    @pytest.mark.parametrize(("name", "check"), method_checks("my-method"), ids=lambda value: str(value))
    def test_my_method(name, check):
        check()

`check_method(MyMethod)` runs them all and raises AssertionError with the name of the check that failed. What a method
must do follows from what it declares (`Method.budget`, `Method.changes`): to meet the budget exactly, on average over
seeds, or from below by units; to keep signs, and to leave what it keeps alone, where it removes weights or channels.
Draws are counted where a guarantee has them.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from sipp_bench import methods
from sipp_bench.compression.changes import Factors, Masked
from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import ModelError, OptionError, PointsError
from sipp_bench.methods.protocol import Fitted, Method, fit_method
from theory_checks.cases.drawn_networks import branches, draw_network
from theory_checks.cases.method_networks import conv, mlp

Check = Callable[[], None]

KEEPS = (0.05, 0.2, 0.5, 0.9)
# A sampling method's mean over this many seeds is tested at this level.
_SEEDS, _LEVEL = 30, 1e-9
_OTHER_OPTION = "an_option_that_no_method_has"


def check_method(name_or_class: str | type[Method], **options: Any) -> None:
    """Run every check; options are the method's own. Raises AssertionError that names the first check to fail."""
    for name, check in method_checks(name_or_class, **options):
        try:
            check()
        except Exception as error:  # a method under test may raise anything
            raise AssertionError(f"{_label(name_or_class)} fails the check {name!r}: {error}") from error


def method_checks(name_or_class: str | type[Method], **options: Any) -> Iterator[tuple[str, Check]]:
    """(name, check) of the suite for one method, for pytest.mark.parametrize; a check raises where the method is
    wrong. Raises OptionError for a name that is not registered or what is no Method."""
    cls = _method_class(name_or_class)
    for check in CHECKS:
        yield check.__name__.removeprefix("check_"), partial(check, cls, options)


def check_refuses_unknown_options(cls: type[Method], options: dict[str, Any]) -> None:
    """An option that it has not is refused at construction; its own are kept."""
    method = cls(**options)
    assert method.options().items() >= options.items(), "options() does not have the options that were given"
    try:
        cls(**options, **{_OTHER_OPTION: 1})
    except (TypeError, OptionError):
        return
    raise AssertionError("an unknown option was accepted")


def check_exact_keep(cls: type[Method], options: dict[str, Any]) -> None:
    """round(keep N) values are left: exactly, on average over seeds, or at most, as the method declares."""
    for model, points in (mlp(), conv()):
        fitted = _fit(cls, options, model, points)
        total = _prunable(model)
        for keep in KEEPS:
            first = fitted.prune(keep, seed=0)
            assert first.weights == total, f"{first.weights} weights are counted, the network has {total}"
            assert first.requested == round(keep * total), f"{first.requested} asked for at keep {keep} of {total}"
            if cls.budget == "unit":
                assert first.kept <= first.requested, f"{first.kept} kept at keep {keep}, {first.requested} asked for"
                continue
            if cls.budget == "exact":
                assert first.kept == first.requested, f"{first.kept} kept at keep {keep}, {first.requested} asked for"
                continue
            kept = np.array([fitted.prune(keep, seed=seed).kept for seed in range(_SEEDS)], dtype=float)
            # One weight is the room for whole draws; the rest is chance, by a t-test of independent seeds.
            off = abs(kept.mean() - first.requested) - 1 - 0.01 * first.requested
            spread = kept.std(ddof=1) / np.sqrt(_SEEDS)
            allowed = float(stats.t.isf(_LEVEL, _SEEDS - 1)) * spread
            assert off <= allowed, f"{kept.mean():.1f} kept on average at keep {keep}, {first.requested} asked for"


def check_own_draws(cls: type[Method], options: dict[str, Any]) -> None:
    """Draws that a guarantee speaks of: the counts behind pruned weights are whole and multinomial (C9, C13)."""
    for size in ((40, 30, 12), (240, 160, 12)):
        model, points = branches(np.random.default_rng(0), *size, dtype=torch.float32)
        fitted = _fit(cls, options, model, points)
        guarantee = fitted.prune(0.3, seed=0).guarantee
        if guarantee is not None and guarantee.per_patch and not guarantee.deterministic:
            own = draw_network(partial(fitted.prune, 0.3), model, points, range(_SEEDS), "C13" in guarantee.claims)
            assert not own.broken(), "; ".join(own.broken())
            assert own.p_value() > _LEVEL, f"not multinomial, or not independent: {own.p_values()}"


def check_keep_nothing_and_everything(cls: type[Method], options: dict[str, Any]) -> None:
    """keep 0 leaves no prunable weight; keep 1 gives the network bit for bit."""
    for model, points in (mlp(), conv()):
        fitted = _fit(cls, options, model, points)
        assert fitted.prune(0.0).kept == 0, "weights are left at keep 0"
        assert _bits(fitted.prune(1.0).model) == _bits(model), "keep 1 changes the network"


def check_model_untouched(cls: type[Method], options: dict[str, Any]) -> None:
    """Weights, buffers, gradients, modes, points and the global generators are as before."""
    for model, points in (mlp(), conv()):
        model.train()
        list(model.children())[-1].eval()
        first = next(model.parameters())
        first.grad = torch.ones_like(first)
        list(model.parameters())[-1].requires_grad_(False)
        before, given = _bits(model), points.clone()
        modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        states = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002  # the one to leave alone
        pruned = _fit(cls, options, model, points).prune(0.3, seed=1)
        assert _bits(model) == before, "the network's weights or buffers have changed"
        assert torch.equal(points, given), "the points have changed"
        assert [m.training for m in model.modules()] == modes, "a module's mode has changed"
        assert [p.requires_grad for p in model.parameters()] == flags, "a parameter's requires_grad has changed"
        assert torch.equal(first.grad, torch.ones_like(first)), "a gradient has changed"
        assert all(p.grad is None for p in list(model.parameters())[1:]), "a gradient was left behind"
        assert torch.equal(torch.get_rng_state(), states[0]), "torch's global generator was used"
        now = np.random.get_state()  # noqa: NPY002
        assert all(np.array_equal(a, b) for a, b in zip(now, states[1], strict=True)), "numpy's generator was used"
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in pruned.model.parameters()}
        assert not shared, "the pruned network shares memory with the network"


def check_same_seed_same_result(cls: type[Method], options: dict[str, Any]) -> None:
    """The same seed gives the same bits, from one fit or two, whatever else was drawn in between."""
    model, points = mlp()
    fitted = _fit(cls, options, model, points)
    reference = fitted.prune(0.4, seed=3).mask_sha256
    fitted.prune(0.7, seed=4)
    torch.rand(1)
    assert fitted.prune(0.4, seed=3).mask_sha256 == reference, "the second prune with the same seed differs"
    assert _fit(cls, options, model, points).prune(0.4, seed=3).mask_sha256 == reference, "a second fit differs"


def check_device_and_dtype(cls: type[Method], options: dict[str, Any]) -> None:
    """The pruned network has the network's dtype and device; on the graphics processor too, where there is one."""
    cases = [("cpu", dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    if torch.cuda.is_available():
        cases.append(("cuda", torch.float32))
    for device, dtype in cases:
        model, points = mlp()
        pruned = _fit(cls, options, model.to(device, dtype), points.to(device, dtype)).prune(0.4)
        kinds = {(p.device.type, p.dtype) for p in pruned.model.parameters()}
        assert kinds == {(device, dtype)}, f"{kinds} instead of {device}, {dtype}"
        assert {mask.device.type for mask in pruned.masks.values()} == {device}, "masks are on another device"


def check_masks_match_zeros(cls: type[Method], options: dict[str, Any]) -> None:
    """Masks are bool, the pruned weight is 0 where they are False, of single weights only there; requests add up."""
    for model, points in (mlp(), conv()):
        for keep in KEEPS:
            pruned = _fit(cls, options, model, points).prune(keep, seed=2)
            new = dict(pruned.model.named_parameters())
            assert set(pruned.masks) == {n for n, p in model.named_parameters() if p.ndim > 1}, (
                "masks for other weights"
            )
            for name, mask in pruned.masks.items():
                assert mask.dtype == torch.bool, f"the mask of {name} is {mask.dtype}"
                left = new[name] != 0
                right = torch.equal(mask, left) if cls.changes == (Masked,) else not bool((left & ~mask).any())
                assert right, f"the mask of {name} is not where its weight is not 0"
            requests = sum(pruned.layer_requests.values())
            expected = pruned.kept if cls.budget == "unit" else pruned.requested
            assert requests == expected, f"requests by layer add up to {requests}, not {expected}"


def check_changes(cls: type[Method], options: dict[str, Any]) -> None:
    """What became of each weight is of a declared kind, is what the network has, counts what is stored, and holds."""
    for model, points in (mlp(), conv()):
        pruned = _fit(cls, options, model, points).prune(0.4, seed=2)
        new = dict(pruned.model.named_parameters())
        for name, change in pruned.changes.items():
            assert isinstance(change, cls.changes), f"{name} is {type(change).__name__}, which is not declared"
            assert torch.equal(change.effective(), new[name]), f"the change of {name} is not what the network has"
            parts = change.encodings()["bitmap"]
            stored = sum(values.numel() for part, values in parts.items() if part != "bits")
            assert stored == change.numbers(), f"{name} counts {change.numbers()} values, {stored} are stored"
            with torch.no_grad():
                new[name].add_(1)
                change.hold(new[name])
                gone = bool((new[name] != 0)[~change.mask].any())
                assert not gone, f"{name}: what was removed came back after a step"
                again = new[name].clone()
                change.hold(new[name])
            room = 1e-5 * float(again.abs().max())
            assert bool(((again - new[name]).abs() <= room).all()), f"{name}: held twice it changes once more"


def check_weights_keep_their_signs(cls: type[Method], options: dict[str, Any]) -> None:
    """Each weight is 0 or has its sign, is finite, and a method that does not sample leaves what it keeps alone."""
    for model, points in (mlp(), conv()):
        pruned = _fit(cls, options, model, points).prune(0.4, seed=2)
        for name, (old, new) in _pairs(model, pruned).items():
            assert bool(torch.isfinite(new).all()), f"{name} holds NaN or infinity"
            if Factors in cls.changes:
                continue  # they are new weights
            assert bool((old * new >= 0).all()), f"{name} has changed signs"
            assert not bool(((old == 0) & (new != 0)).any()), f"{name} has weights where there were none"
            if cls.budget != "expected":
                assert torch.equal(new, torch.where(new != 0, old, new)), f"{name}: weights that are kept have changed"


def check_biases_untouched(cls: type[Method], options: dict[str, Any]) -> None:
    """Biases, normalisation and buffers are as they were."""
    for model, points in (mlp(), conv()):
        pruned = _fit(cls, options, model, points).prune(0.2)
        new = pruned.model.state_dict()
        for name, value in model.state_dict().items():
            if name not in pruned.masks:
                assert torch.equal(value, new[name]), f"{name} has changed"


def check_ties(cls: type[Method], options: dict[str, Any]) -> None:
    """All weights and all points alike: the count is met all the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, points = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4)), torch.ones(6, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    fitted = _fit(cls, options, model, points)
    for keep in (0.05, 0.33, 0.5, 0.95):
        pruned = fitted.prune(keep, seed=1)
        if cls.budget == "exact":
            assert pruned.kept == pruned.requested, f"{pruned.kept} kept at keep {keep}, {pruned.requested} asked for"
        assert pruned.kept <= pruned.weights


def check_zero_weights_come_last(cls: type[Method], options: dict[str, Any]) -> None:
    """Weights that are 0 already are not among those kept while there are others."""
    model, points = mlp()
    with torch.no_grad():
        next(model.parameters())[:, :5] = 0
    left = sum(int((p != 0).sum()) for p in model.parameters() if p.ndim > 1)
    fitted = _fit(cls, options, model, points)
    for keep in (0.2, 0.6, 0.9):
        pruned = fitted.prune(keep)
        if cls.budget == "exact":
            assert pruned.kept == min(pruned.requested, left), f"{pruned.kept} kept at keep {keep}, {left} are not 0"
        assert cls.budget == "unit" or pruned.kept <= left, "more weights than the network has"


def check_refusals(cls: type[Method], options: dict[str, Any]) -> None:
    """Impossible keeps and seeds, unusable points, NaN weights, nothing to prune, weights changed since the fit."""
    model, points = mlp()
    fitted = _fit(cls, options, model, points)
    for keep in (-0.1, 1.1, float("nan")):
        _refuses(OptionError, partial(fitted.prune, keep), f"keep {keep}")
    _refuses(OptionError, partial(fitted.prune, 0.5, seed=-1), "seed -1")
    _refuses(PointsError, partial(_fit, cls, options, model, points[:0]), "no points")
    _refuses(PointsError, partial(_fit, cls, options, model, points[:, :3]), "points of another shape")
    _refuses(PointsError, partial(_fit, cls, options, model, points * float("nan")), "NaN points")
    _refuses(ModelError, partial(_fit, cls, options, nn.Sequential(nn.ReLU()), points), "a network without weights")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("nan")
    _refuses(ModelError, partial(_fit, cls, options, broken, points), "a NaN weight")
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    _refuses(ModelError, partial(fitted.prune, 0.5), "weights that changed since the fit")


CHECKS: tuple[Callable[[type[Method], dict[str, Any]], None], ...] = (
    check_refuses_unknown_options,
    check_model_untouched,
    check_exact_keep,
    check_own_draws,
    check_keep_nothing_and_everything,
    check_same_seed_same_result,
    check_device_and_dtype,
    check_masks_match_zeros,
    check_changes,
    check_weights_keep_their_signs,
    check_biases_untouched,
    check_ties,
    check_zero_weights_come_last,
    check_refusals,
)


def _method_class(name_or_class: str | type[Method]) -> type[Method]:
    if isinstance(name_or_class, str):
        return type(methods.make_method(name_or_class))
    if not (isinstance(name_or_class, type) and issubclass(name_or_class, Method)):
        raise OptionError(f"{name_or_class!r} is neither the name of a method nor a subclass of Method.")
    return name_or_class


def _label(name_or_class: str | type[Method]) -> str:
    return name_or_class if isinstance(name_or_class, str) else name_or_class.__name__


def _fit(cls: type[Method], options: dict[str, Any], model: nn.Module, points: Tensor) -> Fitted:
    return fit_method(cls(**options), model, points)


def _refuses(error: type[Exception], call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except error:
        return
    except Exception as other:
        raise AssertionError(f"{what}: {type(other).__name__} instead of {error.__name__}: {other}") from other
    raise AssertionError(f"{what} is not refused")


def _prunable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.ndim > 1)


def _pairs(model: nn.Module, pruned: Pruned) -> dict[str, tuple[Tensor, Tensor]]:
    old, new = dict(model.named_parameters()), dict(pruned.model.named_parameters())
    return {name: (old[name].detach(), new[name].detach()) for name in pruned.masks}


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {n: t.detach().cpu().contiguous().numpy().tobytes() for n, t in model.state_dict().items()}
