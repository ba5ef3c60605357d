"""Points of several tensors: masks are inputs and not labels, nothing is guessed, and padding can be left out."""

import re
from collections import UserDict
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from samples import build, signed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sipp_bench as sb
from sipp_bench.compression.honoured import block_errors, bound_problems
from sipp_bench.errors import OptionError, PointsError
from sipp_bench.network.points import PointSet, changes_when_repeated, gather

IDS = torch.arange(30).reshape(6, 5) % 7
MASK = (torch.arange(5) < torch.tensor([5, 3, 4, 1, 2, 5])[:, None]).long()


class Tagger(nn.Module):
    """Attention over tokens that the mask marks, then two linear layers at each token and one on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.outer, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.table(ids)
        padding = None if attention_mask is None else attention_mask == 0
        hidden = hidden + self.attention(hidden, hidden, hidden, key_padding_mask=padding)[0]
        hidden = self.outer(F.gelu(self.inner(hidden)))
        weights = torch.ones_like(ids) if attention_mask is None else attention_mask
        logits: Tensor = self.head((hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True))
        return logits


def same(one: sb.Sensitivity, other: sb.Sensitivity) -> bool:
    return set(one) == set(other) and all(
        torch.allclose(one[name].values, other[name].values, rtol=1e-5, atol=0) for name in one
    )


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


NAMED = [{"ids": i, "attention_mask": m} for i, m in zip(IDS, MASK, strict=True)]
BY_NAME: dict[str, Any] = {
    "dict": {"ids": IDS, "attention_mask": MASK},
    "dict with labels": {"ids": IDS, "attention_mask": MASK, "labels": torch.zeros(6)},
    "dict of arrays": {"ids": IDS.numpy(), "attention_mask": MASK.numpy()},
    "tokenizer output": UserDict({"ids": IDS, "attention_mask": MASK}),
    "loader of dicts": DataLoader(Items(*NAMED), batch_size=4),
    "pairs of dict and label": Items(*[(item, 0) for item in NAMED]),
    "pairs of tuple and label": Items(*[((i, m), 0) for i, m in zip(IDS, MASK, strict=True)]),
}


@pytest.mark.parametrize("form", BY_NAME)
@pytest.mark.parametrize("memory", [None, 2**22])
def test_every_form_of_several_inputs_reaches_the_network(form: str, memory: int | None) -> None:
    network = build(Tagger)
    expected = sb.measure_sensitivity(network, (IDS, MASK), labelled=False)
    found = sb.measure_sensitivity(network, BY_NAME[form], memory=memory, batch_size=4)
    assert same(found, expected)
    assert found.num_points == 6
    assert not same(found, sb.measure_sensitivity(network, IDS)), "the mask matters to this network"


def test_a_second_tensor_is_a_label_only_where_it_can_be_nothing_else_or_the_user_says_so() -> None:
    network = build(Tagger)
    masked, alone = (sb.measure_sensitivity(network, points, labelled=False) for points in ((IDS, MASK), IDS))
    labels = torch.zeros(6, dtype=torch.int64)
    for pairs in ((IDS, MASK), TensorDataset(IDS, MASK), DataLoader(TensorDataset(IDS, MASK), batch_size=4)):
        for ask in (sb.measure_sensitivity, sb.fit, lambda *given: sb.fit(*given, method="wanda")):
            with pytest.raises(PointsError, match=r"Tagger could take more than one.*labelled=True.*labelled=False"):
                ask(network, pairs)
        assert same(sb.measure_sensitivity(network, pairs, labelled=False), masked)
        assert same(sb.measure_sensitivity(network, PointSet(pairs, labelled=False)), masked)
        assert same(sb.measure_sensitivity(network, pairs, labelled=True), alone)
    assert same(sb.measure_sensitivity(network, (IDS, MASK, labels), labelled=True), masked)
    one = nn.Sequential(nn.Linear(5, 3))
    x = signed(6, 5)
    assert same(sb.measure_sensitivity(one, (x, labels)), sb.measure_sensitivity(one, x))
    compiled: Any = torch.compile(one, backend="eager")
    assert sb.measure_sensitivity(compiled, (x, labels)).num_points == 6
    with pytest.raises(PointsError, match="cannot process"):
        sb.measure_sensitivity(one, (x, labels), labelled=False)
    for bad in ("yes", 1):
        with pytest.raises(OptionError, match="labelled is True, False or None"):
            sb.measure_sensitivity(one, x, labelled=bad)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(OptionError, match="already"):
        sb.fit(one, PointSet(x, labelled=True), labelled=True)


def test_snip_reads_the_labels_of_tuples_that_say_which_they_are() -> None:
    network, labels = build(Tagger), torch.tensor([0, 1, 2, 0, 1, 2])
    given = sb.fit(network, {"ids": IDS, "attention_mask": MASK}, "snip", labels=labels).observation.scores
    own = sb.fit(network, (IDS, MASK, labels), "snip", labelled=True).observation.scores
    assert all(torch.equal(given[name], own[name]) for name in given)


def test_positions_leave_padding_out_by_hand() -> None:
    """A layer on tokens (N, L, n) is measured as if only the marked tokens had been given, one by one."""
    layer, x = build(lambda: nn.Linear(20, 3)), signed(6, 5, 20)
    x[MASK == 0] *= 100  # what padding holds must not matter

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            result: Tensor = self.layer(x)
            return result

    points, real = (x, MASK), x[MASK != 0]
    expected = oracle.sensitivity(layer.weight, oracle.array(real)[:, None, None])
    for where in (1, lambda inputs: inputs[1] > 0):
        found = sb.measure_sensitivity(Tokens(), points, labelled=False, positions=where, batch_size=4)["layer.weight"]
        np.testing.assert_allclose(found.values.numpy(), expected.values, rtol=1e-5)
        assert np.array_equal(found.active.numpy(), expected.active)
        assert found.num_patches == int(MASK.sum()) == len(real)
    named = sb.measure_sensitivity(Tokens(), {"x": x, "mask": MASK}, positions="mask")["layer.weight"]
    np.testing.assert_allclose(named.values.numpy(), expected.values, rtol=1e-5)
    wanda = sb.fit(Tokens(), points, "wanda", labelled=False, positions=1).observation.scores["layer.weight"]
    torch.testing.assert_close(wanda, layer.weight.detach().abs() * real.square().sum(0).sqrt())
    everything = sb.measure_sensitivity(Tokens(), points, labelled=False)["layer.weight"].values
    assert bool((named.values < everything - 0.01).any())


def test_positions_reach_attention_and_leave_pooled_inputs_alone() -> None:
    network = build(Tagger)
    points = PointSet({"ids": IDS, "attention_mask": MASK}, positions="attention_mask")
    found = sb.measure_sensitivity(network, points)
    with torch.no_grad():
        hidden = network.table(IDS)
    expected = oracle.sensitivity(network.attention.in_proj_weight, oracle.array(hidden[MASK != 0])[:, None, None])
    np.testing.assert_allclose(found["attention.in_proj_weight"].values.numpy(), expected.values, rtol=1e-5)
    assert {name: layer.num_patches for name, layer in found.items()} == {
        "attention.in_proj_weight": 20, "attention.out_proj.weight": 20, "inner.weight": 20, "outer.weight": 20,
        "head.weight": 6,
    }  # fmt: skip
    # What points on one sequence each give, without its padding, is the same: padding reaches nothing that counts.
    alone = [IDS[i : i + 1, : int(MASK[i].sum())] for i in range(6)]
    merged = sb.measure_sensitivity(network, alone[0])
    for ids in alone[1:]:
        merged = merged.merge(sb.measure_sensitivity(network, ids))
    for name, layer in merged.items():
        torch.testing.assert_close(found[name].values, layer.values, rtol=1e-4, atol=1e-7)


def test_bounds_with_positions_hold_at_the_marked_ones_and_need_not_elsewhere() -> None:
    network, named = build(Tagger), {"ids": IDS, "attention_mask": MASK}
    points = PointSet(named, positions="attention_mask")
    for weights in ("uniform", "downstream"):
        pruned = sb.fit(network, points, "sipp-det", weights=weights).prune(0.7)
        assert not [problem for problem in bound_problems(network, pruned, points) if "breaks" in problem]
    assert pruned.guarantee is not None
    broken = [
        (errors.largest > pruned.guarantee.epsilon[name] * (1 + 1e-5) + 1e-6).any()
        for name, errors in block_errors(network, pruned.model, named, pruned.masks).items()
    ]
    assert any(broken)


def test_positions_that_cannot_be_are_refused() -> None:
    network, named = build(Tagger), {"ids": IDS, "attention_mask": MASK}
    bad: dict[str, Any] = {
        "positions='mask' is none of the network's inputs, which are ['ids', 'attention_mask']": "mask",
        "each of 6 points, (N, L); it gave (6,)": lambda inputs: inputs["ids"][:, 0],
        "it gave (2, 5)": lambda inputs: inputs["attention_mask"][:2],
        "it gave list": lambda inputs: [1],
    }
    for sentence, positions in bad.items():
        with pytest.raises(PointsError, match=re.escape(sentence)):
            sb.measure_sensitivity(network, named, positions=positions)
    with pytest.raises(PointsError, match=r"are \[0, 1\]"):
        sb.measure_sensitivity(network, (IDS, MASK), labelled=False, positions=2)
    with pytest.raises(OptionError, match="derive_outputs"):
        sb.measure_sensitivity(network, named, positions="attention_mask", derive_outputs=True)


def test_gather_gives_all_points_as_one_batch() -> None:
    network = build(Tagger)
    for form, points in BY_NAME.items():
        found = gather(points, network, batch_size=4)
        tensors = list(found.values()) if not isinstance(found, tuple | Tensor) else list(found)
        assert torch.equal(tensors[0], IDS), form
        assert torch.equal(tensors[1], MASK), form
    ragged = DataLoader(Items(torch.ones(3), torch.ones(2)), batch_size=1)
    with pytest.raises(PointsError, match="do not all have the same shape"):
        gather(ragged, nn.Linear(3, 2))


def test_networks_that_are_random_in_eval_mode_are_noticed() -> None:
    class Random(nn.Module):
        def __init__(self, tiny: float) -> None:
            super().__init__()
            self.layer, self.tiny = nn.Linear(4, 3), tiny

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(x) + self.tiny * torch.rand(len(x), 3)}

    x = signed(6, 4)
    assert changes_when_repeated(Random(0.1), x)
    assert not changes_when_repeated(Random(1e-7), x)
    assert not changes_when_repeated(build(Tagger).eval(), (IDS, MASK))
    assert changes_when_repeated(nn.Dropout(), x)
