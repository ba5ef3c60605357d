"""The registry: names, options, a method of one's own."""

import inspect

import pytest
from small_networks import build

import sipp_bench as sb
from sipp_bench.errors import OptionError
from sipp_bench.methods import _REGISTRY
from sipp_bench.methods.observers import AppliedWeights
from sipp_bench.methods.protocol import Observation
from sipp_bench.methods.scores import ScoreMethod


class Smallest(ScoreMethod):
    """Keeps the smallest weights."""

    name = "smallest"

    def observe(self, look):
        applied = look.at(AppliedWeights())
        return Observation({name: 1 / (1 + w.abs()) for name, w in applied.weights.items()}, applied.skipped)


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_REGISTRY, "classes", dict(_REGISTRY.classes))
    assert len(inspect.getsource(Smallest).splitlines()) < 20
    sb.register_method("smallest", Smallest)
    sb.register_method("smallest", Smallest)  # again is no harm
    assert "smallest" in sb.list_methods()
    model, points = build("mlp")
    pruned = sb.prune(model, points, method="smallest", keep=0.3, scope="layer")
    assert pruned.kept == pruned.requested
    assert pruned.guarantee is None
    weight = model[0].weight.abs()
    assert weight[pruned.masks["0.weight"]].max() <= weight[~pruned.masks["0.weight"]].min()
    with pytest.raises(OptionError, match="registered already"):
        sb.register_method("magnitude", Smallest)
    for wrong in (object, Smallest(), "x"):
        with pytest.raises(OptionError, match="not a subclass"):
            sb.register_method("other", wrong)  # type: ignore[arg-type]  # on purpose


def test_unknown_methods_are_named_with_the_known() -> None:
    with pytest.raises(OptionError, match="Did you mean sipp-hybrid") as refused:
        sb.check_options("sipp-hybird", {})
    assert all(name in str(refused.value) for name in sb.list_methods())
    model, points = build("mlp")
    with pytest.raises(OptionError, match="no method 'nonsense'"):
        sb.fit(model, points, "nonsense")


@pytest.mark.parametrize("method", ["sipp-rand", "sipp-hybrid", "sipp-mixture"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("delta", 0), ("delta", 1), ("delta", float("nan")), ("delta", "a"), ("delta", None),
        ("weights", "none"), ("weights", None), ("patch_reduction", "median"), ("simultaneous", "no"),
    ],
)  # fmt: skip
def test_impossible_options(method: str, option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        sb.check_options(method, {option: value})


def test_options_reach_the_method() -> None:
    method = sb.make_method("sipp-rand", delta=0.01, weights="layer", simultaneous=True)
    assert method.options() == {"delta": 0.01, "weights": "layer", "simultaneous": True, "patch_reduction": "max"}
    with pytest.raises(OptionError, match="scope"):
        sb.check_options("magnitude", {"delta": 0.1})
    assert sb.make_method("wanda").options() == {"scope": "output"}


def test_the_beginning_of_names_is_nearer_than_another_name() -> None:
    with pytest.raises(OptionError, match=r"Did you mean sipp-det, sipp-hybrid, sipp-mixture or sipp-rand\?"):
        sb.make_method("sipp")
    with pytest.raises(OptionError, match=r"no method 'zzz'\. The methods are"):
        sb.make_method("zzz")
