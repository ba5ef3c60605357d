"""The result of pruning: its table and hash, saving it, holding its masks, torch's own prune."""

import copy
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_networks import KINDS, Attention, build
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import sipp_bench as sb
from sipp_bench.errors import OptionError, StoreError


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def tied() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied(), torch.randn(9, 6)


def subject(kind: str) -> tuple[nn.Module, Tensor]:
    return tied() if kind == "tied" else build(kind)


def fresh(kind: str) -> nn.Module:
    """The architecture with other weights."""
    if kind == "tied":
        return Tied()
    return build(kind, seed=7)[0]


ALL = [*KINDS, "tied"]


def test_layers_table() -> None:
    model, points = build("conv")
    pruned = sb.prune(model, points, method="sipp-hybrid", keep=0.4)
    table = pruned.layers
    assert isinstance(table, pd.DataFrame)
    columns = ["layer", "weights", "requested", "kept", "achieved_keep", "epsilon_max", "epsilon_mean", "vacuous"]
    assert list(table.columns) == columns
    assert list(table["layer"]) == ["0.weight", "4.weight", "7.weight"]
    assert list(table["weights"]) == [72, 108, 96]
    assert (
        table["kept"].sum() == pruned.kept == sum(int((p != 0).sum()) for p in pruned.model.parameters() if p.ndim > 1)
    )
    assert table["requested"].sum() == pruned.requested == round(0.4 * 276)
    for _, row in table.iterrows():
        epsilon = pruned.guarantee.epsilon[row["layer"]]
        assert row["achieved_keep"] == row["kept"] / row["weights"]
        assert row["epsilon_max"] == epsilon.max()
        assert row["epsilon_mean"] == pytest.approx(float(epsilon.mean()))
        assert row["vacuous"] == (epsilon >= 1).double().mean()
    without = sb.prune(model, points, method="magnitude", keep=0.4)
    assert without.guarantee is None
    assert without.layers[["epsilon_max", "epsilon_mean", "vacuous"]].isna().all().all()


def test_hash_is_stable_and_sees_every_weight() -> None:
    model, points = build("mlp")
    pruned = sb.prune(model, points, method="sipp-det", keep=0.4)
    first = pruned.mask_sha256
    assert len(first) == 64
    assert int(first, 16) >= 0
    assert pruned.mask_sha256 == first == sb.prune(model, points, method="sipp-det", keep=0.4).mask_sha256
    seen = {first}
    for change in ("value", "mask", "sign of zero", "dtype", "shape"):
        other = copy.deepcopy(pruned)
        weight = other.model[0].weight
        with torch.no_grad():
            if change == "value":
                weight[other.masks["0.weight"]] = torch.nextafter(weight, torch.tensor(9.0))[other.masks["0.weight"]]
            elif change == "mask":
                other.masks["0.weight"][0, 0] ^= True
            elif change == "sign of zero":
                weight[~other.masks["0.weight"]] = -0.0
            elif change == "dtype":
                other.model.double()
            else:
                other.masks["0.weight"] = other.masks["0.weight"].T
        seen.add(other.mask_sha256)
    assert len(seen) == 6


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_saved_weights_load_into_the_original_architecture(tmp_path: Path, kind: str, suffix: str) -> None:
    model, points = subject(kind)
    pruned = sb.prune(model, points, method="sipp-rand", keep=0.4)
    path = pruned.save(tmp_path / f"out{suffix}")
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    other = fresh(kind)
    assert other.load_state_dict(state, strict=True)
    for name, tensor in pruned.model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
        assert other.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(other.eval()(points), pruned.model.eval()(points))
    if kind == "tied":
        assert pruned.model.first.weight is pruned.model.second.weight
        assert {"first.weight", "second.weight"} <= set(state)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saving_is_reproducible_and_carries_notes(tmp_path: Path) -> None:
    from safetensors import safe_open

    model, points = build("mlp")
    pruned = sb.prune(model, points, method="magnitude", keep=0.4)
    one, two = (pruned.save(tmp_path / f"{i}.safetensors", {"keep": 0.4, "method": "magnitude"}) for i in range(2))
    assert one.read_bytes() == two.read_bytes()
    with safe_open(one, "pt") as file:
        assert file.metadata() == {"sipp-bench": '{"keep": 0.4, "method": "magnitude"}'}


