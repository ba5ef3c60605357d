"""Seeds: 32 bits everywhere, sub-seeds by one function, and controls that are not what they control."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import build, signed, small_network
from torch import nn
from typer.testing import CliRunner

import sipp_bench
import sipp_bench as sb
import theory_checks
from sipp_bench.bench import measuring, protocols
from sipp_bench.bench.suite import parse_suite
from sipp_bench.cli import commands as cli
from sipp_bench.compression import masks
from sipp_bench.compression.changes import Masked
from sipp_bench.errors import ModelError, OptionError, SuiteError
from sipp_bench.machine.seeds import derived_seed, generator, require_seed
from sipp_bench.measures.corruptions import corrupt
from sipp_bench.measures.random_splits import random_splits
from sipp_bench.network.controls import require_other
from sipp_bench.zoo import data, models, training
from sipp_bench.zoo.training import Recipe
from theory_checks import verify

SUITE = """
name = "seeded"
seeds = [{seed}]
keep = [0.5]
[[target]]
network = "lenet-300-100"
data = "digits"
[[method]]
name = "magnitude"
"""


def test_torch_reads_32_bits_of_a_seed() -> None:
    """Why larger ones are refused: they are other names for the same draws."""
    one, other = (torch.Generator().manual_seed(seed) for seed in (7, 7 + 2**32))
    assert torch.equal(torch.rand(9, generator=one), torch.rand(9, generator=other))


def test_a_derived_seed_by_hand() -> None:
    assert hashlib.sha256(b"twin 0").hexdigest().startswith("ec4a280bc84706")
    assert derived_seed(0, "twin") == 0x0BC84706
    assert torch.equal(torch.rand(3, generator=generator(5)), torch.rand(3, generator=generator(5)))


def test_derived_seeds_have_32_bits_and_do_not_meet() -> None:
    purposes = ("twin", "C11, set of draws 1", "C11, set of draws 11", "step 1 of a cascade", "false alarms")
    found = [derived_seed(seed, purpose) for seed, purpose in itertools.product(range(400), purposes)]
    assert all(0 <= seed < 2**32 for seed in found)
    assert max(found) > 2**31 > min(found)
    # 2,000 draws from 2**32 have a pair with probability 5e-4; these are fixed, and have none.
    assert len({*found, *range(400)}) == len(found) + 400


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, True, 1.0, "0", None, np.float32(1)])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(OptionError, match=r"draw is a whole number from 0 to 4294967295, not .*32 bits"):
        require_seed(seed, "draw")


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.uint32(2**32 - 1), np.int64(3)])
def test_seeds_of_32_bits_are_taken(seed: Any) -> None:
    assert type(require_seed(seed)) is int
    assert require_seed(seed) == int(seed)


def _train(seed: int) -> None:
    training.train(nn.Linear(2, 2), torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), Recipe(1, 2, 0.1), seed)


X = signed(4, 2, 6, 6)
TAKERS: dict[str, Callable[[int], Any]] = {
    "prune": lambda seed: sb.prune(build(small_network).eval(), X, method="random", keep=0.5, seed=seed),
    "load": lambda seed: data.load("digits", seed),
    "build": lambda seed: models.build("lenet-5", (1, 28, 28), seed=seed),
    "train": _train,
    "corrupt": lambda seed: corrupt(torch.full((1, 1, 4, 4), 0.5), "gaussian_noise", 1, seed),
    "random splits": lambda seed: next(random_splits({"a": 4, "b": 4}, 3, 1, seed)),
    "control": lambda seed: masks.random_control(
        sb.prune(build(small_network).eval(), X, method="magnitude", keep=0.5), build(small_network), seed
    ),
    "points": lambda seed: measuring._draw(data.load("digits").points, 3, seed),
    "verify": lambda seed: verify(build(small_network).eval(), X, X + 1, claims=["C12"], seed=seed),
}


@pytest.mark.parametrize("name", TAKERS)
def test_whatever_takes_a_seed_refuses_more_than_32_bits(name: str) -> None:
    TAKERS[name](2**32 - 1)
    for seed in (2**32, -1):
        with pytest.raises(OptionError, match=f"whole number from 0 to 4294967295, not {seed}"):
            TAKERS[name](seed)


def test_suites_and_the_command_line_refuse_more_than_32_bits(tmp_path: Path) -> None:
    parse_suite(SUITE.format(seed=2**32 - 1), "mine.toml")
    with pytest.raises(SuiteError, match="4294967295"):
        parse_suite(SUITE.format(seed=2**32), "mine.toml")
    np.save(tmp_path / "x.npy", np.ones((2, 1, 28, 28), np.float32))
    command = ["prune", "--model", "lenet-300-100", "--points", str(tmp_path / "x.npy"), "--method", "random"]
    command += ["--keep", "0.5", "-o", str(tmp_path / "out.pt"), "--seed", str(2**32)]
    result = CliRunner().invoke(cli.app, command)
    assert isinstance(result.exception, OptionError)
    assert not (tmp_path / "out.pt").exists()


def test_generators_are_seeded_and_seeds_derived_in_one_place() -> None:
    """Elsewhere a seed could pass that is not one, or be made of another by adding to it."""
    suspicious = re.compile(r"torch\.\S*manual_seed\(\w*seed|\bseed\s*[+*]\s|[+*]\s*(\w+\.)*seed\b|seed=\S+\s[+*]")
    packages = [Path(module.__file__).parent for module in (sipp_bench, theory_checks)]
    found = {file.name: suspicious.findall(file.read_text()) for folder in packages for file in folder.rglob("*.py")}
    assert set(filter(found.get, found)) == {
        "seeds.py",
        "models.py",  # what draws from the global generator
        "strategies.py",  # seeds of cases below 2**31
    }


def test_a_control_with_the_same_weights_is_refused() -> None:
    one, other = build(small_network, 0), build(small_network, 1)
    require_other(other, one, "The twin")
    with pytest.raises(ModelError, match=r"The twin has the very weights .* in 0\.weight, 2\.weight, 6\.weight, 8\.we"):
        require_other(build(small_network, 0), one, "The twin")
    with torch.no_grad():
        other[6].weight.copy_(one[6].weight)
    with pytest.raises(ModelError, match=r"in 6\.weight:"):
        require_other(other, one, "The twin")
    require_other(other, one, "The twin", {"0.weight"})


def test_the_random_control_has_other_masks_or_is_none() -> None:
    network = build(small_network).eval()
    pruned = sb.prune(network, X, method="magnitude", keep=0.5)
    control = masks.random_control(pruned, network, 0)
    assert control is not None
    for name, mask in pruned.masks.items():
        assert int(mask.sum()) == int(control.masks[name].sum())
        kept = dict(control.model.named_parameters())[name] != 0
        assert torch.equal(kept, control.masks[name]), "its own masks are on its weights"
    assert not torch.equal(control.masks["6.weight"], pruned.masks["6.weight"])
    for keep in (0, 1):
        whole = sb.prune(network, X, method="magnitude", keep=keep)
        assert masks.random_control(whole, network, 0) is None, "there is one such subnetwork only"


def test_a_random_control_that_is_not_random_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(small_network).eval()
    pruned = sb.prune(network, X, method="magnitude", keep=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
        with pytest.raises(ModelError, match="The random subnetwork has the very weights"):
            masks.random_control(pruned, network, 0)
    # The right masks, but the wrong ones on the network.
    on = sb.Pruned.on

    def elsewhere(self: sb.Pruned, model: nn.Module) -> sb.Pruned:
        applied = on(pruned, model)
        kept = {name: Masked(change.weight, self.masks[name]) for name, change in applied.changes.items()}
        return dataclasses.replace(applied, changes=kept)

    monkeypatch.setattr(sb.Pruned, "on", elsewhere)
    with pytest.raises(ModelError, match="The random subnetwork has the very weights"):
        masks.random_control(pruned, network, 0)


def test_each_step_of_a_cascade_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that a step prunes follows from the earlier steps' draws; its own must not be those again."""
    prune, asked = sb.Fitted.prune, []

    def noted(self: sb.Fitted, keep: float, seed: int = 0) -> sb.Pruned:
        asked.append((keep, seed))
        return prune(self, keep, seed)

    monkeypatch.setattr(sb.Fitted, "prune", noted)
    monkeypatch.setattr(protocols, "retrained", lambda pruned, *_: pruned)
    network = build(small_network).eval()

    def fit(model: nn.Module) -> sb.Fitted:
        return sb.fit(model, X, "random")

    part = data.load("digits").train
    task = protocols.Task(fit(network), fit, lambda epoch: network, part, Recipe(1, 9, 0.1), 0.1, 5, (0.5, 0.2, 0.1))
    protocols.make_protocol("cascade", steps="suite").run(task)
    assert [keep for keep, _ in asked] == [0.5, 0.2, 0.1]
    assert asked[0][1] == 5, "the first one as without a cascade"
    assert len({seed for _, seed in asked}) == 3
    # A chain that goes on from another cell's network draws as one that went all the way.
    whole, asked[:] = list(asked), []
    for keep in (0.5, 0.1):
        protocols.make_protocol("cascade", steps="suite").run(dataclasses.replace(task, keep=keep))
    assert asked == whole
