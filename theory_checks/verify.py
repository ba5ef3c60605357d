"""Point the claims at a trained network: prune it, try to falsify, and say which bounds say anything at all."""

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from sipp_bench.errors import OptionError, PointsError, SippBenchError
from sipp_bench.machine.seeds import require_seed
from sipp_bench.methods import make_method
from sipp_bench.methods.protocol import Method
from sipp_bench.network.points import Points
from sipp_bench.store.records import to_json
from theory_checks.claims import QUICK, Effort, Finding, Verdict
from theory_checks.claims import claims as synthetic_claims
from theory_checks.on_network import draws as network_draws
from theory_checks.on_network import fresh as network_fresh
from theory_checks.on_network import identities as network_identities
from theory_checks.on_network import report as verdict_table
from theory_checks.on_network import vacuity
from theory_checks.on_network.audit import shared_points
from theory_checks.on_network.context import Cell, Context, NotApplicable, check_keeps
from theory_checks.on_network.held import Held
from theory_checks.subjects.subject import REFERENCE

# What is checked once a network, and what once a keep ratio; each returns one finding or says why it has none.
ONCE: dict[str, Callable[[Context], Finding]] = {
    "C1": network_identities.check_laws,
    "C14": network_fresh.check_fresh_rates,
    "C15": network_fresh.check_assumption,
}
EACH_KEEP: dict[str, Callable[[Cell], Finding]] = {
    "C2": network_identities.check_dropping,
    "C4": network_identities.check_recombination,
    "C7": network_identities.check_certificate,
    "C8": network_identities.check_attainment,
    "C9": network_draws.check_mean,
    "C10": network_draws.check_rates,
    "C11": network_draws.check_together,
    "C12": network_identities.check_hybrid,
    "C13": network_draws.check_mixture,
    "C16": network_fresh.check_conformal_factor,
    "C17": network_fresh.check_split_conformal,
    "C18": network_fresh.check_composition,
}


