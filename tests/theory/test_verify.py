"""verify on small networks: sound code passes, planted bugs are falsified, and what is vacuous is never a pass."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import build
from torch import Tensor, nn

import sipp_bench as sb
import theory_checks
from sipp_bench import bounds
from sipp_bench.errors import ModelError, OptionError, PointsError
from sipp_bench.methods.sampling import BlockSampler, reweighted
from sipp_bench.methods.sipp_hybrid import SippHybrid
from sipp_bench.network.blocks import median
from theory_checks import Report, verify
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.on_network import context as network
from theory_checks.on_network import drawn_blocks, fresh_look
from theory_checks.on_network.context import Cell, Context
from theory_checks.on_network.held import Held
from theory_checks.on_network.vacuity import smallest_keeps

EFFORT = replace(QUICK, cases=5, trials=400)
ROOT = verify.__module__


def mlp(width: int = 60) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(width, 30), nn.ReLU(), nn.Linear(30, 5)).eval()


def points(count: int, seed: int, *shape: int) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))


def both(count: int) -> tuple[Held, Held]:
    return Held.of(points(count, 1, 60)), Held.of(points(9, 2, 60))


def run(model: nn.Module | None = None, **options: Any) -> Report:
    given: dict[str, Any] = {"keep": 0.3, "effort": EFFORT, "draws": 5} | options
    model = model or mlp()
    looked_at = given.pop("points", points(40, 1, 60))
    fresh = given.pop("fresh_points", points(120, 2, 60))
    return verify(model, looked_at, fresh, **given)


def verdicts(report: Report) -> dict[str, Verdict]:
    return {finding.claim: finding.verdict for finding in report.findings}


@pytest.mark.parametrize("method", sb.list_methods())
def test_every_method(method: str) -> None:
    report = run(method=method, keep=(0.3, 0.8))
    assert report.ok, str(report)
    found = verdicts(report)
    skipped = {entry["claim"] for entry in report.skipped}
    assert set(found) | skipped == {f"C{i}" for i in (1, 2, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)}
    assert found["C1"] is Verdict.HOLDS
    if method not in ("sipp-hybrid", "sipp-mixture", "sipp-rand"):
        assert {"C10", "C11", "C12", "C13"} <= skipped
    if method == "sipp-rand":
        assert found["C10"] in (Verdict.NOT_FALSIFIED, Verdict.USELESS)
    assert len(report.disagreement) == 2


def test_the_function_stays_the_function() -> None:
    import theory_checks.verify as module  # noqa: F401  # the import that could replace it

    assert callable(theory_checks.verify)


class Small(nn.Module):
    """Convolutions, batch-norm, a residual sum, a functional layer; a name that HTML must escape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Parameter(torch.randn(3, 64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return F.linear((x + self.again(x).relu()).flatten(1), self.head)


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize("method", ["sipp-hybrid", "sipp-rand"])
def test_convolutions_residual_sums_and_functional_layers(method: str) -> None:
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = run(model, points=points(70, 1, 1, 8, 8), fresh_points=points(60, 2, 1, 8, 8), method=method, keep=0.6)
    assert report.ok, str(report)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    layers = {row["layer"] for row in report.vacuity["draws_needed"]}
    assert layers == {"first.weight", "again.weight", "head"}
    assert verdicts(report)["C18"] is Verdict.USELESS


def test_attention_has_no_certificate_but_the_rest() -> None:
    model, _ = build("attention")
    report = run(model, points=points(30, 1, 6, 5) - 0.5, fresh_points=points(60, 2, 6, 5) - 0.5, method="sipp-det")
    assert report.ok, str(report)
    reasons = {entry["claim"]: entry["reason"] for entry in report.skipped}
    assert "'multi_head_attention_forward'" in reasons["C7"]


class Labelled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 5, 1)


def test_outputs_that_are_no_logits() -> None:
    report = run(nn.Sequential(*mlp(), Labelled()), method="sipp-det")
    assert report.ok
    assert {"C7", "C17"} <= {entry["claim"] for entry in report.skipped}
    assert report.disagreement == ()
    assert "Predictions that differ" not in report.to_text()


def halved_sensitivity(*arguments: Any, **options: Any) -> Any:
    found = sb.measure_sensitivity(*arguments, **options)
    return replace(found, layers={n: replace(e, values=e.values / 2) for n, e in found.layers.items()})


def first_half(model: nn.Module, looked_at: Any, **options: Any) -> Any:
    return sb.measure_sensitivity(model, looked_at[: len(looked_at) // 2], **options)


def seeded_plan(self: SippHybrid, observation: Any, weights: Any, budget: int) -> Any:
    state["calls"] = state.get("calls", 0) + 1
    return original_plan(self, observation, weights, max(budget - 40 * (state["calls"] % 2), 0))


state: dict[str, int] = {}
original_plan = SippHybrid.plan


def test_planted_halved_sensitivities(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        "sipp_bench.methods.observers",
        "theory_checks.on_network.context",
        "theory_checks.on_network.identities",
    ):
        monkeypatch.setattr(f"{place}.measure_sensitivity", halved_sensitivity)
    report = run(method="sipp-det", keep=0.6)
    assert not report.ok
    assert verdicts(report)["C1"] is Verdict.FALSIFIED
    assert verdicts(report)["C2"] is Verdict.FALSIFIED
    assert "FALSIFIED" in report.to_text()


def test_planted_half_of_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        "sipp_bench.methods.observers",
        "theory_checks.on_network.context",
        "theory_checks.on_network.identities",
    ):
        monkeypatch.setattr(f"{place}.measure_sensitivity", first_half)
    report = run(method="sipp-det", keep=0.6)
    assert verdicts(report)["C2"] is Verdict.FALSIFIED


def test_planted_too_large_sensitivities(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*arguments: Any, **options: Any) -> Any:
        found = sb.measure_sensitivity(*arguments, **options)
        return replace(found, layers={n: replace(e, values=(e.values > 0).float()) for n, e in found.layers.items()})

    for place in ("sipp_bench.methods.observers", "theory_checks.on_network.context"):
        monkeypatch.setattr(f"{place}.measure_sensitivity", ones)
    assert verdicts(run(method="sipp-det", keep=0.9))["C8"] is Verdict.FALSIFIED


@pytest.mark.parametrize("place", ["theory_checks.on_network.drawn_blocks", "sipp_bench.methods.sipp"])
def test_planted_draws_that_are_too_few(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for 64 that the bound is for, by the sampler or by the method itself: too far off too often."""

    def fewer(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
        return reweighted(sampler, weight, torch.where(draws > 0, (draws // 64).clamp(min=1), 0), rng)

    monkeypatch.setattr(f"{place}.reweighted", fewer)
    wide = {"points": points(40, 1, 400), "fresh_points": points(40, 2, 400)}
    found = verdicts(run(mlp(400), method="sipp-rand", keep=0.5, claims=["C10"], **wide))
    assert found["C10"] is Verdict.FALSIFIED


def test_planted_bound_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bounds.deterministic_epsilon
    monkeypatch.setattr("sipp_bench.methods.sipp.deterministic_epsilon", lambda s, dim=None: honest(s, dim) / 2)
    assert verdicts(run(method="sipp-det", keep=0.9))["C2"] is Verdict.FALSIFIED


def test_planted_plan_that_knows_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SippHybrid, "plan", seeded_plan)
    wide = {"points": points(40, 1, 400), "fresh_points": points(40, 2, 400)}
    report = run(mlp(400), method="sipp-hybrid", keep=0.3, claims=["C12"], **wide)
    assert verdicts(report)["C12"] is Verdict.FALSIFIED


def test_planted_certificate_without_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from theory_checks.subjects.known_bad import KNOWN_BAD

    wrong = KNOWN_BAD["certificate: errors of earlier layers forgotten"].certify
    monkeypatch.setattr("theory_checks.on_network.identities.certify", wrong)
    model = mlp()
    with torch.no_grad():
        model[0].weight.abs_()
        model[2].weight.abs_()
    assert verdicts(run(model, method="sipp-det", claims=["C7"]))["C7"] is Verdict.FALSIFIED


def test_fresh_points_from_elsewhere_are_noticed() -> None:
    elsewhere = points(200, 2, 60) ** 8
    report = run(points=points(150, 1, 60), fresh_points=elsewhere, claims=["C14"])
    assert verdicts(report)["C14"] is Verdict.FALSIFIED
    assert "same source" in report.findings[0].detail
    assert verdicts(run(points=points(150, 1, 60), fresh_points=points(200, 2, 60), claims=["C14"]))["C14"].passed


def test_planted_conformal_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "theory_checks.on_network.fresh.bounds.conformal_quantile", lambda scores, alpha: float(min(scores))
    )
    assert verdicts(run(claims=["C17"]))["C17"] is Verdict.FALSIFIED


@pytest.mark.parametrize(
    ("claims", "options", "verdict"),
    [
        (["C18"], {}, Verdict.USELESS),
        (["C2"], {"keep": 0.0, "method": "sipp-det"}, Verdict.USELESS),
        (["C4"], {"keep": 0.0, "method": "sipp-det"}, Verdict.USELESS),
        (["C7"], {"keep": 0.1, "method": "sipp-rand"}, Verdict.CANNOT_FAIL),
        (["C10"], {"keep": 0.1, "method": "sipp-rand"}, Verdict.CANNOT_FAIL),
        (["C15"], {}, Verdict.CONDITIONAL),
        (["C14"], {"fresh_points": points(2, 2, 60)}, Verdict.CANNOT_FAIL),
        (["C17"], {"fresh_points": points(6, 2, 60)}, Verdict.USELESS),
    ],
)
def test_nothing_vacuous_is_a_pass(claims: list[str], options: dict[str, Any], verdict: Verdict) -> None:
    report = run(claims=claims, **options)
    assert verdicts(report) == {claims[0]: verdict}
    assert not report.ok
    assert "NOTHING WAS CHECKED" in report.to_text()


def test_numbers_by_hand() -> None:
    model, looked_at, fresh = mlp(), points(40, 1, 60), points(120, 2, 60)
    report = run(model, keep=(0.3, 0.6), method="sipp-det")
    sens = sb.measure_sensitivity(model, looked_at)
    t = sens["0.weight"].totals.flatten()
    nnz = torch.stack(
        [
            (sens["0.weight"].values * sign > 0).sum(1)
            for sign in (sens["0.weight"].positive, ~sens["0.weight"].positive)
        ],
        1,
    )
    row = report.vacuity["draws_needed"][0]
    assert row["T"] == pytest.approx(median(t))
    assert row["ratio"] == pytest.approx(median(8 / 3 * t * math.log(2 / 0.05) / nnz.flatten()))
    pruned = sb.prune(model, looked_at, method="sipp-det", keep=0.6)
    with torch.no_grad():
        differing = int((model(fresh).argmax(1) != pruned.model(fresh).argmax(1)).sum())
    assert report.disagreement[1]["differing"] == differing
    epsilon = pruned.guarantee.epsilon["0.weight"]
    changed = (pruned.masks["0.weight"] == 0).any(1)
    assert changed.all()
    telling = next(r for r in report.vacuity["telling_blocks"] if r["keep"] == 0.6 and r["layer"] == "0.weight")
    assert telling["telling"] == pytest.approx(float((epsilon < 1).double().mean()))
    factors = next(r for r in report.vacuity["decomposition"] if r["keep"] == 0.6 and r["layer"] == "0.weight")
    m = torch.stack(
        [
            (pruned.masks["0.weight"] & sign & (sens["0.weight"].values > 0)).sum(1)
            for sign in (sens["0.weight"].positive, ~sens["0.weight"].positive)
        ],
        1,
    ).flatten()
    some = m > 0
    assert factors["epsilon"] == pytest.approx(median(bounds.bernstein_epsilon(t[some], m[some], 0.05)))
    assert factors["with_C"] == pytest.approx(median(bounds.bernstein_epsilon(3 * t[some], m[some], 0.05)))
    assert factors["without_T"] < factors["epsilon"] < factors["with_C"]
    assert factors["without_L"] < factors["epsilon"] < factors["with_union"]


def test_smallest_keep_by_brute_force() -> None:
    context = Context(
        mlp(), Held.of(points(40, 1, 60)), Held.of(points(9, 2, 60)), "sipp-det", {}, 0.05, 0.05, 0, EFFORT, 5
    )

    def share(step: int) -> float:
        blocks = Cell(context, step / 256).blocks().values()
        return sum(int(b.telling.sum()) for b in blocks) / sum(int(b.concerned.sum()) for b in blocks)

    found = smallest_keeps(context)
    for name, least in (("half", 0.5), ("all", 1.0)):
        keep = found[name]
        assert keep is not None
        assert share(round(256 * keep)) >= least > share(round(256 * keep) - 1)
    assert found["any"] is not None
    assert found["any"] <= found["half"] <= found["all"]


def test_report_forms() -> None:
    model = small()
    type(model).__name__ = "<script>alert(1)</script>"
    try:
        report = run(model, points=points(20, 1, 1, 8, 8), fresh_points=points(40, 2, 1, 8, 8), method="sipp-det")
    finally:
        type(model).__name__ = "Small"
    page = report.to_html()
    assert page.startswith('<section class="verify">')
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<table>") == page.count("</table>") == 4
    content = json.loads(report.to_json())
    assert content["ok"] is report.ok
    assert [f["claim"] for f in content["findings"]] == [f.claim for f in report.findings]
    assert all(f["verdict"] in [v.value for v in Verdict] for f in content["findings"])
    assert content["settings"]["points"] == 20
    text = str(report)
    assert text == report.to_text()
    assert max(len(line) for line in text.splitlines() if "  " not in line.strip()) <= 120
    assert str(
        run(model, points=points(20, 1, 1, 8, 8), fresh_points=points(40, 2, 1, 8, 8), method="sipp-det")
    ) == text.replace("<script>alert(1)</script>", "Small")


def test_synthetic_cases_on_request() -> None:
    report = run(claims=["C6", "C18"], synthetic=True)
    found = [(f.claim, f.data.get("synthetic", False), f.verdict) for f in report.findings]
    assert ("C6", True, Verdict.HOLDS) in found
    assert ("C18", True, Verdict.HOLDS) in found
    assert report.ok
    assert "synthetic" in report.to_text()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"claims": ["C3"]}, OptionError, "synthetic"),
        ({"claims": ["C99"]}, OptionError, "C99"),
        ({"claims": []}, OptionError, "at least one claim"),
        ({"keep": 1.5}, OptionError, "keep is a fraction"),
        ({"keep": ()}, OptionError, "at least one keep"),
        ({"keep": math.nan}, OptionError, "keep is a fraction"),
        ({"delta": 0.0}, OptionError, "delta"),
        ({"alpha": 1.0}, OptionError, "alpha"),
        ({"draws": 0}, OptionError, "draws"),
        ({"method": "sip-det"}, OptionError, "sipp-det"),
        ({"options": {"colour": 1}}, OptionError, "colour"),
        ({"fresh_points": points(40, 1, 60)}, PointsError, "All fresh points"),
        ({"fresh_points": points(0, 1, 60)}, PointsError, "no points"),
        ({"fresh_points": points(4, 3, 60) * math.nan}, PointsError, "NaN"),
        ({"fresh_points": points(4, 3, 9)}, PointsError, "shape"),
        ({"points": points(4, 3, 9)}, PointsError, "shape"),
        ({"model": nn.Sequential(nn.ReLU())}, ModelError, "nothing to prune"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        run(**options)


def test_fresh_points_that_are_in_s_as_well_are_told() -> None:
    both = torch.cat([points(10, 1, 60), points(50, 2, 60)])
    report = run(fresh_points=both, claims=["C1"])
    assert report.settings["fresh_points_in_S"] == 10
    assert "Warning: 10 of the 60 fresh points" in report.to_text()


def test_hardest_instances_are_those_of_largest_variance() -> None:
    """The exact standard deviation, against draws."""
    context = Context(mlp(), *both(10), "sipp-rand", {}, 0.05, 0.05, 0, EFFORT, 5)
    found = drawn_blocks.drawn(context.cell(0.5))
    worst = found.instances[0]
    ratios = drawn_blocks.sampled(found.draws.laws[worst.name], worst, 20_000, np.random.default_rng(0))
    epsilon = found.guarantee.epsilon[worst.name][worst.row, worst.column]
    assert float(ratios.std() / epsilon) == pytest.approx(worst.hardness, rel=0.03)
    assert float(ratios.mean()) == pytest.approx(1, abs=0.02)


def test_one_look_counts_each_weight() -> None:
    look = fresh_look.FreshLook(mlp(), Held.of(points(20, 1, 60)), Held.of(points(15, 2, 60)), 0.05)
    s = sb.measure_sensitivity(mlp(), points(20, 1, 60))["0.weight"].values
    expected = torch.zeros_like(s)
    for x in points(15, 2, 60).split(1):
        expected += sb.measure_sensitivity(mlp(), x)["0.weight"].values > s * (1 + 1e-5)
    assert torch.equal(look.counts["0.weight"], expected.long())
    assert look.audit.points == 15


def test_inputs_in_other_forms() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    looked_at, fresh = points(40, 1, 60), points(120, 2, 60)
    loader = DataLoader(TensorDataset(looked_at, torch.zeros(40)), batch_size=7)
    report = run(points=loader, fresh_points=fresh.numpy(), claims=["C1", "C2"], method="sipp-det")
    assert report.to_json() == run(claims=["C1", "C2"], method="sipp-det").to_json()


_: Callable[..., Any] = network.outputs
