"""Points in every form that is taken, and in many that are not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from samples import signed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sipp_bench as sb
from sipp_bench.errors import ModelError, OptionError, PointsError
from sipp_bench.network.points import PointSet, batch_length, call_model, iterate_batches, model_device

CPU = torch.device("cpu")
X = signed(7, 3)
LABELS = torch.arange(7)
LINE = nn.Linear(3, 2)


class Dicts(Dataset[Any]):
    def __init__(self, label: str) -> None:
        self.label = label

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": X[index], self.label: LABELS[index], "id": f"point {index}"}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


FORMS: dict[str, tuple[Any, bool]] = {
    "tensor": (X, False),
    "numpy": (X.numpy(), False),
    "numpy, reversed twice": (X.numpy()[::-1].copy()[::-1], False),
    "numpy, column-major": (np.asfortranarray(X.numpy()), False),
    "dataset of pairs": (TensorDataset(X, LABELS), True),
    "tuple": ((X, LABELS), True),
    "tuple of one": ((X,), False),
    "dict": ({"input": X, "labels": LABELS}, True),
    "pairs that say so": (PointSet(TensorDataset(X, LABELS), labelled=True), True),
    "dataset of inputs": (TensorDataset(X), False),
    "iterable dataset": (Stream(), False),
    "dicts": (Dicts("labels"), True),
    "dicts, one label": (Dicts("label"), True),
    "loader": (DataLoader(TensorDataset(X, LABELS), batch_size=3), True),
    "loader of tensors": (DataLoader(X, batch_size=3), False),  # type: ignore[arg-type]  # torch takes it
    "loader of dicts": (DataLoader(Dicts("label"), batch_size=3), True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_points_in_order(form: str) -> None:
    points, labelled = FORMS[form]
    batches = list(iterate_batches(points, 3, CPU, LINE))
    inputs = [batch if isinstance(batch, Tensor) else batch["input"] for batch, _ in batches]
    assert [len(batch) for batch in inputs] == [3, 3, 1]
    assert torch.equal(torch.cat(inputs), X)
    if labelled:
        assert torch.equal(torch.cat([labels for _, labels in batches if labels is not None]), LABELS)
    else:
        assert all(labels is None for _, labels in batches)
    for batch, _ in batches:
        assert isinstance(batch, Tensor) or set(batch) == {"input"}
    layer = nn.Linear(3, 2)
    expected = sb.measure_sensitivity(layer, X)["weight"].values
    torch.testing.assert_close(sb.measure_sensitivity(layer, points)["weight"].values, expected, rtol=1e-6, atol=0)


def test_a_loaders_own_batch_size_stays() -> None:
    assert [len(x) for x, _ in iterate_batches(DataLoader(TensorDataset(X), batch_size=5), 2, CPU)] == [5, 2]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.ones(0, 3), "no points"),
        (np.ones((0, 3)), "no points"),
        (TensorDataset(torch.ones(0, 3)), "no points"),
        (DataLoader(TensorDataset(torch.ones(0, 3))), "no points"),
        (torch.tensor(3.0), "single number"),
        (np.array(3.0), "single number"),
        (np.array(["a", None], dtype=object), "numpy array of object"),
        (np.array(["a", "b"]), "numpy array of"),
        ("points.npy", "type str"),
        (None, "type NoneType"),
        ({"input": X, "mask": [1, 0]}, "'mask' of the points is no tensor"),
        ({"input": X, "mask": X[:5]}, r"different numbers of rows \(input 7, mask 5\)"),
        ({}, "type dict"),
        ((X, "a"), "'1' of the points is no tensor"),
        ([X, X], "type list"),
        (TensorDataset(X, X), "labelled=True"),
        (DataLoader([{"x": X[0], "mask": [1, 0, 1]}]), "'mask' of a batch of points is a list"),
        (iter([X]), "type list_iterator"),
        (DataLoader(["a", "b"]), "is a str"),  # type: ignore[arg-type]  # that is the point
        (DataLoader([{"name": "a"}]), "dict without any tensor"),  # type: ignore[arg-type]  # that is the point
    ],
)
def test_what_is_refused(points: Any, message: str) -> None:
    with pytest.raises(PointsError, match=message):
        list(iterate_batches(points, 4, CPU))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_points_that_are_not_finite_are_named(value: float, batch_size: int) -> None:
    bad = X.clone()
    bad[5, 1] = value
    for points in (bad, bad.numpy(), bad.double(), TensorDataset(bad), DataLoader(TensorDataset(bad), 2)):
        with pytest.raises(PointsError, match="Point 5 holds NaN or infinity"):
            list(iterate_batches(points, batch_size, CPU))


def test_whole_numbers_are_points_too() -> None:
    batch, _ = next(iterate_batches(torch.arange(6).reshape(3, 2), 3, CPU))
    assert isinstance(batch, Tensor)
    assert batch.dtype == torch.int64


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    with pytest.raises(OptionError, match=f"not {batch_size}"):
        list(iterate_batches(X, batch_size, CPU))


def test_what_the_network_refuses_names_the_shapes() -> None:
    with pytest.raises(PointsError, match=r"Linear cannot process a batch of points of shape \(7, 3\)"):
        call_model(nn.Linear(4, 2), X)
    with pytest.raises(PointsError, match=r"'wrong': \(7, 3\)"):
        call_model(nn.Linear(3, 2), {"wrong": X})
    with pytest.raises(PointsError, match="dtype"):
        call_model(nn.Linear(3, 2), X.double())
    with pytest.raises(PointsError, match="4D input"):
        call_model(nn.BatchNorm2d(3), X)


def test_our_own_errors_and_memory_errors_pass_through() -> None:
    class Raises(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def forward(self, x: Tensor) -> Tensor:
            raise self.error

    for error in (ModelError("ours"), torch.OutOfMemoryError("full"), KeyError("a bug of the network")):
        with pytest.raises(type(error)) as caught:
            call_model(Raises(error), X)
        assert caught.value is error


def test_lengths_and_devices() -> None:
    assert batch_length(X) == 7
    assert batch_length({"input": X[:2]}) == 2
    assert model_device(nn.ReLU()) == CPU
    assert model_device(nn.Linear(2, 2, device="meta")).type == "meta"
    assert model_device(nn.BatchNorm1d(2, affine=False, device="meta")).type == "meta"