@dataclass(frozen=True)
class Report:
    """What `verify` found. Verdicts are those of THEORY section 5 and never merged.

    findings: one a claim and keep ratio (`data["keep"]`), then those on synthetic cases (`data["synthetic"]`).
    skipped: claims that say nothing here, each with the reason; with "error", the traceback, where the check itself
    broke down, which is a bug of this project and never ok. disagreement: per keep ratio, how often predictions
    differ on fresh points. vacuity: what the bounds would need, and what each factor costs. settings: what was asked.
    """

    findings: tuple[Finding, ...]
    skipped: tuple[Mapping[str, Any], ...]
    disagreement: tuple[Mapping[str, Any], ...]
    vacuity: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Nothing is falsified, something was checked that could have failed, and no check broke down."""
        verdicts = [finding.verdict for finding in self.findings]
        broken = any("error" in entry for entry in self.skipped)
        return not broken and Verdict.FALSIFIED not in verdicts and any(verdict.passed for verdict in verdicts)

    def to_json(self) -> str:
        """Everything, as JSON text."""
        return to_json(
            {
                "settings": self.settings,
                "ok": self.ok,
                "disagreement": self.disagreement,
                "vacuity": self.vacuity,
                "findings": [verdict_table.as_record(finding) for finding in self.findings],
                "skipped": self.skipped,
            }
        )

    def to_text(self) -> str:
        """Tables for a terminal."""
        return verdict_table.to_text(self)

    def to_html(self) -> str:
        """An HTML <section>, everything in it escaped."""
        return verdict_table.to_html(self)

    def __str__(self) -> str:
        return self.to_text()


def verify(
    model: nn.Module,
    points: Points,
    fresh_points: Points,
    *,
    claims: Iterable[str] | None = None,
    method: str = "sipp-hybrid",
    keep: float | Sequence[float] = 0.2,
    delta: float = 0.05,
    alpha: float = 0.05,
    seed: int = 0,
    effort: Effort = QUICK,
    draws: int | None = None,
    synthetic: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Report:
    """Try to falsify the claims of THEORY.md on this network, pruned by this method. The network is not changed.

    points: S, what the method looks at; fresh_points: others from the same source, in neither S nor the training. Both
    are taken for random samples: the first rows of data that is sorted by class are none.
    claims: such as ("C2", "C7"); default all that speak of networks. keep: one keep ratio or several. delta: failure
    probability of the sampling bounds. alpha: of the intervals that are printed (1 - alpha is their confidence); what
    falsifies is decided at `effort.level`, far stricter. draws: whole-network draw sets for claim C11 (default 20 or,
    with more effort, 200). synthetic: run the claims' own cases as well (a minute or two). options: of the method.
    progress: show the checks that are done and the time left.
    Raises OptionError for what is unknown or out of range; PointsError and ModelError as `sipp_bench.fit` does, and
    ModelError for a network that is random in eval mode. What one claim's check cannot do here is said in `skipped`.
    """
    asked = _asked(claims, synthetic)
    keeps, seed = check_keeps(keep), require_seed(seed)
    for name, level in (("delta", delta), ("alpha", alpha)):
        if not 0 < level < 1:
            raise OptionError(f"{name} must be above 0 and below 1, not {level}.")
    if draws is not None and draws < 1:
        raise OptionError(f"draws is a number of draw sets, at least 1, not {draws}.")
    chosen = _with_delta(make_method(method, **(options or {})), delta, options or {})
    context = Context(
        model, Held.of(points, model), Held.of(fresh_points, model), method, chosen.options(),
        getattr(chosen, "delta", delta), alpha, seed, effort, draws or (200 if effort.trials > QUICK.trials else 20),
    )  # fmt: skip
    reused = _reused(context)
    checks: list[tuple[str, float | None, Callable[[], Finding]]] = []
    checks += [(number, None, partial(once, context)) for number, once in ONCE.items() if number in asked]
    for each in keeps:
        cell = context.cell(each)
        checks += [(number, each, partial(of_cell, cell)) for number, of_cell in EACH_KEEP.items() if number in asked]
    findings: list[Finding] = []
    skipped: list[dict[str, Any]] = []
    with tqdm(total=len(checks) + 2, desc="verify", unit="check", disable=not progress) as bar:
        bar.set_postfix_str("looking at the points")
        context.prepare()
        bar.update()
        for number, keep_ratio, check in checks:
            bar.set_postfix_str(number if keep_ratio is None else f"{number} at keep {keep_ratio:g}")
            _record(number, check, keep_ratio, findings, skipped)
            bar.update()
        findings.sort(key=lambda finding: int(finding.claim[1:]))
        bar.set_postfix_str("what the bounds say")
        if synthetic:
            findings += [_synthetic(number, effort, seed) for number in synthetic_claims() if number in asked]
        disagreement, vacuous = _disagreement(context, keeps), _vacuity(context, keeps)
        bar.update()
    return Report(tuple(findings), tuple(skipped), disagreement, vacuous, {
        "network": type(model).__name__, "weights": context.pruned(keeps[0]).weights, "method": method,
        "options": dict(chosen.options()), "keep": list(keeps), "delta": context.delta, "alpha": alpha, "seed": seed,
        "points": len(context.points), "fresh_points": len(context.fresh), "fresh_points_in_S": reused,
        "effort": effort.name, "level": effort.level, "claims": sorted(asked, key=lambda number: int(number[1:])),
        "dense_weights": dict(context.fitted.skipped),
    })  # fmt: skip


def _asked(claims: Iterable[str] | None, synthetic: bool) -> set[str]:
    known = {*ONCE, *EACH_KEEP, *(synthetic_claims() if synthetic else ())}
    if claims is None:
        return known
    asked = {claims} if isinstance(claims, str) else set(claims)
    if unknown := sorted(asked - known):
        listed = ", ".join(sorted(known, key=lambda number: int(number[1:])))
        more = "" if synthetic else " The others are checked on synthetic cases: ask for those too."
        raise OptionError(f"There is no claim {unknown[0]!r} about a network. There are {listed}.{more}")
    if not asked:
        raise OptionError("Name at least one claim.")
    return asked


def _with_delta(method: Method, delta: float, options: Mapping[str, Any]) -> Method:
    """The method with this delta, unless it has none or its own was given."""
    if "delta" in options or "delta" not in method.options():
        return method
    return type(method)(**(method.options() | {"delta": delta}))


def _reused(context: Context) -> int:
    """How many fresh points are in S. Raises PointsError if they all are."""
    count = shared_points(context.points, context.fresh)
    if count == len(context.fresh):
        raise PointsError(
            "All fresh points are among those that the method looks at: nothing can be said about others."
        )
    return count


def _record(
    number: str,
    check: Callable[[], Finding],
    keep: float | None,
    findings: list[Finding],
    skipped: list[dict[str, Any]],
) -> None:
    """A finding, or why there is none: the claim does not speak of this, or the check refuses it, or breaks down."""
    try:
        with torch.no_grad():
            findings.append(check())
    except (NotApplicable, SippBenchError) as reason:
        skipped.append({"claim": number, "keep": keep, "reason": str(reason)})
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # not to lose what the others found
        why = f"its check broke down ({type(error).__name__}: {error}): a bug of this project, please report it"
        skipped.append({"claim": number, "keep": keep, "reason": why, "error": traceback.format_exc()})


def _synthetic(number: str, effort: Effort, seed: int) -> Finding:
    finding = synthetic_claims()[number].check(REFERENCE, effort, seed)
    return replace(finding, data={**finding.data, "synthetic": True})


def _disagreement(context: Context, keeps: Sequence[float]) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(network_fresh.disagreement(context.cell(keep)) for keep in keeps)
    except NotApplicable:
        return ()


def _vacuity(context: Context, keeps: Sequence[float]) -> Mapping[str, Any]:
    with torch.no_grad():
        cells = [context.cell(keep) for keep in keeps]
        return {
            "draws_needed": vacuity.draws_needed(context),
            "telling_blocks": [row for cell in cells for row in vacuity.telling_blocks(cell)],
            "smallest_keeps": vacuity.smallest_keeps(context),
            "decomposition": [row for cell in cells for row in vacuity.decomposition(cell)],
        }