def test_where_it_cannot_be_saved(tmp_path: Path) -> None:
    model, points = build("mlp")
    pruned = sb.prune(model, points, method="magnitude", keep=0.4)
    for name in ("out.bin", "out", "out.safetensors.gz"):
        with pytest.raises(OptionError, match=r"\.safetensors, \.pt or \.pth"):
            pruned.save(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot write"):
        pruned.save(tmp_path / "file" / "out.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ALL)
def test_masks_hold_while_retraining(kind: str) -> None:
    model, points = subject(kind)
    pruned = sb.prune(model, points, method="sipp-hybrid", keep=0.4)
    before = pruned.mask_sha256
    optimizer = torch.optim.SGD(pruned.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    step = pruned.apply_masks(optimizer.step)
    assert pruned.guarantee.void is None
    assert not math.isnan(pruned.layers["epsilon_max"][0])
    labels = torch.arange(9) % 3

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(pruned.model(points), labels)
        loss.backward()
        return loss

    losses = []
    for _ in range(20):
        loss = step(closure)  # what the step returns, and what it takes, pass through
        assert isinstance(loss, Tensor)
        losses.append(loss.item())
        parameters = dict(pruned.model.named_parameters())
        assert all((parameters[n][~mask] == 0).all() for n, mask in pruned.masks.items())
    assert losses[-1] < losses[0]
    assert pruned.mask_sha256 != before
    assert "retrained" in pruned.guarantee.void
    assert pruned.guarantee.statement().startswith("No guarantee")
    assert pruned.layers["epsilon_max"].isna().all()
    # Without the masks the same optimizer fills the zeros: the test above can fail.
    optimizer.step(closure)
    assert any((parameters[n][~mask] != 0).any() for n, mask in pruned.masks.items())
    assert pruned.apply_masks() is None
    assert all((parameters[n][~mask] == 0).all() for n, mask in pruned.masks.items())


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("method", ["magnitude", "sipp-rand"])
def test_torch_prune_gives_the_same_network(kind: str, method: str) -> None:
    model, points = subject(kind)
    pruned = sb.prune(model, points, method=method, keep=0.4)
    ours = {name: t.clone() for name, t in pruned.model.state_dict().items()}
    theirs = pruned.to_torch_prune()
    assert torch_prune.is_pruned(theirs)
    assert not torch_prune.is_pruned(pruned.model)
    for mode in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            expected = pruned.model.train(mode)(points)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert torch.equal(theirs.train(mode)(points), expected)
    held = [
        (m, n.removesuffix("_mask"))
        for m in theirs.modules()
        for n, _ in m.named_buffers(recurse=False)
        if n.endswith("_mask")
    ]
    assert len(held) == len(pruned.masks) + (kind == "tied")
    for module, name in held:
        torch_prune.remove(module, name)
    assert not torch_prune.is_pruned(theirs)
    statistics = {n for n, _ in theirs.named_buffers()}  # of batches, moved on in train mode
    assert set(theirs.state_dict()) == set(ours)
    assert all(torch.equal(t, ours[n]) for n, t in theirs.state_dict().items() if n not in statistics)
    if kind == "tied":
        assert theirs.first.weight is theirs.second.weight


def test_torch_prune_goes_on_from_our_masks() -> None:
    model, points = build("mlp")
    pruned = sb.prune(model, points, method="sipp-det", keep=0.5)
    theirs = pruned.to_torch_prune()
    torch_prune.l1_unstructured(theirs[0], "weight", amount=10)
    left = int(theirs[0].weight_mask.sum())
    assert left == int(pruned.masks["0.weight"].sum()) - 10
    assert not theirs[0].weight_mask.bool()[~pruned.masks["0.weight"]].any()
    # Gradients pass, and masked weights stay 0 while it trains.
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        theirs(points).square().sum().backward()
        optimizer.step()
    theirs(points)
    assert int((theirs[0].weight != 0).sum()) == left


def test_attention_retrains_with_masks_held() -> None:
    # What to_torch_prune's docstring sends people to, for nn.MultiheadAttention's out_proj.
    model, points = build("attention")
    assert isinstance(model, Attention)
    pruned = sb.prune(model, points, method="magnitude", keep=0.3)
    step = pruned.apply_masks(torch.optim.Adam(pruned.model.parameters(), lr=0.01).step)
    start = pruned.model.attention.out_proj.weight.detach().clone()
    for _ in range(3):
        pruned.model(points).square().sum().backward()
        step()
    weight = pruned.model.attention.out_proj.weight
    assert torch.equal(weight != 0, start != 0)
    assert not torch.equal(weight, start)


class CrossAttention(nn.Module):
    """Attention with separate weights for queries, keys and values, none of them the module's only one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x[..., :5], x[..., :3], need_weights=False)[0]


def test_torch_prune_holds_every_weight_of_a_module() -> None:
    model, points = CrossAttention(), torch.randn(4, 6, 8)
    pruned = sb.prune(model, points, method="magnitude", keep=0.4)
    assert len(pruned.masks) == 4
    theirs = pruned.to_torch_prune()
    names = {n for n, _ in theirs.named_buffers()}
    assert names == {f"{name}_mask" for name in pruned.masks}
    assert torch.equal(theirs(points), pruned.model(points))
