"""Every use of a weight is seen: its rows as a linear map are measured, and whatever else is done keeps it dense."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from samples import build, signed
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sipp_bench as sb
from sipp_bench.errors import ModelError

X = signed(6, 5, 8)
Apply = Callable[[Any, Tensor], Tensor]


class Uses(nn.Module):
    """A weight (8, 8) used by functions one after another, before a layer that can always be pruned."""

    def __init__(self, *uses: Apply) -> None:
        super().__init__()
        self.w, self.uses, self.other = nn.Parameter(signed(8, 8, seed=3)), uses, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for use in self.uses:
            x = use(self.w, x)
        y: Tensor = self.other(x)
        return y


BY_ROWS: dict[str, Apply] = {
    "linear": lambda w, x: F.linear(x, w),
    "t": lambda w, x: x @ w.t(),
    "T": lambda w, x: x @ w.T,
    "mT": lambda w, x: torch.matmul(x, w.mT),
    "transpose": lambda w, x: x.matmul(w.transpose(0, 1)),
    "permute": lambda w, x: x @ w.permute(1, 0),
    "detached": lambda w, x: F.linear(x, w.detach()),
    "rows in two parts": lambda w, x: torch.cat([F.linear(x, w[:3]), F.linear(x, w[3:])], -1),
    "rows in chunks": lambda w, x: torch.cat([x @ part.t() for part in w.chunk(2)], -1),
    "from the left": lambda w, x: (w @ x.transpose(1, 2)).transpose(1, 2),
    "mv": lambda w, x: torch.stack([torch.mv(w, token) for token in x.flatten(0, 1)]).unflatten(0, (6, 5)),
    "mm": lambda w, x: torch.mm(x.flatten(0, 1), w.t()).unflatten(0, (6, 5)),
    "addmm": lambda w, x: torch.addmm(torch.zeros(8), x.flatten(0, 1), w.t()).unflatten(0, (6, 5)),
    "einsum": lambda w, x: torch.einsum("oi,nli->nlo", w, x),
    "einsum, other orders": lambda w, x: torch.einsum("nli,oi->oln", x, w).permute(2, 1, 0),
    "einsum of the transpose": lambda w, x: torch.einsum("nli, io -> nlo", x, w.t()),
    "shape and type": lambda w, x: F.linear(x + torch.zeros_like(w)[0] + w.shape[0] - w.size(0), w),
}


@pytest.mark.parametrize("spelling", BY_ROWS)
def test_every_way_to_apply_rows_is_the_linear_layer(spelling: str) -> None:
    network, layer = (build(lambda use=BY_ROWS[name]: Uses(use)) for name in (spelling, "linear"))  # type: ignore[misc]
    found, expected = (sb.measure_sensitivity(net, X) for net in (network, layer))
    assert not found.skipped
    assert torch.equal(found["w"].active, expected["w"].active)
    torch.testing.assert_close(found["w"].values, expected["w"].values, rtol=1e-5, atol=0)
    one, other = (sb.fit(net, X, "wanda").observation.scores["w"] for net in (network, layer))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(network(X), layer(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spelling", ["t", "mT", "einsum", "from the left", "einsum, other orders"])
def test_gradients_reach_what_is_applied_by_another_spelling(spelling: str) -> None:
    """What an observer puts in the place of an output has the layout of the layer's, whatever the network's is."""
    last: Apply = lambda w, x: x.mean(1)  # noqa: E731
    found, expected = (
        sb.fit(build(lambda use=BY_ROWS[name]: Uses(use, last)), X, weights="downstream").observation  # type: ignore[misc]
        for name in (spelling, "linear")
    )
    for name in ("w", "other.weight"):
        one, other = (observation.block_weights[name] for observation in (found, expected))  # type: ignore[attr-defined]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


OTHERWISE: dict[str, tuple[Apply, str]] = {
    "columns": (lambda w, x: x @ w, "columns"),
    "transposed linear": (lambda w, x: F.linear(x, w.t()), "columns"),
    "transposed einsum": (lambda w, x: torch.einsum("nli,io->nlo", x, w), "columns"),
    "left of the transpose": (lambda w, x: (w.t() @ x.transpose(1, 2)).transpose(1, 2), "columns"),
    "some columns": (lambda w, x: F.linear(x[..., :3], w[:, :3]), "used in 'linear'"),
    "every other row": (lambda w, x: F.linear(x, w[::2]).repeat(1, 1, 2), "used in 'linear'"),
    "scaled": (lambda w, x: F.linear(x, w * 2), "used in 'mul'"),
    "copied": (lambda w, x: F.linear(x, w.clone()), "used in 'clone'"),
    "cast": (lambda w, x: F.linear(x.double(), w.double()).float(), "used in 'double'"),
    "looked up": (lambda w, x: x + w[torch.arange(5)], "used in 'getitem'"),
    "embedding": (lambda w, x: x + F.embedding(torch.arange(5), w), "embedding table"),
    "with itself": (lambda w, x: F.linear(x, w @ w), "used in 'matmul'"),
    "alpha": (lambda w, x: torch.addmm(x[0], x[0], w.t(), alpha=2).expand(6, 5, 8), "columns"),
    "summed": (lambda w, x: x + w.sum(), "used in 'sum'"),
    "in a list": (lambda w, x: F.linear(x, torch.cat([w[:4], w[4:]])), "used in 'cat'"),
}


@pytest.mark.parametrize("uses", ["alone", "before", "after"])
@pytest.mark.parametrize("use", OTHERWISE)
def test_any_other_use_keeps_a_weight_dense_even_beside_a_linear_one(use: str, uses: str) -> None:
    apply, reason = OTHERWISE[use]
    linear = BY_ROWS["linear"]
    chosen = {"alone": (apply,), "before": (apply, linear), "after": (linear, apply)}[uses]
    network = build(lambda: Uses(*chosen))
    sens = sb.measure_sensitivity(network, X)
    assert list(sens) == ["other.weight"]
    assert list(sens.skipped) == ["w"]
    assert reason in sens.skipped["w"]
    for method in ("sipp-hybrid", "wanda", "magnitude"):
        pruned = sb.prune(network, X, method=method, keep=0.5)
        assert list(pruned.masks) == ["other.weight"]
        assert torch.equal(pruned.model.get_parameter("w"), network.w)


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.middle(self.encoder(x)), self.encoder.weight.t())


class Lora(nn.Module):
    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.base, self.merged, self.head = nn.Linear(8, 6), merged, nn.Linear(6, 3)
        self.a, self.b = nn.Parameter(signed(2, 8, seed=1)), nn.Parameter(signed(6, 2, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            x = F.linear(x, self.base.weight + self.b @ self.a)
        else:
            x = self.base(x) + x @ self.a.t() @ self.b.t()
        y: Tensor = self.head(x)
        return y


class GraphConv(nn.Module):
    """Neighbours averaged by a buffer, a product of three, and a weight for each of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.eye(5).roll(1, 0) / 2 + torch.eye(5) / 2)
        self.w, self.heads = nn.Parameter(signed(4, 8, seed=1)), nn.Parameter(signed(2, 4, 4, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("mn,bni,oi->bmo", self.get_buffer("edges"), x, self.w)
        return torch.einsum("bno,hop->bhnp", x, self.heads)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Conv1d(5, 6, 3, 2, 1), nn.ConvTranspose1d(6, 5, 2, 2), nn.Conv1d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.cat([x, self.up(self.down(x).relu())], 1))
        return y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 4, batch_first=True, bidirectional=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0][:, -1])
        return y


