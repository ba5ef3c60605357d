"""The implementation under test, piece by piece: what the claims speak of, as functions that can be exchanged.

`REFERENCE` is sipp-bench itself, by the very code that prunes networks. `known_bad` holds subjects with one piece
wrong on purpose; every one of them must be rejected by some claim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sipp_bench
from sipp_bench import bounds
from sipp_bench.methods.allocation import allocate, allocate_whole
from sipp_bench.methods.sampling import BlockSampler, reweighted
from sipp_bench.methods.sipp import split_delta
from sipp_bench.sensitivity.measure import Sensitivity, measure_sensitivity
from theory_checks.certificate.certify import Certify, certify


def draw_block(s: Tensor, w: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    """SiPPRand on one block: w after `draws` draws, reweighted. s, w: (n,), one sign; the code path of `sipp-rand`."""
    positive = (w > 0)[None]
    sampler = BlockSampler(s[None], positive, torch.ones_like(positive))
    counts = torch.full((1, 2), draws) * (sampler.totals > 0)
    return reweighted(sampler, w[None], counts.long(), rng)[0]


def use_fresh(sample: Tensor, fresh: Tensor) -> Tensor:
    """Which points stand for fresh ones: the fresh ones."""
    return fresh


@dataclass(frozen=True)
class Subject:
    """One implementation of SiPP.

    sensitivity: (model, points) -> Sensitivity (C1, C2, C8, C14). drop_epsilon: sensitivities of dropped weights ->
    bound (C2). recombine: (eps, plus, minus) -> bound on |yhat - y| (C4). draw: (s, w, m, rng) -> pruned block (C9).
    draw_epsilon: (T, m, delta) -> bound (C10). split_delta: (delta, count) -> delta of each (C11). mixture_epsilon:
    (T_R, m - k, delta) -> bound (C13). allocate, allocate_whole: totals, caps, budget -> draws (C5). draws_for: (T,
    eps, delta) -> m, distinct: (q, m) -> expected distinct weights (C6). fresh: (S, fresh points) -> the points taken
    for fresh (C14, C16, C17). conformal: (scores, alpha) -> quantile (C16, C17). wilks: (n, delta) ->
    rate (C14). fit: (model, points, method, **options) -> something that prunes, a whole method (C9, C11-C13).
    certify: (model, pruned model, points) -> Certificate (C7). compose: (Delta, xi, eps) -> xi' of the layer (C18).
    shrink: a factor on every bound, 1 for a sound implementation; power curves lower it.
    """

    name: str = "sipp-bench"
    sensitivity: Callable[[nn.Module, Tensor], Sensitivity] = measure_sensitivity
    drop_epsilon: Callable[[Tensor], float] = bounds.deterministic_epsilon
    recombine: Callable[[Any, Any, Any], Any] = bounds.recombined_error
    draw: Callable[[Tensor, Tensor, int, np.random.Generator], Tensor] = draw_block
    draw_epsilon: Callable[[Any, Any, Any], Any] = bounds.bernstein_epsilon
    split_delta: Callable[[float, int], float] = split_delta
    mixture_epsilon: Callable[[Any, Any, Any], Any] = bounds.mixture_epsilon
    allocate: Callable[..., Any] = allocate
    allocate_whole: Callable[..., Any] = allocate_whole
    draws_for: Callable[[Any, Any, Any], Any] = bounds.bernstein_draws
    distinct: Callable[[Any, Any], Any] = bounds.expected_distinct
    fresh: Callable[[Tensor, Tensor], Tensor] = use_fresh
    conformal: Callable[[Any, float], float] = bounds.conformal_quantile
    wilks: Callable[[int, float], float] = bounds.wilks_rate
    fit: Callable[..., Any] = sipp_bench.fit
    certify: Certify = certify
    compose: Callable[[Any, Any, Any], Any] = bounds.composed_error
    shrink: float = 1.0


REFERENCE = Subject()
