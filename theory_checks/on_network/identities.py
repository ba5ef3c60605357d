"""Claims C1, C2, C4, C7, C8 and C12 on a user's network: no probability, one violation beyond rounding falsifies."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sipp_bench import bounds
from sipp_bench.compression.rounding import sensitivity_rounding, sensitivity_underflow
from sipp_bench.errors import ModelError
from sipp_bench.machine.seeds import derived_seed
from sipp_bench.network.blocks import block_sums, median
from sipp_bench.sensitivity.measure import measure_sensitivity
from theory_checks.cases import oracle
from theory_checks.certificate.certify import certify
from theory_checks.evidence.finding import Finding, Verdict
from theory_checks.on_network.capture import BATCH, layer_batches
from theory_checks.on_network.context import Blocks, Cell, Context, NotApplicable, rounding_of
from theory_checks.on_network.steady import mixes_points

# Seeds whose plans claim C12 compares.
PLANS = 8


# How far s may be from that of other batches: large beside rounding, small beside what a lost point or part moves.
_OTHER_BATCHES = 1e-3


def check_laws(context: Context) -> Finding:
    """C1: 0 <= s <= 1; T = 0 exactly where a block was never active, else within [1, min(weights, active)]; halves of
    S, cut between batches, merge to the whole of it."""
    whole, points = context.sensitivity, context.points
    size = BATCH if len(points) > BATCH else -(-len(points) // 2)
    cut = size * max(1, round(len(points) / size / 2))
    halves = [
        measure_sensitivity(context.model, part.points(size), batch_size=size)
        for part in (points[:cut], points[cut:])
        if len(part)
    ]
    merged = halves[0].merge(halves[1]) if len(halves) == 2 else halves[0]
    # Few points are one batch as a whole, and others when cut: a layer's inputs are then other products, which deep
    # networks move by more than the rounding of one sum, and networks that mix the points of a batch by anything.
    same = whole if size == BATCH else measure_sensitivity(context.model, points.points(size), batch_size=size)
    roughly = torch.inf if mixes_points(context.model, points) else _OTHER_BATCHES
    trials = violations = 0
    worst = 0.0
    for name, layer in whole.items():
        s, n = layer.values.double(), layer.values[0].numel()
        kind = layer.values.dtype
        slack = sensitivity_rounding(n, kind)
        apart = (merged[name].values.double() - same[name].values.double()).abs()
        limit = slack * same[name].values.double() + sensitivity_underflow(kind)
        others = (merged[name].values.double() - s).abs() > roughly
        t, active = layer.totals, layer.active
        sizes = block_sums(s > 0, layer.positive)
        most = torch.minimum(sizes, active.double()) * (1 + slack)
        t_wrong = torch.where(active > 0, (t < 1 - slack - n * sensitivity_underflow(kind)) | (t > most), t != 0)
        trials += s.numel() + t.numel()
        violations += int(((s < 0) | (s > 1) | s.isnan() | (apart > limit) | others).sum()) + int(t_wrong.sum())
        worst = max(worst, float((apart / limit).max()))
    inactive = sum(int((layer.active == 0).sum()) for layer in whole.values())
    return _identity(
        "C1", trials, violations, worst,
        f"{len(whole)} weights: ranges of s and T, and the merging of {len(halves)} parts of S; "
        f"{inactive} blocks are never active on S.",
        {"layers": len(whole), "inactive_blocks": inactive},
    )  # fmt: skip


def check_dropping(cell: Cell) -> Finding:
    """C2: every block that only dropped has r <= epsilon on all of S."""
    counts, ratios = _Counts(), torch.zeros(0)
    errors = cell.errors()
    for name, blocks in _only_dropped(cell).items():
        limit = blocks.epsilon + rounding_of(blocks.epsilon, blocks.n, cell.weights[name][0].dtype)
        counts.add(blocks, errors[name] > limit)
        ratios = torch.cat([ratios, (errors[name] / limit)[blocks.telling].cpu()])
    detail = f"{counts.telling} of {counts.concerned} blocks that lost weights have epsilon < 1"
    if counts.nothing:
        detail += f" ({counts.nothing} of them lost only weights that no point of S uses)"
    worst = float(ratios.max()) if len(ratios) else 0.0
    if len(ratios):
        detail += f"; measured / bound among them is {worst:.3g} at most, {median(ratios):.3g} in the median"
    return counts.finding("C2", worst, detail + ".", cell)


def check_attainment(cell: Cell) -> Finding:
    """C8: the largest error of a block that only dropped is at least the largest s that it dropped."""
    counts, worst = _Counts(), 0.0
    errors = cell.errors()
    for name, blocks in _only_dropped(cell).items():
        slack = rounding_of(blocks.largest, blocks.n, cell.weights[name][0].dtype)
        low = errors[name] < blocks.largest - slack
        counts.add(blocks, low, all_tell=True)
        worst = max(worst, float(torch.where(blocks.concerned, blocks.largest / (errors[name] + slack), 0.0).max()))
    detail = f"{counts.concerned} blocks that lost weights: the error of each is at least the largest s that it lost."
    return counts.finding("C8", worst, detail, cell)


def check_recombination(cell: Cell) -> Finding:
    """C4: |yhat - y| <= eps max(Z^{++} + Z^{--}, Z^{-+} + Z^{+-}) for neurons whose blocks only dropped."""
    found = _only_dropped(cell)
    tested = violations = neurons = 0
    worst = 0.0
    epsilons = {}
    for name, blocks in found.items():
        eps = torch.where(blocks.concerned, blocks.epsilon, 0.0).amax(1)
        concerned = blocks.concerned.any(1) & ~blocks.drawn.any(1)
        neurons += int(concerned.sum())
        epsilons[name] = (eps, concerned & (eps < 1), blocks.n)
    for name, layer, x in layer_batches(cell.context.model, cell.context.points.points(BATCH)):
        if name not in epsilons:
            continue
        eps, telling, n = epsilons[name]
        w, pruned = cell.weights[name]
        z = oracle.quadrant_sums(layer, x)
        plus, minus = z[..., 0, 0] + z[..., 1, 1], z[..., 1, 0] + z[..., 0, 1]
        moved = (oracle.apply_layer(layer, x, pruned) - oracle.apply_layer(layer, x, w)).abs()
        limit = bounds.recombined_error(eps, plus, minus) + (plus + minus) * rounding_of(eps, n, w.dtype)
        violations += int((moved > limit)[..., telling].sum())
        tested += moved[..., telling].numel()
        if bool(telling.any()):
            worst = max(worst, float((moved / limit.clamp(min=1e-300))[..., telling].max()))
    told = sum(int(telling.sum()) for _, telling, _ in epsilons.values())
    detail = f"{told} of {neurons} neurons that only lost weights have epsilon < 1; {tested} pre-activations compared."
    verdict = Verdict.FALSIFIED if violations else Verdict.HOLDS if told else Verdict.USELESS
    return Finding("C4", verdict, tested, violations, worst, detail, data={"keep": cell.keep, "neurons": neurons})


def check_certificate(cell: Cell) -> Finding:
    """C7 on the fresh points, in float64: the bound holds for every logit, certified predictions stay."""
    context = cell.context
    try:
        certificate = certify(context.model, cell.pruned.model, context.fresh.points(32))
        other = certify(cell.pruned.model, cell.pruned.model, context.fresh.points(32)).output
    except ModelError as error:
        raise NotApplicable(str(error)) from error
    moved = (other - certificate.output).abs()
    changed = certificate.certified & (other.argmax(1) != certificate.output.argmax(1))
    broken = (moved > certificate.error).any(1) | changed
    certified, useless = (float(x.double().mean()) for x in (certificate.certified, certificate.useless))
    agree = float((other.argmax(1) == certificate.output.argmax(1)).double().mean())
    tight = median(moved / certificate.error.clamp(min=1e-300))
    data = {
        "keep": cell.keep, "certified": certified, "useless": useless, "agreement": agree,
        "error_median": median(certificate.error), "moved_median": median(moved),
        "range_median": median(certificate.output.amax(1) - certificate.output.amin(1)),
    }  # fmt: skip
    detail = (
        f"{certified:.1%} of {len(moved)} fresh inputs keep their class for certain ({agree:.1%} do); the bound is at "
        f"least the logits' range for {useless:.1%}. Median measured / bound {float(tight):.2g}."
    )
    verdict = Verdict.HOLDS if certified else Verdict.CANNOT_FAIL if useless == 1 else Verdict.USELESS
    if bool(broken.any()):
        verdict = Verdict.FALSIFIED
    worst = float((moved / certificate.error.clamp(min=1e-300)).max())
    return Finding("C7", verdict, len(moved), int(broken.sum()), worst, detail, data=data)


def check_hybrid(cell: Cell) -> Finding:
    """C12: which blocks are drawn, how often, and every bound are the same whatever the seed; who is drawn has a
    bound below that of dropping."""
    context = cell.context
    if context.method != "sipp-hybrid":
        raise NotApplicable("it speaks of sipp-hybrid")
    seeds = [context.seed, *(derived_seed(context.seed, f"C12, plan {number}") for number in range(1, PLANS))]
    one, *others = (context.fitted.prune(cell.keep, seed).guarantee for seed in seeds)
    assert one is not None
    trials = violations = drawn = 0
    for name, epsilon in one.epsilon.items():
        draws = one.draws[name]
        same = torch.ones_like(draws, dtype=torch.bool)
        for other in others:
            assert other is not None
            same &= (epsilon == other.epsilon[name]) & (draws == other.draws[name])
        violations += int((~same | ((draws > 0) & (epsilon >= 1))).sum())
        trials += epsilon.numel()
        drawn += int((draws > 0).sum())
    if not drawn and not violations:
        raise NotApplicable("no block is drawn at this keep ratio")
    detail = f"{drawn} of {trials} blocks are drawn; the choice, the draws and the bounds do not depend on the seed."
    return _identity("C12", trials, violations, 0.0, detail, {"keep": cell.keep, "drawn": drawn})


class _Counts:
    def __init__(self) -> None:
        self.concerned = self.telling = self.violations = self.nothing = 0

    def add(self, blocks: Blocks, broken: Tensor, all_tell: bool = False) -> None:
        telling = blocks.concerned if all_tell else blocks.telling
        self.concerned += int(blocks.concerned.sum())
        self.telling += int(telling.sum())
        self.nothing += int((telling & (blocks.lost == 0)).sum())
        # r > 1 is impossible for dropping: broken counts wherever it is seen, also where epsilon is 1.
        self.violations += int((broken & blocks.concerned).sum())

    def finding(self, claim: str, worst: float, detail: str, cell: Cell) -> Finding:
        if not self.concerned:
            raise NotApplicable("no block that was active on S only lost weights at this keep ratio")
        verdict = Verdict.HOLDS if self.telling else Verdict.USELESS
        if self.violations:
            verdict = Verdict.FALSIFIED
            detail = f"{self.violations} blocks violate it. {detail}"
        data = {"keep": cell.keep, "blocks": self.concerned, "telling": self.telling}
        return Finding(claim, verdict, self.telling, self.violations, worst, detail, data=data)


def _only_dropped(cell: Cell) -> dict[str, Blocks]:
    """Blocks, those that were drawn taken out of what is concerned."""
    guarantee = cell.pruned.guarantee
    if guarantee is not None and not guarantee.per_patch:
        raise NotApplicable("sensitivities averaged over patches speak of averages, not of each patch")
    found = {}
    for name, blocks in cell.blocks().items():
        keep = ~blocks.drawn
        found[name] = replace(blocks, changed=blocks.changed * keep, active=blocks.active & keep)
    return found


def _identity(claim: str, trials: int, violations: int, worst: float, detail: str, data: Mapping[str, Any]) -> Finding:
    verdict = Verdict.FALSIFIED if violations else Verdict.HOLDS
    if violations:
        detail = f"{violations} violations. {detail}"
    return Finding(claim, verdict, trials, violations, worst, detail, data=data)
