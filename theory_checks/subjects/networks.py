"""Wrong certificates (C7) and wrong compositions of layers (C18), for `known_bad`."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sipp_bench import bounds
from theory_checks.certificate.certify import Certificate, certify
from theory_checks.certificate.rules import RULES, Bounds, Rule


def _wrong_rule(rule: Rule, *names: str) -> Any:
    return partial(certify, rules=RULES | dict.fromkeys(names, rule))


def _forgetful(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return RULES["linear"](run, func, (args[0].clone(), *args[1:]), kwargs)


def _dense_weights(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """|W| e for |What| e: too small where a weight grew."""
    named = dict(zip(("input", "weight"), args, strict=False)) | kwargs
    x, weight = named["input"], named["weight"].double().abs()
    new: Tensor = _forgetful(run, func, args, kwargs)  # |(What - W) a| alone
    spread: Tensor = func(run.error(x), weight, None, *args[3:])
    return new + spread


def _larger(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return torch.maximum(run.error(args[0]), run.error(args[1]))


def _passed_by(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return run.error(args[0]).clone()


def _runner_up_only(model: nn.Module, pruned: nn.Module, points: Tensor) -> Certificate:
    certificate = certify(model, pruned, points)
    y, classes = certificate.output.topk(2, dim=1)
    return replace(certificate, certified=y[:, 0] - y[:, 1] > certificate.error.gather(1, classes).sum(1))


CERTIFICATES: dict[str, dict[str, Any]] = {
    "certificate: errors of earlier layers forgotten": {
        "certify": _wrong_rule(_forgetful, "linear", "conv1d", "conv2d", "conv3d")
    },
    "certificate: residual takes the larger": {"certify": _wrong_rule(_larger, "add")},
    "certificate: batch-norm passed by": {"certify": _wrong_rule(_passed_by, "batch_norm")},
    "certificate: dense weights for the pruned": {
        "certify": _wrong_rule(_dense_weights, "linear", "conv1d", "conv2d", "conv3d")
    },
    "certificate: runner-up only": {"certify": _runner_up_only},
}

COMPOSITIONS: dict[str, dict[str, Any]] = {
    "composition without cancellation": {"compose": lambda factor, xi, eps: bounds.composed_error(1.0, xi, eps)},
    "composition of the inputs' error alone": {"compose": lambda factor, xi, eps: bounds.composed_error(factor, xi, 0)},
    "composition without the product": {"compose": lambda factor, xi, eps: factor * (xi + eps)},
}