class Language(nn.Module):
    """A small decoder: the head is the table, positions are a parameter, one layer is applied by its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(9, 8), nn.Parameter(signed(1, 5, 8))
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.columns, self.bias = nn.Parameter(signed(8, 8, seed=4)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.table(x[..., 0].abs().long() % 9) + self.places
        q, k, v = self.qkv(hidden).chunk(3, -1)
        hidden = hidden + self.project(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        hidden = hidden + torch.addmm(self.bias, hidden.flatten(0, 1), self.columns).unflatten(0, hidden.shape[:2])
        return F.linear(hidden, self.table.weight)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.unused = nn.Bilinear(4, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.both(x, x)
        return y


def mobile() -> nn.Module:
    layers = nn.Conv1d(5, 10, 1), nn.BatchNorm1d(10), nn.Hardswish(), nn.Conv1d(10, 10, 3, groups=10)
    return nn.Sequential(*layers, nn.Conv1d(10, 4, 1))


def exported() -> nn.Module:
    return torch.export.export(nn.Sequential(nn.Conv1d(5, 4, 3), nn.Linear(6, 2)).eval(), (X,)).module()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "tied autoencoder": (TiedAutoencoder, {"middle.weight"}),
    "LoRA": (lambda: Lora(False), {"base.weight", "a", "b", "head.weight"}),
    "LoRA, merged": (lambda: Lora(True), {"head.weight"}),
    "graph": (GraphConv, set()),
    "U-Net": (UNet, {"down.weight", "out.weight"}),
    "LSTM": (Recurrent, {"head.weight"}),
    "language": (Language, {"qkv.weight", "project.weight"}),
    "mobile": (mobile, {"0.weight", "3.weight", "4.weight"}),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 4)), nn.Linear(4, 2)),
        {"1.weight"},
    ),
    "traced part": (lambda: nn.Sequential(torch.jit.trace(nn.Linear(8, 4).eval(), X), nn.Linear(4, 2)), {"1.weight"}),
    "bilinear": (lambda: nn.Sequential(nn.Linear(8, 4), Twice()), {"0.weight"}),
    "exported": (exported, {"0.weight", "1.weight"}),
    "symbolic": (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 4))), {"0.weight"}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_is_measured_or_listed_never_both(name: str) -> None:
    make, measured = NETWORKS[name]
    network = build(make)
    weights = {name for name, parameter in network.named_parameters() if parameter.ndim >= 2}
    if not measured:
        with pytest.raises(ModelError, match="nothing to prune") as caught:
            sb.measure_sensitivity(network, X)
        assert all(f" {weight}: " in str(caught.value) for weight in weights)
        return
    sens = sb.measure_sensitivity(network, X)
    assert set(sens) == measured
    assert not set(sens) & set(sens.skipped)
    assert weights <= set(sens) | set(sens.skipped)
    for method in ("sipp-hybrid", "wanda", "magnitude"):
        fitted = sb.fit(network, X, method)
        assert set(fitted.observation.scores) == measured
        assert fitted.skipped == sens.skipped
    pruned = fitted.prune(0.5)
    assert pruned.parameters == sum(parameter.numel() for parameter in network.parameters())
    before, after = network.state_dict(), pruned.model.state_dict()
    assert all(torch.equal(before[weight], after[weight]) for weight in weights - measured)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_of_torch_jit_is_refused_with_the_way_out() -> None:
    for network in (torch.jit.script(nn.Linear(8, 4).eval()), torch.jit.trace(nn.Linear(8, 4).eval(), X)):
        with pytest.raises(ModelError, match=r"weight: it is in a module of torch\.jit.*as it was before"):
            sb.measure_sensitivity(network, X)
    with pytest.raises(ModelError, match="nothing to prune"):
        sb.measure_sensitivity(torch.jit.freeze(torch.jit.script(nn.Linear(8, 4).eval())), X)
